"""The columns of a table: in public units or as ranks, gaps with a flag beside, and random projections of many."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt

import torch
from torch import Tensor

from wardround.models.portable import uniform
from wardround.task import Example


@dataclass(frozen=True, eq=False)
class Columns:
    """Each column in units of its public guess, or as its rank among the patient's own; what is missing is the guess.

    count: of the columns. centre, spread: the guesses; empty for 0 and 1. gaps: indices of those beside which a number
    says whether they are missing. ranks: normal scores of the ranks of a patient's columns among each other, which no
    unit and no platform of a laboratory changes. bound: of a value.
    """

    count: int
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()
    gaps: tuple[int, ...] = ()
    ranks: bool = False
    bound: float = inf

    @classmethod
    def of(cls, table: Example, bound: float = inf) -> Columns:
        """As agreed."""
        return cls(len(table.features), table.centre, table.spread, table.gaps, table.ranks, bound)

    @property
    def features(self) -> int:
        """Columns, then a flag for each that may be missing."""
        return self.count + len(self.gaps)

    @property
    def spec(self) -> tuple[object, ...]:
        """What is frozen beside the guesses; empty where nothing is, as it always was in 0.1."""
        return (self.gaps, self.ranks) if self.gaps or self.ranks else ()

    @property
    def fingerprint(self) -> str:
        """Of the guesses, which are written out as they always were, and the rest."""
        centre, spread = self.centre or (0.0,) * self.count, self.spread or (1.0,) * self.count
        return _hash("columns", centre, spread, self.bound, *self.spec)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, count], NaN where it is missing -> float32 [n, features], about mean 0 and variance 1."""
        missing = x.isnan()
        z = torch.where(missing, 0.0, normal_scores(x) if self.ranks else self._in_units(x))
        if self.bound < inf:
            z = z.clamp(-self.bound, self.bound)
        return torch.cat([z, missing[:, self._flagged].to(z.dtype)], 1) if self.gaps else z

    def _in_units(self, x: Tensor) -> Tensor:
        centre, spread = self._guesses
        if self.centre:
            x = x - centre.to(x)
        return x / spread.to(x) if self.spread else x

    @cached_property
    def _guesses(self) -> tuple[Tensor, Tensor]:
        return torch.tensor(self.centre), torch.tensor(self.spread)

    @cached_property
    def _flagged(self) -> Tensor:
        return torch.tensor(self.gaps)


@dataclass(frozen=True, eq=False)
class Projected:
    """Columns on random directions, the same for everybody: signs that follow from nothing but the number of columns
    and of directions (Achlioptas, "Database-friendly random projections", 2003). Implements `head.Encoder`.
    """

    columns: Columns
    features: int

    @property
    def fingerprint(self) -> str:
        """Of the columns and the stream of the signs."""
        return _hash("projected", self._stream, self.features, BOUND, self.columns.fingerprint)

    @property
    def _stream(self) -> str:
        return f"wardround/projection/{self.columns.features}/{self.features}"

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, count] -> float32 [n, features], bounded by BOUND."""
        return (self.columns(x) @ self._directions.to(x)).clamp(-BOUND, BOUND)

    @cached_property
    def _directions(self) -> Tensor:
        signs = torch.where(uniform(self._stream, (self.columns.features, self.features)) < 0.5, -1.0, 1.0)
        return (signs / sqrt(self.columns.features)).float()


BOUND = 6.0
"""Of a projected number, so that one odd patient can neither fill a clipped sum nor leave the range a head has seen."""


def normal_scores(x: Tensor) -> Tensor:
    """Of each row float32 [n, count] the standard normal quantiles of its ranks (Blom's are nearly these), a tie having
    the mean rank; NaN where it is NaN.
    """
    known = (~x.isnan()).sum(1, keepdim=True).clamp_min(1)
    ordered = torch.where(x.isnan(), inf, x).sort(1).values.contiguous()
    places = [torch.searchsorted(ordered, x.contiguous(), right=right) for right in (False, True)]
    share = (places[0] + places[1]).double() / (2 * known)
    return torch.where(x.isnan(), torch.nan, torch.special.ndtri(share.clamp(1e-9, 1 - 1e-9)).float())


def _hash(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
