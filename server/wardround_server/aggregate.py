"""How the hospitals' deltas become one: a rule is ONE function over the matrix [hospitals, parameters].

Adding a rule is adding a function here. What a rule is given has passed the round's checks already: it is finite, of
the right shape, and no longer than an honest reply can be (bounds.py).

Every rule computes in float64, keeps nothing between rounds, and gives the same result for any order of the hospitals
up to the last bits. All but the mean get CAPPED weights: those of any `liars` hospitals add up to less than half.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from wardround.config import OuterOptimizer

LEAST_HOSPITALS = 3
"""Of two hospitals that disagree, nobody can tell which one lies."""
BLOCK = 1 << 16  # parameters at a time: float64 copies of all replies would be large
_STEPS = 3  # of centred clipping


class AggregationRule(Protocol):
    """deltas float32 [hospitals, P], weights float32 [hospitals], positive -> float32 [P]."""

    def __call__(self, deltas: Tensor, weights: Tensor) -> Tensor: ...


def rule_of(outer: OuterOptimizer) -> AggregationRule:
    """The rule that an agreement names. With fewer than LEAST_HOSPITALS replies each is the mean."""
    if outer.rule == "mean":
        return weighted_mean

    def rule(deltas: Tensor, weights: Tensor) -> Tensor:
        liars = tolerated(outer, len(deltas))
        if not liars:
            return weighted_mean(deltas, weights)
        robust: dict[str, AggregationRule] = {
            "trimmed-mean": partial(trimmed_mean, liars=liars),
            "median": median,
            "geometric-median": geometric_median,
            "centred-clipping": centred_clipping,
        }
        return robust[outer.rule](deltas, capped(weights, liars))

    return rule


def tolerated(outer: OuterOptimizer, hospitals: int) -> int:
    """How many liars among so many hospitals the agreement's rule bears; always fewer than half."""
    if outer.rule == "mean" or hospitals < LEAST_HOSPITALS:
        return 0
    return max(1, int(outer.liars * hospitals))


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
    return _combined(deltas, weights.double() / weights.double().sum())


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

    return _by_coordinate(of, deltas, weights)


def trimmed_mean(deltas: Tensor, weights: Tensor, *, liars: int) -> Tensor:
    """The weighted mean of each number without its extremes (Yin et al. 2018, definition 2).

    At either end as much weight is left out as the `liars` heaviest hospitals have, which must be less than half of
    all: with equal weights, `liars` values.
    """
    trimmed = weights.double().sort(descending=True).values[:liars].sum()

    def of(values: Tensor, weight: Tensor, upto: Tensor) -> Tensor:
        kept = (torch.minimum(upto, upto[-1] - trimmed) - (upto - weight).clamp_min(trimmed)).clamp_min(0)
        return (kept * values).sum(0) / kept.sum(0)

    return _by_coordinate(of, deltas, weights)


def geometric_median(deltas: Tensor, weights: Tensor) -> Tensor:
    """The point with the least weighted sum of distances to the deltas (Pillutla, Kakade and Harchaoui, "Robust
    Aggregation for Federated Learning", 2022), by Weiszfeld's steps on smoothed distances.

    It is a mean of the deltas with other weights, so that steps need their inner products alone. Liars of less than
    half of the weight move it by a bounded multiple of the honest deltas' spread.
    """
    weights, start = weights.double(), median(deltas, weights).double()
    gram = deltas.new_zeros(len(deltas), len(deltas), dtype=torch.float64)
    for block, centre in zip(torch.split(deltas, BLOCK, dim=1), torch.split(start, BLOCK), strict=True):
        apart = block.double() - centre
        gram += apart @ apart.T
    # From the median, not from the mean, which one reply may have moved beyond what float64 resolves.
    squares, smooth = gram.diagonal(), 1e-12 * gram.diagonal().median() + 1e-300
    share = torch.zeros_like(weights)
    for _ in range(1000):
        pulled = weights / (squares.clamp_min(0) + smooth).sqrt()
        before, share = share, pulled / pulled.sum()
        squares = gram.diagonal() - 2 * gram @ share + share @ gram @ share
        if bool((share - before).abs().amax() < 1e-12):
            break
    return _combined(deltas, share)


def centred_clipping(deltas: Tensor, weights: Tensor) -> Tensor:
    """Steps v <- v + sum_i w_i clip(delta_i - v, tau), of which liars move each by at most their weight x tau
    (Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", 2021, section 4).

    The paper starts at the last round's result, this at the median, so that there is no history to keep. tau is the
    weighted median of the deltas' distances from there: with privacy the length of the noise in a typical reply.
    """
    share = (weights.double() / weights.double().sum()).unsqueeze(1)
    centre = median(deltas, weights).double()
    radius = None
    for _ in range(_STEPS):
        distances = torch.stack([(delta.double() - centre).norm() for delta in deltas]).unsqueeze(1)
        radius = median(distances, weights).double() if radius is None else radius
        factors = torch.where(distances > radius, radius / distances, 1.0) * share
        centre = centre * (1 - factors.sum()) + _combined(deltas, factors.squeeze(1)).double()
    return centre.float()


def _combined(deltas: Tensor, factors: Tensor) -> Tensor:
    """sum_i factors_i delta_i, float32 [P]; factors float64 [hospitals]."""
    return torch.cat([(factors @ block.double()).float() for block in torch.split(deltas, BLOCK, dim=1)])


def _by_coordinate(of: Callable[[Tensor, Tensor, Tensor], Tensor], deltas: Tensor, weights: Tensor) -> Tensor:
    """A function of sorted values, their weights and the weight up to and with each, float64 [hospitals, n] each."""
    found = []
    for block in torch.split(deltas, BLOCK, dim=1):
        values, order = block.double().sort(dim=0)
        weight = weights.double()[order]
        found.append(of(values, weight, weight.cumsum(0)).float())
    return torch.cat(found)
