"""A hospital's round, as the coordinator and as an attacker would see it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.rounds import read, request
from torch import Tensor

import wardround_client.round as round_module
from wardround.questions import Cohort
from wardround.schedule import RoundPlan
from wardround.wire import RoundReply
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import answer


@pytest.fixture
def agreement(hospital: Hospital, federation_toml: Path) -> Agreement:
    return hospital.approvals.approve(federation_toml)


def test_a_whole_run_is_answered_and_costs_what_was_agreed(hospital: Hospital, agreement: Agreement) -> None:
    epsilons = []
    for plan in agreement.schedule.rounds:
        reply = read(agreement, answer(hospital, request(agreement, plan.number)), plan.number)
        assert reply.header.refusal is None
        assert np.isfinite(reply.answer).all()
        epsilons.append(reply.header.epsilon)
    assert [plan.question for plan in agreement.schedule.rounds] == ["statistics", *["gradient"] * 3, "confusion"]
    assert epsilons == sorted(epsilons)
    assert 0.97 * 8 <= epsilons[-1] <= 8


def test_a_retry_gets_the_same_bytes_and_costs_nothing(hospital: Hospital, agreement: Agreement) -> None:
    first = answer(hospital, request(agreement, 1))
    spent = hospital.ledger.spent(hospital.config.delta)
    assert answer(hospital, request(agreement, 1)) == first
    assert hospital.ledger.spent(hospital.config.delta) == spent


def test_the_same_round_with_another_model_is_refused(hospital: Hospital, agreement: Agreement) -> None:
    answer(hospital, request(agreement, 1))
    spent = hospital.ledger.spent(hospital.config.delta)
    refusal = read(agreement, answer(hospital, request(agreement, 1, theta=1.0)), 1).header.refusal
    assert refusal is not None
    assert refusal.error == "Replay"
    assert hospital.ledger.spent(hospital.config.delta) == spent


def test_what_was_not_approved_is_refused_by_name(hospital: Hospital, federation_toml: Path) -> None:
    foreign = hospital.approvals.preview(federation_toml)
    refusal = read(foreign, answer(hospital, request(foreign, 0)), 0).header.refusal
    assert refusal is not None
    assert (refusal.error, refusal.rule) == ("PolicyRefusal", "approved")
    assert not hospital.ledger.history()


def test_a_round_beyond_the_schedule_is_refused(hospital: Hospital, agreement: Agreement) -> None:
    number = len(agreement.schedule)
    blob = answer(hospital, request(agreement, number))
    refusal = RoundReply.unpack(blob, run="spring", round=number, size=1).header.refusal
    assert refusal is not None
    assert refusal.rule == "approved"
    assert not hospital.ledger.history()


def test_a_second_run_is_refused_when_the_budget_is_spent(
    hospital: Hospital, agreement: Agreement, federation_toml: Path
) -> None:
    hospital.approvals.approve(federation_toml, runs=2)
    for plan in agreement.schedule.rounds:
        answer(hospital, request(agreement, plan.number))
    spent = hospital.ledger.spent(hospital.config.delta)
    outcomes = [
        read(agreement, answer(hospital, request(agreement, number, run="autumn")), number, run="autumn").header.refusal
        for number in range(4)
    ]
    assert outcomes[-1] is not None
    assert outcomes[-1].error == "BudgetExceeded"
    assert spent < hospital.ledger.spent(hospital.config.delta) <= hospital.config.budget.epsilon


@pytest.mark.parametrize("theta", [float("nan"), float("inf"), 1e30])
def test_a_poisoned_model_leaks_nothing(hospital: Hospital, agreement: Agreement, theta: float) -> None:
    reply = read(agreement, answer(hospital, request(agreement, 1, theta=theta)), 1)
    assert reply.header.refusal is not None
    expected = "MessageError" if not np.isfinite(theta) else "PolicyRefusal"
    assert reply.header.refusal.error == expected
    assert not hospital.ledger.history()


@pytest.mark.parametrize("blob", [b"", b"\0" * 8, b"hello", b"\xff" * 64])
def test_a_malformed_message_gets_a_refusal(hospital: Hospital, agreement: Agreement, blob: bytes) -> None:
    reply = RoundReply.unpack(answer(hospital, blob), run="unknown", round=0, size=1)
    assert reply.header.refusal is not None
    assert reply.header.refusal.error == "MessageError"


def test_a_crash_inside_a_round_stays_inside(
    hospital: Hospital, agreement: Agreement, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = round_module.ask

    def fail(plan: RoundPlan, cohort: Cohort, *rest: Any) -> Tensor:
        if isinstance(cohort, PrivateCohort) and cohort._examples.patients:
            raise RuntimeError("PatientID 4711 has no left lung")
        return ask(plan, cohort, *rest)

    with monkeypatch.context() as broken:
        broken.setattr(round_module, "ask", fail)
        blob = answer(hospital, request(agreement, 1))
    assert b"4711" not in blob
    assert read(agreement, blob, 1).header.refusal is None  # noise alone: a refusal would tell of patient 4711
    spent = hospital.ledger.spent(hospital.config.delta)
    assert spent > 0
    assert answer(hospital, request(agreement, 1)) == blob
    assert hospital.ledger.spent(hospital.config.delta) == spent


def test_a_paused_hospital_refuses_and_resumes(hospital: Hospital, agreement: Agreement) -> None:
    hospital.paused.set()
    refusal = read(agreement, answer(hospital, request(agreement, 0)), 0).header.refusal
    assert refusal is not None
    assert refusal.rule == "pause"
    hospital.paused.clear()
    assert read(agreement, answer(hospital, request(agreement, 0)), 0).header.refusal is None


def test_replies_have_one_length_whatever_the_data(
    hospital: Hospital, agreement: Agreement, federation_toml: Path
) -> None:
    hospital.approvals.approve(federation_toml, runs=3)
    lengths = {len(answer(hospital, request(agreement, 1, run=run))) for run in ("a", "bb", "a-much-longer-name")}
    assert len(lengths) == 1


def test_an_approval_whose_file_was_changed_is_refused(hospital: Hospital, agreement: Agreement) -> None:
    file = hospital.approvals.folder(agreement.federation.digest) / "federation.toml"
    file.write_text(file.read_text().replace("rounds = 3", "rounds = 4"))
    refusal = read(agreement, answer(hospital, request(agreement, 0)), 0).header.refusal
    assert refusal is not None
    assert refusal.rule == "approved"


def test_a_hospital_without_a_cohort_refuses_and_pays_nothing(
    home_with_cohort: Path, tmp_path: Path, federation_toml: Path
) -> None:
    toml = (home_with_cohort / "hospital.toml").read_text()
    hospital = Hospital.create(tmp_path / "empty", toml, ledger=Ledger(None))
    agreement = hospital.approvals.approve(federation_toml)
    refusal = read(agreement, answer(hospital, request(agreement, 0)), 0).header.refusal
    assert refusal is not None
    assert (refusal.error, refusal.allowed) == ("DataError", "")
    assert not hospital.ledger.history()
