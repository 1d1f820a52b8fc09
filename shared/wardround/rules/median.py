"""The weighted median of each number: Yin et al., "Byzantine-robust distributed learning", 2018, definition 1."""

from __future__ import annotations

from torch import Tensor

from wardround.rules import Robust
from wardround.rules._matrix import median


class Median(Robust):
    """Liars of less than half of the weight cannot move it past all honest values."""

    name: str = "median"

    def robust(self, deltas: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Half of the weight lies on either side; where a half ends between two values it is the middle of these."""
        return median(deltas, weights)


rule = Median
