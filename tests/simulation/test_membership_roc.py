"""An attack's success is counted, never interpolated, and its limits are the ones that theory knows."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from wardround.accountant import Answers, epsilon, gaussian_delta
from wardround_simulation.membership.roc import Share, area, ceiling_of, curve, gaussian_tpr, tpr_at

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(lambda values: np.array(values, dtype=np.float64))


def quantiles(n: int) -> npt.NDArray[np.float64]:
    """Scores as a standard normal would spread them if there were no chance."""
    return np.asarray(norm.ppf((np.arange(n) + 0.5) / n), dtype=np.float64)


@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0, 4.0])
@pytest.mark.parametrize("fpr", [0.001, 0.01])
def test_scores_of_two_gaussians_give_the_exact_tpr_within_the_interval(mu: float, fpr: float) -> None:
    point = tpr_at(quantiles(3000) + mu, quantiles(1_000_000), fpr)
    assert point.tpr.low <= norm.sf(norm.isf(fpr) - mu) <= point.tpr.high
    assert point.tpr.high - point.tpr.low < 0.04
    assert point.fpr == pytest.approx(fpr, rel=1e-3)


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, truth = np.random.default_rng(1), norm.sf(norm.isf(0.01) - 1)
    others = quantiles(50_000)
    points = [tpr_at(rng.normal(1, 1, 200), others, 0.01) for _ in range(400)]
    covered = np.mean([point.tpr.low <= truth <= point.tpr.high for point in points])
    assert 0.93 <= covered < 0.995


def test_a_share_has_the_interval_of_clopper_and_pearson() -> None:
    none, everyone = Share.of(0, 50), Share.of(50, 50)
    assert [none.low, none.high] == pytest.approx([0.0, 1 - 0.025 ** (1 / 50)])
    assert [everyone.low, everyone.high] == pytest.approx([0.025 ** (1 / 50), 1.0])
    some = Share.of(7, 50)
    # Its ends are where 7 or more, and 7 or fewer, are just as rare as was asked.
    assert sum(math.comb(50, k) * some.low**k * (1 - some.low) ** (50 - k) for k in range(7, 51)) == pytest.approx(
        0.025
    )
    assert sum(math.comb(50, k) * some.high**k * (1 - some.high) ** (50 - k) for k in range(8)) == pytest.approx(0.025)
    with pytest.raises(ValueError):
        Share.of(2, 1)


@given(scores, scores, st.floats(0, 0.99))
def test_no_more_are_accused_wrongly_than_was_asked_whatever_the_ties(
    members: np.ndarray, others: np.ndarray, fpr: float
) -> None:
    point = tpr_at(members, others, fpr)
    assert point.fpr <= max(fpr, 1 / (len(others) + 1)) * (1 + 1e-9)
    assert point.false_positives / len(others) <= fpr * (1 + 1e-9)
    # And no threshold that keeps to it finds more.
    for threshold in np.unique(others):
        if ((others > threshold).sum() + 1) / (len(others) + 1) <= fpr:
            assert (members > threshold).sum() <= point.tpr.hits


@pytest.mark.parametrize(("n", "fpr"), [(19, 0.05), (39, 0.05), (200, 0.01)])
def test_one_more_stranger_is_accused_as_often_as_was_asked_and_no_more(n: int, fpr: float) -> None:
    rng, repeats = np.random.default_rng(5), 5_000
    accused = 0
    for drawn in rng.exponential(size=(repeats, n + 1)):
        accused += tpr_at(drawn[-1:], drawn[:-1], fpr).tpr.hits
    expected = math.floor(fpr * (n + 1)) / (n + 1)
    assert accused / repeats == pytest.approx(expected, abs=4 * math.sqrt(expected / repeats))


def test_the_limits_of_the_fpr_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(6)
    covered = 0
    for drawn in rng.uniform(size=(1000, 300)):  # the FPR of a threshold t is 1 - t
        low, high = tpr_at(np.zeros(1), drawn, 0.02).fpr_limits()
        covered += low <= 1 - np.sort(drawn)[-6] <= high
    assert covered / 1000 == pytest.approx(0.95, abs=0.03)


def test_tiny_sets_say_that_they_cannot_resolve_the_fpr() -> None:
    point = tpr_at(np.array([1.0]), np.array([0.0]), 0.001)
    assert (point.tpr.rate, point.false_positives, point.fpr, point.resolved) == (1.0, 0, 0.5, False)
    assert point.fpr_limits() == pytest.approx((0.025, 0.975))
    assert tpr_at(np.array([1.0]), np.zeros(999), 0.001).resolved
    assert not tpr_at(np.array([1.0]), np.zeros(998), 0.001).resolved


def test_all_scores_alike_find_nobody() -> None:
    same = np.zeros(2000)
    assert tpr_at(same, same, 0.01).tpr.hits == 0
    assert area(same, same)[0] == 0.5
    assert curve(same, same) == [(1 / 2001, 0.0), (1.0, 1.0)]


@given(scores, scores)
def test_the_area_is_the_share_of_pairs_in_the_right_order(members: np.ndarray, others: np.ndarray) -> None:
    pairs = np.sign(members[:, None] - others[None, :])
    auc, error = area(members, others)
    assert auc == pytest.approx((pairs.mean() + 1) / 2)
    assert error >= 0


def test_the_area_between_two_gaussians_is_exact_within_its_error() -> None:
    rng = np.random.default_rng(3)
    auc, error = area(rng.normal(1, 1, 5000), rng.normal(0, 1, 5000))
    assert abs(auc - norm.cdf(1 / math.sqrt(2))) < 3 * error
    assert 0.003 < error < 0.006


@given(scores, scores)
def test_the_curve_holds_what_the_table_says_and_nothing_below_one_person(
    members: np.ndarray, others: np.ndarray
) -> None:
    points = curve(members, others, points=200)
    assert points[-1] == (1.0, 1.0)
    assert points == sorted(points)
    for fpr, tpr in points[:-1]:
        assert fpr >= 1 / (len(others) + 1)
        assert tpr == tpr_at(members, others, fpr).tpr.rate


@pytest.mark.parametrize("bad", [np.array([]), np.array([math.nan])])
def test_scores_that_are_none_or_nan_are_refused(bad: np.ndarray) -> None:
    for ask in (lambda a, b: tpr_at(a, b, 0.1), area, curve):
        with pytest.raises(ValueError):
            ask(bad, np.zeros(3))


@pytest.mark.parametrize("mu", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("fpr", [0.001, 0.05, 0.7])
def test_the_gaussian_ceiling_is_the_envelope_of_every_epsilon_that_the_accountant_claims(
    mu: float, fpr: float
) -> None:
    """Dong, Roth and Su 2022, proposition 2.12: a trade-off curve and its (epsilon, delta) pairs are dual."""
    lines = [
        min(math.exp(eps) * fpr + gaussian_delta(mu, eps), 1 - math.exp(-eps) * (1 - gaussian_delta(mu, eps) - fpr))
        for eps in np.linspace(0, 12, 6001)
    ]
    assert gaussian_tpr(mu, fpr) == pytest.approx(min(lines), rel=1e-3)
    assert gaussian_tpr(mu, 0.0) == 0.0
    assert gaussian_tpr(mu, 1.0) == 1.0


def test_the_ceiling_is_that_of_the_hospital_with_the_least_noise() -> None:
    loud, quiet = [Answers(4.0, 1.0, 16)], [Answers(2.0, 1.0, 3), Answers(1.0, 1.0, 1)]
    ceiling, mu = ceiling_of([loud, quiet])
    assert mu == pytest.approx(math.sqrt(3 / 4 + 1))
    assert mu is not None and ceiling(0.01) == gaussian_tpr(mu, 0.01)


def test_sampling_patients_lowers_the_ceiling_and_mu_is_not_claimed() -> None:
    rows = [Answers(1.5, 0.2, 30)]
    ceiling, mu = ceiling_of([rows, rows])
    assert mu is None
    everyone, _ = ceiling_of([[Answers(1.5, 1.0, 30)]])
    for fpr in (0.001, 0.01, 0.1, 0.5):
        assert fpr < ceiling(fpr) < everyone(fpr)
        assert ceiling(fpr) <= math.exp(epsilon(rows, 1e-3)) * fpr + 1e-3 + 1e-12
