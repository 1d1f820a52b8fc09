"""Somebody who starts a federation asks what to agree on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from tests.shared.experience.test_regression import a_run
from tests.shared.experience.test_row import a_row, described

from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.experience.advice import DEFAULT, Learned, advise, candidates, fitted
from wardround.experience.command import app
from wardround.experience.file import ours
from wardround.experience.row import Described, Row, nested
from wardround.experience.rule import by_rule
from wardround.task import Task
from wardround.toml import loads
from wardround_server.home import FEDERATION_TOML

TASK = """
[task]
label_column = "dx"
classes = ["nevus", "melanoma", "keratosis"]
image_size_px = 28
channels = 3
"""


def asked(folder: Path, *options: str, text: str = TASK) -> Result:
    file = folder / "task.toml"
    file.write_text(text)
    return CliRunner().invoke(app.as_click("recommend"), [str(file), *options])


def refused(folder: Path, *options: str, text: str = TASK) -> str:
    result = asked(folder, *options, text=text)
    assert isinstance(result.exception, ConfigError), result.output
    return str(result.exception)


def test_a_task_like_ours_gets_an_algorithm_its_settings_and_what_to_expect(tmp_path: Path) -> None:
    result = asked(tmp_path, "--patients", "150,150,150")
    assert result.exit_code == 0, result.output
    said = " ".join(result.output.split())
    assert "3 classes, 3 hospitals of 150 patients, epsilon 8" in said
    assert "algorithm" in said and "outer.learning_rate" in said and "privacy.clip_norm" in said
    assert "at a new hospital with 5 patients a class" in said
    assert "skin" in said and "I don't know" not in said


def test_json_holds_settings_that_are_an_agreement(tmp_path: Path) -> None:
    result = asked(tmp_path, "--patients", "150,150,150", "--epsilon", "8", "--json")
    found = json.loads(result.output)
    assert found["known"] and found["task"]["epsilon"] == 8.0 and found["task"]["hospitals"] == [150, 150, 150]
    assert 0 <= found["score"] <= 1 and found["spread"] > 0
    task = Task(label_column="dx", classes=("a", "b", "c"), image_size_px=28, channels=3)
    Federation.model_validate({"name": "n", "task": task, **nested(found["settings"])})
    assert "dx" not in result.output and "nevus" not in result.output


def test_far_from_everything_it_says_so_and_names_a_public_rule(tmp_path: Path) -> None:
    many = ",".join(["1000000"] * 40)
    text = TASK.replace('classes = ["nevus", "melanoma", "keratosis"]', f"classes = {[str(n) for n in range(250)]}")
    result = asked(tmp_path, "--patients", many, "--epsilon", "0.01", text=text)
    assert result.exit_code == 0
    said = " ".join(result.output.split())
    assert (
        "I don't know: this task is far from all" in said and "fedavg" in said and "points of the default" not in said
    )
    volume = TASK.replace("channels = 3", 'kind = "volume"\ndepth = 16')
    assert "I don't know" in asked(tmp_path, "--patients", "200,150", text=volume).output
    several = asked(tmp_path, "--patients", "200,150", text=TASK.replace("channels = 3", 'labels = "several"'))
    assert "I don't know" in several.output and "fedavg" in several.output


def test_a_whole_agreement_is_read_for_its_task_and_its_epsilon(tmp_path: Path) -> None:
    result = asked(
        tmp_path, "--patients", "200,150", "--json", text=FEDERATION_TOML.replace("epsilon = 8.0", "epsilon = 2.5")
    )
    assert json.loads(result.output)["task"]["epsilon"] == 2.5


@pytest.mark.parametrize(
    ("options", "text", "words"),
    [
        ((), TASK, "--patients is missing"),
        (("--patients", "200,none"), TASK, "such as 200,150,90"),
        (("--patients", "0"), TASK, "such as 200,150,90"),
        (("--patients", "9" * 400), TASK, "such as 200,150,90"),
        (("--patients", "200"), TASK.replace("classes", "clases"), "did you mean 'classes'?"),
        (("--patients", "200"), "name = 1", "missing key 'task'"),
        (("--patients", "200"), "[task", "not TOML"),
        (("--patients", "200"), TASK.replace("channels = 3", 'labels = "odd\x1b"'), "not TOML"),
        (("--patients", "200", "--experience", "/nowhere"), TASK, "no such file"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(tmp_path: Path, options: tuple[str, ...], text: str, words: str) -> None:
    assert words in refused(tmp_path, *options, text=text)


def test_a_consortiums_own_runs_count(tmp_path: Path) -> None:
    """Ten runs of the very task, in which a method that we thought little of was right."""
    own = tmp_path / "experience.jsonl"
    task = Described.of(
        Task(label_column="x", classes=("a", "b", "c"), image_size_px=28, channels=3), [90, 150, 200], 8.0
    )
    settings = {"algorithm.name": "siamese", "model.embedding": 16.0, "outer.learning_rate": 0.1, "rounds.rounds": 20.0}
    rows = [a_row(task=task, settings=settings, scores={5: 0.97}) for _ in range(10)]
    own.write_text("".join(row.line() + "\n" for row in rows) + "torn")
    result = asked(tmp_path, "--patients", "200,150,90", "--experience", str(own))
    said = " ".join(result.output.split())
    assert "siamese" in said and "your own" in said
    assert "passed over 1 line that is no row" in said


def test_the_answer_needs_no_torch(tmp_path: Path) -> None:
    (tmp_path / "task.toml").write_text(TASK)
    program = (
        "import sys; from wardround.experience.command import app\n"
        f"app.as_click('recommend')([{str(tmp_path / 'task.toml')!r}, '--patients', '90,80'], standalone_mode=False)\n"
        "assert 'wardround.experience.regression' in sys.modules\n"
        "assert not {'torch', 'scipy', 'sklearn'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_default_is_what_init_writes() -> None:
    federation = loads(FEDERATION_TOML, Federation)
    written: dict[str, Any] = {
        "algorithm.name": federation.algorithm.name,
        "outer.learning_rate": federation.outer.optimizer.model_dump()["learning_rate"],
        "privacy.clip_norm": federation.privacy.clip_norm,
        "rounds.rounds": federation.rounds.rounds,
        **{f"algorithm.{key}": getattr(federation.algorithm, key) for key in ("local_steps", "local_learning_rate")},
    }
    assert written == DEFAULT


@given(described, st.lists(st.integers(0, 30), min_size=1, max_size=4))
def test_whatever_the_task_settings_fit_it(task: Described, chosen: list[int]) -> None:
    every = ours()
    for settings in [DEFAULT, *(every[number % len(every)].settings for number in chosen)]:
        found = fitted(settings, task)
        assert (found["model.family"] in ("logistic", "mlp")) == (task.kind == "table")
        assert not {"privacy.epsilon", "rounds.quorum", "outer.rule"} & found.keys()


@given(described)
def test_the_rule_fits_whatever_is_asked(task: Described) -> None:
    found = by_rule(task)
    assert fitted(found, task) == found, "of the keys that are chosen, and none that the task cannot have"


@given(described, st.integers(0, 100))
def test_advice_of_generated_tasks_is_finite_and_says_the_same_again(task: Described, shots: int) -> None:
    rows = [a_run(0.5 + number / 40, 2.0**number) for number in range(6)]
    task = task.model_copy(update={"labels": "one"})
    one, again = (advise(task, rows, Learned(least_alike=0.3), shots=shots) for _ in range(2))
    assert one == again
    assert 0 <= one.score <= 1 and 0 <= one.spread < 4 and one.tasks == 1
    assert one.known == (one.nearest[0].alike >= 0.3)


def test_an_algorithm_that_is_not_installed_is_not_recommended() -> None:
    rows: list[Row] = [a_run(0.9, 4.0, name="somebody-elses"), a_run(0.5, 4.0)]
    assert [each["algorithm.name"] for each in candidates(rows, rows[0].task)] == ["fedavg"]
