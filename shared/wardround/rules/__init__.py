"""How the hospitals' deltas become one, a rule a file: a function over the matrix [hospitals, parameters].

What a rule is given has passed the round's checks: it is finite, of the right shape, and no longer than an honest reply
can be. A rule keeps nothing between rounds, and gives the same result for any order of the hospitals up to the last
bits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from wardround.plugins import Kind
from wardround.settings import Part

if TYPE_CHECKING:
    from torch import Tensor

LEAST_HOSPITALS = 3
"""Of two hospitals that disagree, nobody can tell which one lies."""


class Rule(Part):
    """A rule with its settings."""

    def __call__(self, deltas: Tensor, weights: Tensor) -> Tensor:
        """Deltas float32 [hospitals, P], weights float32 [hospitals], positive -> float32 [P]."""
        raise NotImplementedError

    def tolerated(self, hospitals: int) -> int:
        """How many liars among so many hospitals it bears; always fewer than half."""
        return 0


class Robust(Rule):
    """A rule that bears hospitals that lie, from LEAST_HOSPITALS that answer on; of fewer it is the weighted mean.

    liars: the share of hospitals that may lie, of three or more at least one. Weights are CAPPED: so many of them,
    whichever, weigh less than half together.
    """

    liars: Annotated[float, Field(gt=0, lt=0.5)] = 0.25

    def robust(self, deltas: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Deltas float32 [hospitals, P] of three or more, capped weights float64 [hospitals] -> float32 [P]."""
        raise NotImplementedError

    def tolerated(self, hospitals: int) -> int:
        """The share, rounded down, and at least one."""
        return 0 if hospitals < LEAST_HOSPITALS else max(1, int(self.liars * hospitals))

    def __call__(self, deltas: Tensor, weights: Tensor) -> Tensor:
        """As the file says, where it can bear anybody."""
        from wardround.rules._matrix import capped, weighted_mean  # torch takes seconds to import

        liars = self.tolerated(len(deltas))
        return self.robust(deltas, capped(weights, liars), liars) if liars else weighted_mean(deltas, weights)


RULES: Kind[type[Rule]] = Kind("aggregation rule", "wardround.rules", "rule", "wardround.rules")
