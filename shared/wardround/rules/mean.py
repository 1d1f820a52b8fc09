"""The weighted mean: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
2017.
"""

from __future__ import annotations

from torch import Tensor

from wardround.rules import Rule
from wardround.rules._matrix import weighted_mean


class Mean(Rule):
    """Weights are taken as they are: one hospital moves it as far as its weight and its length reach."""

    name: str = "mean"

    def __call__(self, deltas: Tensor, weights: Tensor) -> Tensor:
        """sum_i w_i delta_i / sum_i w_i (algorithm 1)."""
        return weighted_mean(deltas, weights)


rule = Mean
