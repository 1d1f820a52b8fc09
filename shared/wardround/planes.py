"""Where a finding is in an image: one plane of numbers beside the image's channels.

A pixel's number is uint16: 256 times its class, plus the number of the finding that it belongs to, from 1, of findings
that are counted one by one (points, boxes); 0 of what is not counted. UNKNOWN: nobody looked at that pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

UNKNOWN = 0xFFFF
MOST_FINDINGS = 255
"""Of one class in one image that are told apart."""
MOST_CLASSES = 255

Plane = npt.NDArray[Any]


def plane_of(classes: Plane, findings: Plane | int = 0) -> Plane:
    """Classes [...] from 0 and the findings' numbers -> uint16 [...]."""
    return np.asarray(np.asarray(classes, np.uint16) << 8 | np.asarray(findings, np.uint16), np.uint16)


def classes_in(plane: Plane, classes: int) -> Plane:
    """int64 of the plane's shape: the class of each pixel; -1 where it is unknown, or none of so many classes."""
    found = (plane >> 8).astype(np.int64)
    return np.where((plane == UNKNOWN) | (found >= classes), -1, found)


def shown_in(plane: Plane, classes: int) -> npt.NDArray[np.bool_]:
    """Which of so many classes a plane shows anywhere: bool [classes]."""
    found = np.bincount(classes_in(plane, classes).ravel() + 1, minlength=classes + 1)
    return np.asarray(found[1:] > 0)


def findings_in(plane: Plane) -> Plane:
    """int64 of the plane's shape: the number of each pixel's finding; 0 for none."""
    return np.where(plane == UNKNOWN, 0, plane & 0xFF).astype(np.int64)


def shares_of(plane: Plane, classes: int, cell_px: int) -> npt.NDArray[np.float32]:
    """Planes uint16 [n, S, S] -> float32 [n (S / cell_px)^2, classes]: of each cell, which part each class covers.

    What is unknown is no part, so that a cell may add up to less than 1.
    """
    n, side = len(plane), plane.shape[-1] // cell_px
    found = classes_in(plane, classes)
    covered = np.stack([found == each for each in range(classes)], -1)
    cells = covered.reshape(n, side, cell_px, side, cell_px, classes)
    return np.asarray(cells.mean((2, 4), dtype=np.float32).reshape(-1, classes))
