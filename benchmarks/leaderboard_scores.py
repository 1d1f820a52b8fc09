"""What the leaderboard's cells say together: by how much a row is ahead of another, on a data set and over all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from rows import NONE
from tables import Estimate, estimate

SHOTS = (1, 5, 20)
LOCAL, BASELINE, FLOOR, CENTRAL = (
    "local only",
    "FedAvg + fine-tune",
    "raw pixels, nearest mean",
    "centralised, FedAvg's head",
)
BESIDE = (LOCAL, FLOOR, CENTRAL, "centralised, discriminant")
"""Rows that a federation cannot choose: they win nothing."""
_ANY_COLUMN = (LOCAL, FLOOR)
Place = tuple[str, int]
"""A column, by its epsilon, and shots."""


@dataclass(frozen=True)
class Board:
    """All cells that are known. cells: as `leaderboard.Cell` keeps them, by data set, column, row and seed."""

    cells: Mapping[str, Any]
    sets: Sequence[str]
    rows: Sequence[str]
    columns: Sequence[str]

    @cached_property
    def _values(self) -> dict[tuple[str, str, str, int], dict[int, float]]:
        """By data set, column, row and shots: by seed, the mean over targets."""
        found: dict[tuple[str, str, str, int], dict[int, float]] = {}
        for key, cell in self.cells.items():
            dataset, column, row, seed = key.split("/")
            for place, shots in enumerate(SHOTS if cell.get("scores") else ()):
                mean = fmean(scores[place] for scores in cell["scores"].values())
                found.setdefault((dataset, column, row, shots), {})[int(seed)] = mean
        return found

    @property
    def places(self) -> list[Place]:
        """All columns and shots, in order."""
        return [(column, shots) for column in self.columns for shots in SHOTS]

    @property
    def federated(self) -> list[str]:
        """Rows that a federation can choose."""
        return [row for row in self.rows if row not in BESIDE]

    def values(self, dataset: str, row: str, place: Place) -> dict[int, float]:
        """By seed; of rows that cost nobody anything, those without privacy stand for all epsilons."""
        column, shots = place
        return self._values.get((dataset, NONE if row in _ANY_COLUMN else column, row, shots), {})

    def score(self, dataset: str, row: str, place: Place) -> Estimate | None:
        """Over seeds; None with fewer than two."""
        values = list(self.values(dataset, row, place).values())
        return estimate(values) if len(values) > 1 else None

    def ahead(self, dataset: str, row: str, of: str, place: Place) -> Estimate | None:
        """How far a row is ahead of another, seed by seed; None with fewer than two in both."""
        ours, theirs = self.values(dataset, row, place), self.values(dataset, of, place)
        seeds = sorted(set(ours) & set(theirs))
        return estimate([ours[seed] - theirs[seed] for seed in seeds]) if len(seeds) > 1 else None

    def mean_ahead(self, row: str, of: str, place: Place, *, but: str = "") -> Estimate | None:
        """Over data sets, with an interval over these; `but` one is left out."""
        found = [self.ahead(dataset, row, of, place) for dataset in self.sets if dataset != but]
        means = [each.mean for each in found if each is not None]
        return estimate(means) if len(means) > 1 else None

    def elsewhere(self, dataset: str, place: Place) -> str | None:
        """The row that is furthest ahead of local training on average over the other data sets: what one who has read
        this page would choose. None while there are fewer than three. A row that could not run on half of them is none.
        """
        others = [each for each in self.sets if each != dataset and self.score(each, BASELINE, place)]
        best: dict[str, float] = {}
        for row in self.federated:
            ran = [each for each in others if self.ahead(each, row, LOCAL, place)]
            if self.score(dataset, row, place) and len(ran) > len(others) / 2:
                mean = self.mean_ahead(row, LOCAL, place, but=dataset)
                if mean is not None:
                    best[row] = mean.mean
        return max(best, key=lambda row: best[row]) if best else None

    def worth(self, dataset: str, place: Place) -> Estimate | None:
        """How far the row that is best elsewhere is ahead of local training here."""
        row = self.elsewhere(dataset, place)
        return None if row is None else self.ahead(dataset, row, LOCAL, place)

    def best(self, dataset: str, place: Place) -> list[str]:
        """Rows by their score here, the best first, of those that a federation can choose."""
        scores = {row: self.score(dataset, row, place) for row in self.federated}
        known = {row: found.mean for row, found in scores.items() if found is not None}
        return sorted(known, key=lambda row: -known[row])


def verdict(found: Estimate) -> str:
    """Ahead, level or behind, at the 95 % level."""
    if abs(found.mean) <= found.half_width or not found.mean:
        return "level"
    return "ahead" if found.mean > 0 else "behind"
