"""A federation about survival, as hospitals export it: three learn privately, a fourth adapts, judges and predicts."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
from tests.client.command_line import wardround
from tests.tables import Called

from wardround_client.hospital import Hospital
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.rounds import run

PATIENTS = 220
FEDERATION = """
name = "survival"
[task]
label_column = "days"
event_column = "dead"
labels = "survival"
classes = ["1 year", "2 years", "5 years"]
ends = [365, 730, 1826]
kind = "table"
features = ["age", "grade"]
centre = [60, 2]
spread = [10, 1]
may_miss = ["grade"]
[model]
family = "logistic"
[algorithm]
name = "fedavg"
[outer]
learning_rate = 4.0
[privacy]
epsilon = 20.0
[rounds]
rounds = 10
evaluate_every = 10
"""
DEAD = {"plain": ("1", "0"), "cbioportal": ("1:DECEASED", "0:LIVING"), "german": ("1", "0"), "words": ("dead", "alive")}


def export(file: Path, style: str, seed: int) -> None:
    """Older patients and higher grades die earlier; a third is lost within five years. Some grades are not known."""
    dice, comma = random.Random(seed), "," if style == "german" else "."
    lines = [["age", "grade", "days", "dead"]]
    for _ in range(PATIENTS):
        age, grade = dice.gauss(60, 10), dice.choice([1, 2, 3])
        dies = dice.expovariate(math.exp(0.9 * (age - 60) / 10 + 0.8 * (grade - 2)) / 2000)
        lost = dice.uniform(200, 4000)
        dead, alive = DEAD[style]
        known = style == "plain" or dice.random() < 0.9
        lines.append(
            [f"{age:.1f}", str(grade) if known else "", f"{min(dies, lost):.1f}", dead if dies < lost else alive]
        )
    text = "\n".join((";" if comma == "," else ",").join(cell.replace(".", comma) for cell in row) for row in lines)
    file.write_text(text + "\n")


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Homes that took in their tables, by their style."""
    homes, folder = {}, tmp_path_factory.mktemp("survival")
    (folder / "federation.toml").write_text(FEDERATION)
    for seed, style in enumerate(DEAD):
        home = homes[style] = folder / style
        Hospital.create(
            home,
            f'[hospital]\nname = "{style}"\ndeclared_patients = {PATIENTS}\n'
            "[budget]\nepsilon = 100.0\nepsilon_per_round = 100.0\n",
        )
        export(folder / f"{style}.csv", style, seed)
    return homes


def said(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    code, out, err = wardround(capsys, *arguments, "--json")
    assert code == 0, out + err
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def test_three_hospitals_learn_and_a_fourth_uses_it(
    hospitals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = next(iter(hospitals.values())).parent / "federation.toml"
    for style, home in hospitals.items():
        taken = said(capsys, "ingest", home, toml.parent / f"{style}.csv", "--federation", toml)
        assert taken["used"] == PATIENTS and sum(taken["classes"][0]["classes"].values()) > 50, taken
        Hospital.open(home).approvals.approve(toml)
    members = [Hospital.open(home) for style, home in hospitals.items() if style != "words"]
    agreement = members[0].approvals.preview(toml)
    events = list(
        run(agreement.federation, agreement.model, Called(members), Checkpointer(tmp_path), run_name="spring")
    )
    ended = [event for event in events if isinstance(event, RoundEnded)]
    assert not any(event.rejected for event in ended)
    assert ended[-1].score == "concordance" and 0.6 < (ended[-1].accuracy or 0) <= 1

    stranger, model = hospitals["words"], tmp_path / "checkpoint.safetensors"
    before = said(capsys, "evaluate", stranger, "--unadapted", "--task", toml, "--model", model)["before"]
    assert before["metrics"]["concordance"]["value"] > 0.65, "what was learned elsewhere ranks patients here"
    adapted = said(capsys, "adapt", stranger, "--task", toml, "--model", model, "--shots", 40)
    after = adapted["after"]["metrics"]
    assert after["concordance"]["low"] > 0.6 and after["brier_score"]["value"] < 0.25
    assert after["calibration_error"]["value"] < 0.15, "probabilities are what comes true"
    assert adapted["support_patients"] == 40

    (tmp_path / "new.csv").write_text("age,grade\n45,1\n80,3\n")
    said(capsys, "predict", stranger, tmp_path / "new.csv", "--out", tmp_path / "out")
    with (tmp_path / "out" / "predictions.csv").open() as file:
        young, old = list(csv.DictReader(file))
    ends = [f"without the event at {name}" for name in agreement.federation.task.classes]
    for row in (young, old):
        free = [float(row[end]) for end in ends]
        assert free == sorted(free, reverse=True) and 0 < free[-1] <= free[0] < 1
    assert float(young[ends[-1]]) > float(old[ends[-1]]) + 0.2
    assert old["predicted"].endswith("without the event at 5 years")


@pytest.mark.parametrize(
    ("written", "why"),
    [
        ("-5,1", "'-5;1'"),
        ("2019-03-04,1", "'2019-03-04;1'"),
        ("365,perhaps", "'365;perhaps'"),
        ('"1,234",1', "'1,234;1'"),
    ],
)
def test_a_time_or_an_event_that_cannot_be_read_is_named_before_anything_is_stored(
    hospitals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], written: str, why: str
) -> None:
    home, toml = hospitals["plain"], hospitals["plain"].parent / "federation.toml"
    (tmp_path / "bad.csv").write_text(f"age,grade,days,dead\n50,1,700,0\n61,2,{written}\n")
    code, out, err = wardround(capsys, "ingest", home, tmp_path / "bad.csv", "--federation", toml)
    told = " ".join((out + err).split())
    assert code == 3 and why in told, told
    assert "days a number from 0 on, dead 1 where the event was and 0 where not" in told


def test_without_the_column_of_events_nothing_is_taken_for_an_event(
    hospitals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, toml = hospitals["plain"], tmp_path / "one-column.toml"
    toml.write_text(FEDERATION.replace('event_column = "dead"\n', ""))
    (tmp_path / "bare.csv").write_text("age,grade,days\n50,1,700\n61,2,400\n")
    code, out, err = wardround(capsys, "ingest", home, tmp_path / "bare.csv", "--federation", toml)
    assert code == 3 and '"730;1"' in " ".join((out + err).split())
    (tmp_path / "both.csv").write_text("age,grade,days\n50,1,700;0\n61,2,400;1\n")
    assert said(capsys, "ingest", home, tmp_path / "both.csv", "--federation", toml, "--dry-run")["used"] == 2


def test_a_missing_time_or_event_leaves_a_patient_out(
    hospitals: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = hospitals["plain"].parent / "federation.toml"
    (tmp_path / "gaps.csv").write_text("age,grade,days,dead\n50,1,,1\n61,2,400,\n62,2,400,?\n63,3,200,1\n")
    Hospital.create(tmp_path / "home", '[hospital]\nname = "gaps"\ndeclared_patients = 20\n')
    taken = said(capsys, "ingest", tmp_path / "home", tmp_path / "gaps.csv", "--federation", toml, "--dry-run")
    assert (
        taken["classes"][0]["classes"] == {"1 year": 1, "2 years": 0, "5 years": 0}
        and not taken["classes"][0]["unknown"]
    )
