"""Prices and calibration, from public numbers."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wardround import accountant
from wardround.accountant import Answers, calibrate, epsilon, epsilon_and_method, rows_for, run_epsilon
from wardround.config import Privacy
from wardround.errors import ConfigError
from wardround.schedule import RoundPlan, Schedule


def schedule(rounds: int, times: int = 1, evaluations: int = 0) -> Schedule:
    plans = [RoundPlan(0, "statistics", 1)]
    plans += [RoundPlan(number, "gradient", times) for number in range(1, rounds + 1)]
    plans += [RoundPlan(rounds + 1 + number, "confusion", 1) for number in range(evaluations)]
    return Schedule(tuple(plans))


@settings(max_examples=60, deadline=None)
@given(
    rounds=st.integers(1, 300),
    times=st.integers(1, 5),
    evaluations=st.integers(0, 5),
    target=st.floats(0.1, 20),
    patients=st.integers(20, 100_000),
)
def test_a_run_costs_its_epsilon_and_no_more(
    rounds: int, times: int, evaluations: int, target: float, patients: int
) -> None:
    delta = 1 / (10 * patients + 1)
    run = schedule(rounds, times, evaluations)
    privacy = Privacy(epsilon=target)
    calibration = calibrate(run, privacy, declared_patients=patients, delta=delta)
    assert 0.99 * target <= run_epsilon(calibration, run, len(run) - 1, delta) <= target
    assert epsilon(rows_for(calibration, run[0]), delta) == pytest.approx(0.15 * target, rel=1e-6)
    confusions = [row for plan in run.rounds if plan.question == "confusion" for row in rows_for(calibration, plan)]
    if evaluations:
        assert epsilon(confusions, delta) == pytest.approx(0.15 * target, rel=1e-6)
    else:
        assert math.isinf(calibration.noise_multiplier("confusion"))


@pytest.mark.parametrize(("target", "patients"), [(3.0, 500), (0.5, 2000)])
def test_a_subsampled_run_costs_its_epsilon_and_no_more(target: float, patients: int) -> None:
    delta = 1 / (10 * patients + 1)
    run = schedule(40, 2, 2)
    calibration = calibrate(run, Privacy(epsilon=target, patients_per_step=32), declared_patients=patients, delta=delta)
    assert calibration.sampling_rate == 32 / patients
    prices = [run_epsilon(calibration, run, number, delta) for number in (0, 10, 25, len(run) - 1)]
    assert all(before <= after + 1e-3 for before, after in itertools.pairwise(prices))
    assert 0.99 * target <= run_epsilon(calibration, run, len(run) - 1, delta) <= target


def test_more_patients_a_step_than_declared_means_everyone() -> None:
    calibration = calibrate(schedule(5), Privacy(patients_per_step=50), declared_patients=40, delta=1e-3)
    assert calibration.sampling_rate == 1.0


def test_shares_that_leave_nothing_are_named() -> None:
    with pytest.raises(ConfigError, match="statistics_share"):
        calibrate(
            schedule(5, 1, 3),
            Privacy(statistics_share=0.9, evaluation_share=0.9),
            declared_patients=100,
            delta=1e-3,
        )


def test_the_method_is_named_and_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Answers(1.43, 0.064, 250)]
    assert epsilon_and_method([Answers(2.0, 1.0, 3)], 1e-3)[1] == "gaussian"
    tight, method = epsilon_and_method(rows, 2e-4)
    assert method == "prv"
    assert tight == pytest.approx(2.985, abs=0.02)
    accountant._price.cache_clear()
    monkeypatch.setattr(accountant, "LARGEST_PRV_GRID", 10)
    loose, method = epsilon_and_method(rows, 2e-4)
    accountant._price.cache_clear()
    assert method == "rdp"
    assert loose == pytest.approx(3.371, abs=0.01)


def test_prv_failing_is_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from opacus.accountants import PRVAccountant

    def broken(*_: object, **__: object) -> float:
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", broken)
    assert epsilon_and_method([Answers(1.5, 0.03, 17)], 1e-5)[1] == "rdp"


@given(
    rows=st.lists(st.builds(Answers, st.floats(0.3, 50), st.just(1.0), st.integers(1, 50)), min_size=1, max_size=6),
    delta=st.floats(1e-9, 1e-2),
)
def test_composition_is_what_one_gaussian_of_all_costs(rows: list[Answers], delta: float) -> None:
    mu = math.sqrt(sum(row.count / row.noise_multiplier**2 for row in rows))
    together = epsilon(rows, delta)
    assert together == pytest.approx(epsilon([Answers(1 / mu, 1.0, 1)], delta), rel=1e-9)
    assert accountant.gaussian_delta(mu, together) <= delta * (1 + 1e-9)
    assert together >= epsilon(rows[:-1], delta)
    assert together == epsilon(list(reversed(rows)), delta)
    assert together == epsilon([Answers(r.noise_multiplier, 1.0, 1) for r in rows for _ in range(r.count)], delta)


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0


@pytest.mark.parametrize("row", [(0.0, 1.0, 1), (math.inf, 1.0, 1), (1.0, 0.0, 1), (1.0, 1.1, 1), (1.0, 1.0, -1)])
def test_impossible_rows_are_refused(row: tuple[float, float, int]) -> None:
    with pytest.raises(ValueError, match=r"noise multiplier|answers at"):
        Answers(*row)
