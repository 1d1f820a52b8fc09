"""A question of another package, as CONTRIBUTING.md says, asked in a real federation under its own name and price."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.recipes import follow
from tests.rounds import TWO_COLUMNS
from tests.tables import Called, hospital

from wardround.config import Federation
from wardround.errors import PolicyRefusal
from wardround.questions import Blocks, SumQuestion
from wardround.schedule import QUESTIONS, Schedule
from wardround.toml import loads
from wardround_client.audit import audit
from wardround_client.consent.terms import computed
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import RoundEnded
from wardround_server.rounds import run

FEDERATION = f"""
name = "features"
{TWO_COLUMNS}
[privacy]
epsilon = 40.0
[rounds]
rounds = 2
evaluate_every = 1
questions = ["first_feature"]
"""
LISTED = 'questions = ["statistics", "gradient", "confusion", "first_feature"]\nleast_noise_multiplier = 0.1'
PATIENTS = 300
MEANS = {"anna": 0.2, "bert": 0.6, "carl": 1.0}


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow("A new question", tmp_path, monkeypatch)


def rows(mean: float) -> Iterator[tuple[object, ...]]:
    dice = random.Random(mean)
    for _ in range(PATIENTS):
        a = dice.gauss(mean, 0.5)
        yield f"{a:.3f}", f"{dice.gauss(0, 1):.3f}", "yes" if a > mean else "no"


def test_it_is_asked_where_it_is_due_and_no_part_of_ours_knows_it() -> None:
    assert QUESTIONS.names == (*QUESTIONS.built_in, "first_feature")
    asked = [plan.question for plan in Schedule.of(loads(FEDERATION, Federation)).rounds]
    assert asked == ["statistics", "gradient", "confusion", "gradient", "confusion", "first_feature"]


def test_a_federation_asks_it_and_the_ledger_is_charged_under_its_name(tmp_path: Path) -> None:
    hospitals = [hospital(tmp_path / name, rows(mean), FEDERATION, LISTED) for name, mean in MEANS.items()]
    agreement = hospitals[0].approvals.preview(hospitals[0].home / "federation.toml")
    shown = computed(agreement.federation, agreement.schedule, agreement.calibration, PATIENTS)
    assert "first_feature" in shown["noise_in_clip_norms"], "a person sees it before saying yes"
    events = list(
        run(agreement.federation, agreement.model, Called(hospitals), Checkpointer(tmp_path), run_name="spring")
    )
    (asked,) = [each for each in events if isinstance(each, RoundEnded) and each.question == "first_feature"]
    assert asked.replied == 3 and not asked.rejected and not asked.clipped
    assert asked.model_extra is not None
    feature = [float(str(row[0])) for mean in MEANS.values() for row in rows(mean)]
    exact, sigma = sum(feature) / len(feature), agreement.calibration.noise_multiplier("first_feature")
    # The noise comes from the OS. A quotient f / p of two sums bears that of f and, f / p times, that of p.
    question = QUESTIONS["first_feature"]
    assert isinstance(question, SumQuestion)
    of_p, of_f = Blocks(question.summands(agreement.federation, agreement.model)).units()
    deviation = sigma * math.sqrt(len(hospitals)) * math.hypot(of_f, exact * of_p) / len(feature)
    assert 7 * deviation < 0.1, "fewer than the 0.2 by which the mean of two hospitals differs"
    assert asked.model_extra["first_feature"] == pytest.approx(exact, abs=7 * deviation)
    for each in hospitals:
        reserved, released = (entry.body for entry in each.ledger.entries()[-2:])
        assert reserved["question"] == released["question"] == "first_feature"
        assert released["layout"] == "patients 1, feature 1"
        sigma, rate, count = reserved["rows"][0]
        assert (rate, count) == (1.0, 1) and sigma == agreement.calibration.noise_multiplier("first_feature")
        spent = each.ledger.spent(each.config.delta)
        assert 0.99 * 40 <= spent <= 40, "the price of the whole run is what was agreed"


def test_a_hospital_that_does_not_list_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(PolicyRefusal) as refusal:
        hospital(tmp_path / "anna", rows(0.5), FEDERATION)
    assert (refusal.value.rule, refusal.value.asked) == ("policy.questions", "first_feature")


def test_the_audit_attacks_it_like_one_of_ours(tmp_path: Path) -> None:
    anna = hospital(tmp_path / "anna", rows(0.5), FEDERATION, LISTED)
    terms = anna.approvals.preview(anna.home / "federation.toml")
    only = ("first_feature", "alone")
    report = audit(terms, declared_patients=PATIENTS, delta=1e-3, trials=300, confidence=1 - 1e-6, only=only)
    assert {row.name for row in report.rows} == {"first_feature", "alone"}
    report.check()
