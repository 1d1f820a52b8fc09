"""The prices of the benchmarks' schedules. Random schedules against an oracle are in `test_accounting_schedules.py`."""

from __future__ import annotations

import math

import pytest
from tests.reference.oracle import price, rdp

from wardround.accountant import Answers, epsilon


def test_the_specification_s_example() -> None:
    """P24, P25: "Measured at q=.064, sigma=1.43, T=250, delta=2e-4: PLD 2.981, PRV 2.991, RDP 3.371"."""
    rows = [Answers(1.43, 0.064, 250)]
    assert price(rows, 2e-4, about=3).above == pytest.approx(2.981, abs=0.001)
    assert epsilon(rows, 2e-4) == pytest.approx(2.991, abs=0.001)
    assert rdp(rows, 2e-4) == pytest.approx(3.371, abs=0.01)


@pytest.mark.parametrize(
    ("declared", "sigmas"),
    [
        (200, (7.10, 2.91, 1.45)),
        (500, (3.20, 1.43, 0.84)),
        (2000, (1.17, 0.75, 0.54)),
        (10000, (0.74, 0.56, 0.41)),
    ],
)
def test_the_specification_s_table(declared: int, sigmas: tuple[float, ...]) -> None:
    """P26: 250 steps of 32 expected patients, delta 1 / (10 patients)."""
    for sigma, target in zip(sigmas, (1, 3, 8), strict=True):
        assert epsilon([Answers(sigma, 32 / declared, 250)], 1 / (10 * declared)) == pytest.approx(target, rel=0.03)


def test_the_gaussian_approximation_under_reports_and_is_not_ours() -> None:
    """P23: the true price is 2.981 where the central limit theorem's mu claims 2.787."""
    ours = epsilon([Answers(1.43, 0.064, 250)], 2e-4)
    mu = 0.064 * math.sqrt(250 * (math.exp(1 / 1.43**2) - 1))
    approximation = epsilon([Answers(1 / mu, 1.0, 1)], 2e-4)
    assert approximation < 2.85 < 2.97 < ours < 3.01
