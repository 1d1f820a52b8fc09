"""The files of a DICOM series -> one stack of slices, in the order in which they lie in the patient.

That is by Image Position along the normal of Image Orientation (PS3.3 C.7.6.2.1.1), never by a number or a file's name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround_client.intake.dicom.attributes import UnusableError, groups_of, numbers
from wardround_client.intake.dicom.header import Header, read
from wardround_client.intake.dicom.pixels import shown
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import DEFAULTS, Rules
from wardround_client.intake.stack import Stack

_SAME = 1e-3  # of a direction's length, and of a millimetre: what a text of 16 characters rounds
_GAP = 1.5  # of the usual distance of two slices: then one is missing
_MOST_SLICES = 4096

Slice = tuple[Header, int]
"""A file, and the number of a frame in it."""


def stack_of(paths: Sequence[Path], recipe: ImageRecipe, rules: Rules = DEFAULTS) -> tuple[list[Header], Stack]:
    """The headers of the files, and their slices as one stack.

    Raises: UnusableError: files of several patients or studies, sizes or orientations; two slices at one place; a gap;
        a slice that says not where it lies. OSError.
    """
    headers = [read(path, replace(recipe, frames_per_file=_MOST_SLICES), rules) for path in paths]
    if len({(each.identity.patient_id, each.identity.issuer, each.identity.study) for each in headers}) > 1:
        raise UnusableError("a series of several patients or studies")
    slices: list[Slice] = [(header, frame) for header in headers for frame in header.looks]
    if len(slices) > _MOST_SLICES or any(header.frames != len(header.looks) for header in headers):
        raise UnusableError(f"a series of more than {_MOST_SLICES} slices")
    if len(slices) < 2:
        raise UnusableError("a series of one slice is no volume")
    if len({(header.rows, header.columns) for header in headers}) > 1:
        raise UnusableError("slices of different sizes in one series")
    ordered, between = _ordered(slices)
    shifts = _shifts(ordered)
    spacing, *others = (_spacing(*each) for each in ordered)
    if spacing and not all(each and np.allclose(each, spacing, rtol=10 * _SAME) for each in others):
        raise UnusableError("slices of different pixel sizes in one series")
    if recipe.spacing_mm and spacing is None:
        raise UnusableError("a series says not how large its pixels are, and the volume has a spacing in mm")
    stack = Stack(
        lambda number: _moved(_read(*ordered[number], recipe), *shifts[number]),
        len(ordered),
        (between, *spacing) if spacing else None,
    )
    return headers, stack


def _read(header: Header, frame: int, recipe: ImageRecipe) -> NDArray[Any]:
    one = replace(header, looks={frame: header.looks[frame]})
    return next(iter(shown(one, recipe)))


def _shifts(ordered: Sequence[Slice]) -> list[tuple[int, int]]:
    """By how many rows and columns each slice lies beside the one in the middle, as those of a tilted gantry do."""
    header, frame = ordered[len(ordered) // 2]
    spacing = _spacing(header, frame)
    if spacing is None:
        return [(0, 0)] * len(ordered)
    direction = np.array(_three(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6))
    places = np.array([_three(*each, "PlanePositionSequence", "ImagePositionPatient", 3) for each in ordered])
    beside = (places - places[len(ordered) // 2]) @ np.stack([direction[3:], direction[:3]], 1) / spacing
    most = (header.rows, header.columns)
    return [(int(y), int(x)) for y, x in np.clip(np.rint(beside), np.negative(most), most)]


def _moved(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """An image so many rows down and columns to the right; black where nothing is."""
    if not rows and not columns:
        return image
    out = np.zeros_like(image)
    (into_y, from_y), (into_x, from_x) = (
        (slice(max(0, by), size + min(0, by)), slice(max(0, -by), size - max(0, by)))
        for by, size in zip((rows, columns), image.shape[:2], strict=True)
    )
    out[into_y, into_x] = image[from_y, from_x]
    return out


def _ordered(slices: list[Slice]) -> tuple[list[Slice], float]:
    """By place, and the usual distance of two, mm."""
    positions = np.array(
        [_three(header, frame, "PlanePositionSequence", "ImagePositionPatient", 3) for header, frame in slices]
    )
    directions = np.array(
        [_three(header, frame, "PlaneOrientationSequence", "ImageOrientationPatient", 6) for header, frame in slices]
    )
    if np.abs(directions - directions[0]).max() > 10 * _SAME:
        raise UnusableError("slices of different orientations in one series")
    normal = np.cross(directions[0, :3], directions[0, 3:])
    places = positions @ (normal / max(float(np.linalg.norm(normal)), _SAME))
    order = np.argsort(places, kind="stable")
    steps = np.diff(places[order])
    if steps.min() < 10 * _SAME:
        raise UnusableError("two slices of a series lie at one place")
    usual = float(np.median(steps))
    if steps.max() > _GAP * usual:
        raise UnusableError(
            "slices are missing in a series", f"{steps.max():.2f} mm between two, usually {usual:.2f} mm"
        )
    if steps.min() * _GAP < usual:
        raise UnusableError(
            "slices of a series lie at uneven distances", f"{steps.min():.2f} mm, usually {usual:.2f} mm"
        )
    return [slices[number] for number in order.tolist()], usual


def _three(header: Header, frame: int, macro: str, keyword: str, many: int) -> list[float]:
    """An attribute of a frame: its own functional group's, the shared one's, or the file's."""
    groups = groups_of(header.dataset, frame, macro)
    found = next((values for each in groups if (values := numbers(each, keyword))), [])
    if len(found) != many:
        raise UnusableError("a slice says not where it lies", keyword)
    return found


def _spacing(header: Header, frame: int) -> tuple[float, float] | None:
    """From row to row and from column to column, mm; None where it is not known."""
    for each in groups_of(header.dataset, frame, "PixelMeasuresSequence"):
        found = numbers(each, "PixelSpacing")
        if len(found) == 2 and min(found) > 0:
            return found[0], found[1]
    return None
