"""Where a finding is: masks, points and boxes -> the plane behind an image's channels (`wardround.planes`).

A plane goes through the same resize as its image, so that a pixel of it lies where the image's does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wardround.planes import MOST_FINDINGS, UNKNOWN, plane_of
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.pixels import placed

MARKED = "marked"
"""The label of an image that has a plane; what it shows stands in the plane."""

POINT_SHARE = 1 / 16
"""A point is drawn as a disc of this part of the longer side of its image: it says where, and not how large."""

MOST_CODES = 512  # different numbers in one plane: each costs a resize


@dataclass(frozen=True)
class Place:
    """A finding: its class, and a box in pixels of its image, from the top left. A point has no width and height."""

    label: int
    x: float
    y: float
    width: float = 0.0
    height: float = 0.0


def joined(one: str, other: str) -> str:
    """What two lines of a CSV say of one image, as one cell says it: many write a line for each finding. Lines that
    contradict each other become what nobody can read.
    """
    return one if one == other else f"{one}; {other}"


def places_in(cell: str, classes: Sequence[str]) -> list[Place]:
    """What a cell of a CSV says: "CLASS x y", or "CLASS x y width height", with ";" between; with two classes the class
    may be left out. The name of the first class says that there is none. Raises: UnusableError.
    """
    if cell.strip() == classes[0]:
        return []
    return [_place(part.strip(), classes) for part in cell.split(";") if part.strip()]


def _place(text: str, classes: Sequence[str]) -> Place:
    words = text.split()
    for many in (4, 2):  # a class may be called "grade 2"
        name, values = " ".join(words[:-many]), _numbers(words[-many:])
        known = name in classes[1:] or (not name and len(classes) == 2)
        if len(values) == many and known and min(values[2:], default=1) > 0:
            return Place(list(classes).index(name) if name else 1, *values)
    raise UnusableError(
        "where a finding is cannot be read",
        f'{text[:80]!r} is not "CLASS x y" or "CLASS x y width height" of {", ".join(classes[1:])}'[:500],
    )


def _numbers(words: Sequence[str]) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        return []
    return values if np.isfinite(values).all() else []


def drawn(places: Sequence[Place], height: int, width: int) -> NDArray[np.uint16]:
    """Places -> a plane [height, width] of their image's size: each an ellipse that fills its box, with its number;
    smaller ones over larger ones. Raises: UnusableError: outside of the image, or too many.
    """
    if len(places) > MOST_FINDINGS:
        raise UnusableError(f"more than {MOST_FINDINGS} findings in one image", str(len(places)))
    plane = np.zeros((height, width), np.uint16)
    y, x = np.ogrid[:height, :width]
    boxes = [(number, place, *_ellipse(place, height, width)) for number, place in enumerate(places, start=1)]
    for number, place, cx, cy, a, b in sorted(boxes, key=lambda box: -box[4] * box[5]):
        if not (0 <= cx < width and 0 <= cy < height):
            raise UnusableError("a finding lies outside of its image", f"{cx:g}, {cy:g} of {width} x {height}")
        inside = ((x + 0.5 - cx) / a) ** 2 + ((y + 0.5 - cy) / b) ** 2 <= 1
        plane[inside] = plane_of(np.array(place.label), number)
    return plane


def _ellipse(place: Place, height: int, width: int) -> tuple[float, float, float, float]:
    """Centre and half axes, at least half a pixel."""
    radius = max(height, width) * POINT_SHARE / 2
    a, b = (max(0.5, side / 2) if side else max(0.5, radius) for side in (place.width, place.height))
    return place.x + place.width / 2, place.y + place.height / 2, a, b


def of_picture(values: NDArray[Any], classes: int) -> NDArray[np.uint16]:
    """A mask as a picture, integers [H, W] -> its plane: numbers of classes, or, of two classes, black and white.

    255 in a mask of several classes is where nobody looked. Raises: UnusableError.
    """
    known = np.unique(values)
    if known.size > MOST_CODES:
        if classes != 2:
            raise UnusableError("a mask holds more different numbers than there are classes", f"{known.size}")
        known = known[[0, -1]]
    if known.size and known[0] >= 0 and known[-1] < classes:
        return plane_of(values)
    if classes == 2:  # JPEG and anti-aliasing blur an edge between black and white
        return plane_of(2 * values.astype(np.int64) >= int(known[-1]))
    others = known[known != 255]
    if others.size and (others[-1] >= classes or others[0] < 0):
        raise UnusableError("a mask holds numbers that are none of the classes", f"{others[-1]}, of {classes} classes")
    return np.where(values == 255, UNKNOWN, plane_of(np.where(values == 255, 0, values))).astype(np.uint16)


def fitted(plane: NDArray[np.uint16], size: int, aspect: float = 1.0) -> NDArray[np.uint16]:
    """A plane [H, W] -> [size, size], placed as `pixels.fit` places its image; each pixel what most of it shows.

    Raises: UnusableError: too many different numbers.
    """
    inner_height, inner_width, top, left = placed(plane.shape[0], plane.shape[1], size, aspect)
    codes = np.unique(plane)
    if len(codes) > MOST_CODES:
        raise UnusableError("a mask holds too many different findings", str(len(codes)))
    best = np.full((inner_height, inner_width), -1.0, np.float32)
    inner = np.zeros((inner_height, inner_width), np.uint16)
    for code in codes:
        part = Image.fromarray((plane == code).astype(np.float32))
        covered = np.asarray(part.resize((inner_width, inner_height), Image.Resampling.BILINEAR))
        inner[covered > best] = code
        best = np.maximum(best, covered)
    out = np.zeros((size, size), np.uint16)
    out[top : top + inner_height, left : left + inner_width] = inner
    return out


def beside(
    rows: NDArray[np.uint16], planes: Sequence[NDArray[np.uint16]], aspects: Sequence[float]
) -> NDArray[np.uint16]:
    """Images uint16 [n, channels, S, S] and their planes, as large as the images were -> [n, channels + 1, S, S].

    Raises: UnusableError, as `fitted`.
    """
    size = rows.shape[-1]
    placed_alike = [fitted(plane, size, aspect) for plane, aspect in zip(planes, aspects, strict=True)]
    return np.concatenate([rows, np.stack(placed_alike)[:, None]], 1)
