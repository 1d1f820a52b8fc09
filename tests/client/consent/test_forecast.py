"""The forecast of a run: what it costs on top of what was spent, and where the budget would stop it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from wardround.accountant import Answers, epsilon, rows_for
from wardround_client.consent.agreement import Agreement
from wardround_client.consent.forecast import forecast
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Budget


@pytest.fixture
def agreement(hospital: Hospital, federation_toml: Path) -> Agreement:
    return hospital.approvals.preview(federation_toml)


def rows(agreement: Agreement, rounds: int) -> list[Answers]:
    return [row for plan in agreement.schedule.rounds[:rounds] for row in rows_for(agreement.calibration, plan)]


def test_a_first_run_costs_what_it_was_calibrated_for(agreement: Agreement) -> None:
    told = forecast(agreement, [], Budget(10.0, 1e-3))
    assert told.after == told.alone == pytest.approx(epsilon(rows(agreement, len(agreement.schedule)), 1e-3))
    assert (told.before, told.affordable) == (0.0, told.rounds)
    assert f"{told.after:.2f} of the 10.00 left" in told.sentence()


def test_a_second_run_is_priced_together_with_the_first(agreement: Agreement) -> None:
    history = rows(agreement, len(agreement.schedule))
    told = forecast(agreement, history, Budget(100.0, 1e-3))
    assert told.before < told.after < told.before + told.alone


def test_it_names_the_number_of_rounds_that_the_budget_carries(agreement: Agreement) -> None:
    for carried in range(len(agreement.schedule) + 1):
        limit = epsilon(rows(agreement, carried), 1e-3) if carried else 1e-6
        told = forecast(agreement, [], Budget(limit, 1e-3))
        assert told.affordable == carried
        assert ("does NOT fit" in told.sentence()) == (carried < told.rounds)


def test_the_limit_of_a_round_stops_a_run_too(agreement: Agreement) -> None:
    budget = Budget(100.0, 1e-3)
    prices = [epsilon(rows_for(agreement.calibration, plan), 1e-3) for plan in agreement.schedule.rounds]
    dearest = prices.index(max(prices))
    told = forecast(agreement, [], replace(budget, epsilon_per_round=max(prices) * 0.999))
    assert told.affordable == dearest
