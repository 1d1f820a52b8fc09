"""Lower bounds on epsilon: published values, confidence by simulation, and how close they come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from wardround.accountant import gaussian_epsilon
from wardround_client.audit.bounds import (
    Evidence,
    any_epsilon,
    clopper_pearson,
    gaussian_mu,
    one_run_bound,
    one_run_epsilon,
    one_run_p_value,
    subsampled_mu,
    threshold_bound,
)

DELTA, MU, RATE = 1e-3, 1.5, 0.3
EPSILON = gaussian_epsilon(MU, DELTA)


def gaussian_evidence(random: np.random.Generator, n: int, mu: float, rate: float = 1.0) -> Evidence:
    """Ideal scores: a canary that is inside adds mu to a standard normal number, with a probability of rate."""
    inside = random.random(n) < 0.5
    scores = random.standard_normal(n) + mu * (inside & (random.random(n) < rate))
    return Evidence(scores[:, None], inside)


@pytest.mark.parametrize(
    ("canaries", "guesses", "right", "delta", "published"),
    [(1000, 100, 75, 1e-4, 0.67298), (100_000, 1510, 1439, 1e-5, 2.67585)],
)
def test_the_one_run_bound_is_the_published_one(
    canaries: int, guesses: int, right: int, delta: float, published: float
) -> None:
    """Steinke, Nasr and Jagielski 2023, appendix D and section 7, which print 0.673 and 2.675."""
    assert one_run_bound(canaries, guesses, right, delta=delta, error=0.05) == pytest.approx(published, abs=2e-4)


BOUNDS: dict[str, tuple[Callable[[Evidence, float], float], float, float]] = {
    # the bound, the truth that it must not pass, and the sampling rate of what it judges
    "gaussian": (lambda evidence, error: threshold_bound(evidence, gaussian_mu, error), MU, 1.0),
    "subsampled": (lambda evidence, error: threshold_bound(evidence, subsampled_mu(RATE), error), MU, RATE),
    "any": (lambda evidence, error: threshold_bound(evidence, any_epsilon(DELTA), error), EPSILON, 1.0),
    "one run": (lambda evidence, error: one_run_epsilon(evidence, DELTA, error), EPSILON, 1.0),
}


@pytest.mark.parametrize("name", BOUNDS)
@pytest.mark.parametrize("n", [60, 900])
def test_a_true_claim_is_refuted_in_at_most_5_percent_of_audits(name: str, n: int) -> None:
    bound, truth, rate = BOUNDS[name]
    random, audits = np.random.default_rng(n), 200
    refuted = sum(bound(gaussian_evidence(random, n, MU, rate), 0.05) > truth for _ in range(audits))
    assert refuted <= audits * 0.05  # the limits are conservative: far fewer are expected


def test_clopper_pearson_holds_what_it_says() -> None:
    for n, p in [(20, 0.03), (200, 0.4), (500, 0.01)]:
        seen = np.random.default_rng(n).binomial(n, p, 4000)
        assert (clopper_pearson(seen, n, 0.05) < p).mean() <= 0.05 + 3 * np.sqrt(0.05 / 4000)


def test_the_bounds_come_close_to_the_truth() -> None:
    random = np.random.default_rng(1)
    evidence = gaussian_evidence(random, 30_000, MU)
    assert threshold_bound(evidence, gaussian_mu, 0.05) > 0.95 * MU
    assert threshold_bound(evidence, any_epsilon(DELTA), 0.05) > 0.4 * EPSILON
    assert one_run_epsilon(evidence, DELTA, 0.05) > 0.15 * EPSILON
    sampled = gaussian_evidence(random, 100_000, MU, RATE)
    assert threshold_bound(sampled, subsampled_mu(RATE), 0.05) > 0.85 * MU


def test_scores_without_noise_give_bounds_that_grow_with_the_trials() -> None:
    previous = 0.0
    for n in (100, 1000, 10_000):
        inside = np.arange(n) % 2 == 0
        evidence = Evidence(inside[:, None].astype(float), inside)
        bounds = [
            threshold_bound(evidence, gaussian_mu, 0.05),
            threshold_bound(evidence, any_epsilon(0.0), 0.05),
            one_run_epsilon(evidence, 0.0, 0.05),
        ]
        assert min(bounds) > previous
        previous = min(bounds)


@given(st.floats(0.001, 0.999), st.floats(0.05, 6.0), st.floats(0.01, 1.0))
def test_errors_of_an_exact_gaussian_give_exactly_its_mu(fpr: float, mu: float, rate: float) -> None:
    missed = norm.cdf(norm.isf(fpr) - mu)
    exact = np.array([(1 - rate) * (1 - fpr) + rate * missed])
    assert gaussian_mu(np.array([fpr]), np.array([missed]))[0] == pytest.approx(mu, rel=1e-6)
    # a miss among the sampled that is rarer than 1e-9 counts as 1e-9
    found = subsampled_mu(rate)(np.array([fpr]), exact)[0]
    assert found <= mu * (1 + 1e-4)
    if missed > 1e-7:
        assert found == pytest.approx(mu, rel=1e-3)


@given(st.integers(1, 400), st.data(), st.floats(0, 5), st.floats(0, 0.01))
def test_more_right_guesses_are_less_likely_and_a_greater_epsilon_permits_more(
    guesses: int, data: st.DataObject, eps: float, delta: float
) -> None:
    right = data.draw(st.integers(0, guesses - 1))
    rounding = 1e-9

    def p_value(right: int, eps: float, delta: float) -> float:
        return one_run_p_value(1000, guesses, right, eps, delta)

    here = p_value(right, eps, 0.0)
    assert 0 <= here <= p_value(right, eps, delta) <= 1
    assert p_value(right + 1, eps, 0.0) <= here + rounding
    assert p_value(right, eps + 1, 0.0) >= here - rounding
