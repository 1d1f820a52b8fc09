"""A coordinator begins with what is recommended for its task."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from wardround.config import Federation, load_federation
from wardround.errors import ConfigError
from wardround_server.commands import app
from wardround_server.home import FEDERATION_TOML

IMAGES = """
# what we look for
[task]  # of all of us
label_column = "dx"
classes = ["nevus", "melanoma"]
image_size_px = 28
channels = 3
[task.values]
"mole" = "nevus"   # an old word
"""
TABLE = """
name = "hearts"
[task]
label_column = "num"
classes = ["0", "1"]
kind = "table"
features = ["age", "chol"]
[model]
family = "logistic"
[rounds]
rounds = 3
"""
FAR = 'name = "scans"\n[task]\nlabel_column = "y"\nclasses = ["a", "b"]\nkind = "volume"\ndepth = 16\n'


def made(folder: Path, text: str, *options: str) -> tuple[Result, Path]:
    task = folder / "task.toml"
    task.write_text(text)
    home = folder / "home"
    arguments = [str(home), "--like", str(task), *(options or ("--patients", "80,80,80"))]
    runner = CliRunner()
    return runner.invoke(app.get_command(None, "init"), arguments), home  # type: ignore[arg-type]


def agreement(folder: Path, text: str, *options: str) -> tuple[Federation, str]:
    result, home = made(folder, text, *options)
    assert result.exit_code == 0, result.output
    return load_federation(home / "federation.toml"), (home / "federation.toml").read_text()


def test_the_file_has_the_task_as_it_was_written_and_says_where_the_rest_comes_from(tmp_path: Path) -> None:
    federation, text = agreement(tmp_path, IMAGES)
    assert '"mole" = "nevus"   # an old word' in text and "[task]  # of all of us" in text
    assert federation.task.classes == ("nevus", "melanoma") and dict(federation.task.values) == {"mole": "nevus"}
    assert "recommended by wardround" in text and "3 hospitals of 80 patients, epsilon 8" in text
    assert "learned from" in text and "skin" in text and "No patient was asked" in text
    assert federation.rounds.quorum == 2 and federation.privacy.epsilon == 8.0


def test_a_table_gets_a_model_for_tables_and_none_of_the_files_own_settings(tmp_path: Path) -> None:
    federation, text = agreement(tmp_path, TABLE, "--patients", "200", "--epsilon", "3")
    assert federation.name == "hearts" and federation.model.family in ("logistic", "mlp")
    assert federation.privacy.epsilon == 3.0 and federation.rounds.quorum == 1
    assert text.count("[model]") == 1


def test_far_from_everything_it_writes_the_public_rule_and_says_so(tmp_path: Path) -> None:
    federation, text = agreement(tmp_path, FAR)
    assert "does not know what is good" in text and "FedAvg by a public rule" in text
    assert federation.algorithm.name == "fedavg" and federation.rounds.rounds == 20


def test_a_consortiums_encoder_stays(tmp_path: Path) -> None:
    own = IMAGES + f'[model]\nencoder = "derm.safetensors"\nencoder_sha256 = "{"0a" * 32}"\n'
    federation, _ = agreement(tmp_path, own)
    assert federation.model.encoder == "derm.safetensors"


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        (IMAGES, ("--patients", ""), "--patients is missing"),
        (IMAGES.replace("classes", "clases"), ("--patients", "9"), "did you mean"),
        ('task = {label_column = "x", classes = ["a", "b"]}', ("--patients", "9"), "write it as a table"),
        (IMAGES.replace('"dx"', '"""\n[task]\n"""'), ("--patients", "9"), ""),
    ],
)
def test_what_cannot_be_written_is_refused_and_no_home_is_made(
    tmp_path: Path, text: str, options: tuple[str, ...], words: str
) -> None:
    result, home = made(tmp_path, text, *options)
    assert isinstance(result.exception, ConfigError) and words in str(result.exception)
    assert not home.exists()


def test_an_agreement_that_is_there_is_never_written_over(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "federation.toml").write_text("ours")
    result, _ = made(tmp_path, IMAGES)
    assert isinstance(result.exception, ConfigError) and "is not written over" in str(result.exception)
    assert (home / "federation.toml").read_text() == "ours"


def test_options_of_a_recommendation_need_a_task(tmp_path: Path) -> None:
    runner = CliRunner()
    init = app.get_command(None, "init")  # type: ignore[arg-type]
    assert init is not None
    result = runner.invoke(init, [str(tmp_path / "home"), "--patients", "9"])
    assert isinstance(result.exception, ConfigError) and "name a task" in str(result.exception)
    assert runner.invoke(init, [str(tmp_path / "home")]).exit_code == 0
    assert (tmp_path / "home" / "federation.toml").read_text() == FEDERATION_TOML
