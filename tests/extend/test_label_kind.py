"""A label kind of another package, as CONTRIBUTING.md says: learned, judged privately, and used at home."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recipes import follow
from tests.rounds import TWO_COLUMNS
from tests.tables import Called, hospital

from wardround.labels import LABEL_KINDS
from wardround_client.personal.labelled import Labelled
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.rounds import run
from wardround_simulation.evaluate import learner

GRADES = ("none", "mild", "severe")
FEDERATION = f"""
name = "grades"
{TWO_COLUMNS.replace('["no", "yes"]', '["none", "mild", "severe"]' + chr(10) + 'labels = "grade"')}
[outer]
learning_rate = 4.0
[privacy]
epsilon = 60.0
[rounds]
rounds = 6
evaluate_every = 6
"""
PATIENTS = 80


def rows(seed: int) -> Iterator[tuple[object, ...]]:
    """A grade follows from the first number."""
    dice = random.Random(seed)
    for _ in range(PATIENTS):
        a = dice.gauss(0, 1)
        yield f"{a:.3f}", f"{dice.gauss(0, 1):.3f}", GRADES[(a > -0.5) + (a > 0.5)]


def test_grades_are_learned_judged_and_predicted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("A new label kind", tmp_path, monkeypatch)
    assert "grade" in LABEL_KINDS.names
    hospitals = [hospital(tmp_path / f"h{seed}", rows(seed), FEDERATION) for seed in range(3)]
    *members, stranger = hospitals
    agreement = stranger.approvals.preview(stranger.home / "federation.toml")
    checkpointer = Checkpointer(tmp_path)
    events = list(run(agreement.federation, agreement.model, Called(members), checkpointer, run_name="spring"))
    judged = next(each for each in events if isinstance(each, RoundEnded) and each.question == "confusion")
    assert judged.accuracy is not None and judged.accuracy > 0.6
    assert judged.model_extra is not None and judged.model_extra["grades_off"] < 0.5

    state = checkpointer.load(run="spring", federation=agreement.federation.digest)
    assert state is not None
    model = learner(agreement, state, stranger.device)
    everybody, _ = Labelled.of(stranger.patients.cohort(), agreement.federation.task, agreement.model, stranger.device)
    assert model.score(model.unadapted(), everybody.examples) > 0.6
    metric = model.report(model.unadapted(), everybody.examples).metrics["macro_auroc"]
    assert metric is not None and metric.value > 0.8
    assert model.loss.labels.prediction((0.4, 0.3, 0.3), GRADES) == "mild", "the median, not the mode"
