"""Findings in a map of cells, and which of those that are there they hit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from wardround.planes import UNKNOWN, classes_in
from wardround_client.personal.maps import lead, weighted

Array = npt.NDArray[Any]
_NEIGHBOURS = np.ones((3, 3))


@dataclass(frozen=True)
class Candidate:
    """A place that may be a finding. label: its class. x, y: in cells, from the upper left corner of the first.

    probability: of the class there. lead: by how much its logarithm is ahead of the best other class': it is called a
    finding where that is above 0.
    """

    label: int
    x: float
    y: float
    probability: float
    lead: float

    @property
    def called(self) -> bool:
        """Whether it is called a finding."""
        return self.lead > 0


@dataclass(frozen=True)
class There:
    """A finding that is there. place: bool [S, S], where it is drawn. x, y, radius: of its middle, and of a disc that
    covers as much, in pixels.
    """

    label: int
    place: Array
    x: float
    y: float
    radius: float


def candidates(cells: Array, weights: Array) -> list[Candidate]:
    """The places where the probability of a class but the first is greatest among the cells around, of a map [classes,
    side, side]. Where several neighbours have the same, it is their middle.
    """
    found, maps = [], weighted(cells, weights)
    for label in range(1, len(maps)):
        highest = maps[label] == ndimage.maximum_filter(maps[label], size=3, mode="nearest")
        parts, count = ndimage.label(highest, _NEIGHBOURS)
        ahead = lead(cells, label, weights) + np.log(weights[label])
        for number, (y, x) in enumerate(ndimage.center_of_mass(highest, parts, range(1, count + 1)), start=1):
            places = np.argwhere(parts == number)
            at = tuple(places[np.abs(places - (y, x)).sum(1).argmin()])
            found.append(Candidate(label, x + 0.5, y + 0.5, float(maps[label][at]), float(ahead[at])))
    return found


def findings_of(plane: Array, classes: int) -> list[There]:
    """Those that a plane [S, S] shows, each with the number it has (`wardround.planes`)."""
    labels, found = classes_in(plane, classes), []
    for code in np.unique(plane[labels > 0]):
        place = plane == code
        y, x = (float(each.mean()) + 0.5 for each in np.nonzero(place))
        found.append(There(int(code) >> 8, place, x, y, float(np.sqrt(place.sum() / np.pi))))
    return found


def hits(candidate: Candidate, there: list[There], cell_px: float) -> int:
    """Which finding of its class a candidate hits: the nearest in whose drawn area it lies, or from whose middle it is
    no farther than its radius, at least half of a cell's diagonal; -1 for none.
    """
    x, y = candidate.x * cell_px, candidate.y * cell_px
    best, nearest = -1, np.inf
    for number, finding in enumerate(there):
        if finding.label != candidate.label:
            continue
        distance = float(np.hypot(x - finding.x, y - finding.y))
        inside = bool(finding.place[int(y), int(x)])
        if (inside or distance <= max(finding.radius, cell_px / np.sqrt(2))) and distance < nearest:
            best, nearest = number, distance
    return best


def unknown(candidate: Candidate, plane: Array, cell_px: float) -> bool:
    """Whether nobody looked at that place."""
    return bool(plane[int(candidate.y * cell_px), int(candidate.x * cell_px)] == UNKNOWN)
