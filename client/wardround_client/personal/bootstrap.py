"""95 % intervals by the bootstrap over patients, within strata, so that no class vanishes from a resample.

Efron and Tibshirani, "An introduction to the bootstrap", 1993: the percentile interval (section 13.3), strata resampled
each by itself (section 8.3). Images of one patient are alike, so a patient is drawn with all of them or not at all. A
resample is kept as weights, how often each patient was drawn: whoever can weigh patients can be resampled.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_TAIL = 0.025
_AT_ONCE = 64  # resamples: half a KiB of weights a patient; more are no faster

Statistics = Callable[[Tensor], Tensor]  # float64 [patients, resamples] weights -> float64 [resamples, statistics]


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval over patients like these, in the numbers that these classes have here.

    A class of one patient adds nothing to the width, one of few adds too little: with fewer than about ten patients a
    class the interval is too narrow.
    """

    value: float
    low: float
    high: float


def estimates(statistics: Statistics, stratum: Tensor, *, resamples: int, seed: int) -> list[Estimate | None]:
    """The statistics of the patients as they are, and the percentiles of the same over resamples.

    Args:
        statistics: of weighted patients; NaN where a resample has none.
        stratum: int64 [patients], 0 or more, on the CPU. Every resample has as many patients of a stratum as there are.
        resamples: at least 1.
        seed: of the draws.

    Returns:
        One each, the interval widened to hold its value; None where the patients as they are do not have the statistic.
    """
    generator = torch.Generator().manual_seed(seed)
    sizes = (min(_AT_ONCE, resamples - start) for start in range(0, resamples, _AT_ONCE))
    # The patients as they are count as one more resample, so that a statistic with a value has an interval too.
    as_they_are = statistics(torch.ones(len(stratum), 1, dtype=torch.float64))
    values = torch.cat([as_they_are, *(statistics(_drawn(stratum, size, generator)) for size in sizes)])
    quantiles = values.nanquantile(torch.tensor([_TAIL, 1 - _TAIL], dtype=torch.float64), dim=0)
    return [
        None if value != value else Estimate(value, min(low, value), max(high, value))
        for value, low, high in zip(values[0].tolist(), *quantiles.tolist(), strict=True)
    ]


def _drawn(stratum: Tensor, resamples: int, generator: torch.Generator) -> Tensor:
    """float64 [patients, resamples]: how often each patient is drawn, with replacement, in the place of its stratum."""
    counts = torch.zeros(len(stratum), resamples, dtype=torch.float64)
    column = torch.arange(resamples)
    for each in torch.unique(stratum):
        members = torch.nonzero(stratum == each).flatten()
        size = len(members)
        drawn = torch.randint(size, (size, resamples), generator=generator) * resamples + column
        counts[members] = drawn.flatten().bincount(minlength=size * resamples).view(size, resamples).double()
    return counts
