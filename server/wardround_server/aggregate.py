"""How the hospitals' deltas become one: a rule is ONE function over the matrix [hospitals, parameters].

Adding a rule is adding a function here. What a rule is given has passed the round's checks already: it is finite, of
the right shape and of a plausible length.
"""

from __future__ import annotations

import math
from typing import Protocol

from torch import Tensor

from wardround.config import Federation
from wardround.schedule import RoundPlan

SLACK = 10.0


class AggregationRule(Protocol):
    """deltas float32 [hospitals, P], weights float32 [hospitals], positive -> float32 [P]."""

    def __call__(self, deltas: Tensor, weights: Tensor) -> Tensor: ...


def weighted_mean(deltas: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i delta_i / sum_i w_i (McMahan et al. 2017, algorithm 1), in float64, float32 [P].

    The result does not depend on the order of the hospitals beyond the last bit of float64.
    """
    share = (weights.double() / weights.double().sum()).unsqueeze(1)
    return (deltas.double() * share).sum(dim=0).float()


def greatest_norm(federation: Federation, plan: RoundPlan, *, size: int, declared_patients: int) -> float:
    """A length that no honest answer of `size` numbers reaches, from public numbers alone.

    A delta is `plan.times` local steps of lr C (patients + noise) / expected patients, or one step along a mean over
    episodes; other answers are a sum over all
    patients plus noise. Sampling never passes its expectation by 10 standard deviations, and a hospital has at most
    SLACK times the patients that it declares. The noise multiplier is the hospital's own choice; see `_greatest_noise`.
    """
    noise = _greatest_noise(federation, plan) * (math.sqrt(size) + 10.0)
    privacy, alpha = federation.privacy, federation.algorithm.local_learning_rate
    if not plan.trains:
        return SLACK * (SLACK * declared_patients + noise)
    if plan.question == "episode_gradient":  # a mean of clipped gradients, and noise of sensitivity 2 C
        return SLACK * alpha * privacy.clip_norm * (1.0 + 2.0 * noise / privacy.episodes(declared_patients))
    expected = privacy.expected_patients(declared_patients)
    patients = SLACK * (expected + 10.0 * math.sqrt(expected) + 10.0)
    step = alpha * privacy.clip_norm * (patients + noise) / expected
    return plan.times * step


def _greatest_noise(federation: Federation, plan: RoundPlan) -> float:
    """A noise multiplier that no honest hospital needs for its part of epsilon.

    T Gaussians of multiplier sigma without any subsampling are rho = T / (2 sigma^2) zCDP, and epsilon <= rho +
    2 sqrt(rho ln(1/delta)) (Bun and Steinke 2016, proposition 1.3); solved for sigma, at delta = 1e-12, at the least
    share of epsilon that any question may have, and SLACK times that for hospitals that make more noise than they must.
    """
    privacy = federation.privacy
    shares = (1.0 - privacy.statistics_share - privacy.evaluation_share, privacy.statistics_share)
    epsilon = privacy.epsilon * max(0.01, min(*shares, privacy.evaluation_share))
    log_delta = math.log(1e12)
    rho = (math.sqrt(log_delta + epsilon) - math.sqrt(log_delta)) ** 2
    return SLACK * math.sqrt(federation.rounds.rounds * plan.times / (2.0 * rho))
