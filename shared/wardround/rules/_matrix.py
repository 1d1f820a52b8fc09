"""What rules share: weights that no few hospitals dominate, means, and functions of sorted columns, in float64."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 1 << 16  # parameters at a time: float64 copies of all replies would be large


def capped(weights: Tensor, liars: int) -> Tensor:
    """Weights float64 [hospitals], cut at the greatest cap with which no `liars` hospitals weigh too much.

    Too much is more than halfway between their share by number and a half. So a hospital that declares a billion
    patients weighs about as much as the largest others.
    """
    weights = weights.double()
    allowed = (liars / len(weights) + 0.5) / 2

    def too_much(cap: float) -> bool:
        cut = weights.clamp_max(cap).sort(descending=True).values
        return bool(cut[:liars].sum() > allowed * cut.sum())

    low, high = 0.0, float(weights.max())
    if not too_much(high):
        return weights
    for _ in range(100):  # the share of the heaviest grows with the cap
        middle = (low + high) / 2
        low, high = (low, middle) if too_much(middle) else (middle, high)
    return weights.clamp_max(low)


def weighted_mean(deltas: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i delta_i / sum_i w_i (McMahan et al. 2017, algorithm 1).

    Weights are taken as they are: one hospital moves it as far as its weight and its length reach.
    """
    return combined(deltas, weights.double() / weights.double().sum())


def median(deltas: Tensor, weights: Tensor) -> Tensor:
    """The weighted median of each number (Yin et al., "Byzantine-robust distributed learning", 2018, definition 1).

    Half of the weight lies on either side; where a half ends between two values it is the middle of these. Liars of
    less than half of the weight cannot move it past all honest values.
    """

    def of(values: Tensor, weight: Tensor, upto: Tensor) -> Tensor:
        half, hair = upto[-1] / 2, 1e-12 * upto[-1]
        low = (upto < half - hair).sum(0, keepdim=True)
        high = (upto <= half + hair).sum(0, keepdim=True).clamp_max(len(values) - 1)
        return (values.gather(0, low) + values.gather(0, high)).squeeze(0) / 2

    return by_coordinate(of, deltas, weights)


def combined(deltas: Tensor, factors: Tensor) -> Tensor:
    """sum_i factors_i delta_i, float32 [P]; factors float64 [hospitals]."""
    return torch.cat([(factors @ block.double()).float() for block in torch.split(deltas, BLOCK, dim=1)])


def by_coordinate(of: Callable[[Tensor, Tensor, Tensor], Tensor], deltas: Tensor, weights: Tensor) -> Tensor:
    """A function of sorted values, their weights and the weight up to and with each, float64 [hospitals, n] each."""
    found = []
    for block in torch.split(deltas, BLOCK, dim=1):
        values, order = block.double().sort(dim=0)
        weight = weights.double()[order]
        found.append(of(values, weight, weight.cumsum(0)).float())
    return torch.cat(found)
