"""The weighted mean of each number without its extremes: Yin et al., "Byzantine-robust distributed learning", 2018,
definition 2.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.rules import Robust
from wardround.rules._matrix import by_coordinate


class TrimmedMean(Robust):
    """At either end as much weight is left out as the `liars` heaviest hospitals have, less than half of all."""

    name: str = "trimmed-mean"

    def robust(self, deltas: Tensor, weights: Tensor, liars: int) -> Tensor:
        """With equal weights, `liars` values are left out at either end."""
        trimmed = weights.double().sort(descending=True).values[:liars].sum()

        def of(values: Tensor, weight: Tensor, upto: Tensor) -> Tensor:
            kept = (torch.minimum(upto, upto[-1] - trimmed) - (upto - weight).clamp_min(trimmed)).clamp_min(0)
            return (kept * values).sum(0) / kept.sum(0)

        return by_coordinate(of, deltas, weights)


rule = TrimmedMean
