"""A stack of slices, in order and with its spacing -> one volume of the cohort's shape, or its slices as images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.recipe import ImageRecipe

Slice = Callable[[int], NDArray[Any]]


@dataclass(frozen=True)
class Stack:
    """Slices that are read when they are asked for, so that memory holds a few of them.

    read: number of a slice -> [H, W] or [H, W, 3] in [0, 1]. size: how many there are. spacing_mm: from slice to slice,
    from row to row, from column to column; None where it is not known.
    """

    read: Slice
    size: int
    spacing_mm: tuple[float, float, float] | None

    @property
    def aspect(self) -> float:
        """Height of a pixel over its width."""
        return self.spacing_mm[1] / self.spacing_mm[2] if self.spacing_mm else 1.0


def chosen(size: int, most: int) -> list[int]:
    """Numbers of at most so many slices, evenly spaced, the first and the last among them."""
    return [int(each) for each in np.unique(np.linspace(0, size - 1, min(size, most)).round())]


def volume(stack: Stack, recipe: ImageRecipe) -> NDArray[np.uint16]:
    """The stack in the recipe's volume: uint16 [channels, depth, S, S].

    With a spacing of the recipe it is resampled to that, its middle in the volume's middle; else it is fitted in. A
    slice of the volume is the mean of the stack's slices over its thickness, at least between the two nearest.
    """
    out = np.zeros((recipe.channels, recipe.depth, recipe.image_size_px, recipe.image_size_px), np.float32)
    placed = None
    for number, weights in _weights(stack, recipe):
        if weights.any():
            placed = _placed(stack, number, recipe)
            for target in np.flatnonzero(weights):
                out[:, target] += weights[target] * placed
    return quantise(out)


def _weights(stack: Stack, recipe: ImageRecipe) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """For each slice of the stack how much it is of each slice of the volume, float32 [depth]: triangles as wide as the
    coarser of the two spacings, whose sum over the stack is the part of the volume's slice that the stack covers.
    """
    if recipe.spacing_mm and stack.spacing_mm:
        step = recipe.spacing_mm[0] / stack.spacing_mm[0]  # slices of the stack from one of the volume to the next
    else:
        step = stack.size / recipe.depth
    centres = (np.arange(recipe.depth) - (recipe.depth - 1) / 2) * step + (stack.size - 1) / 2
    above, below = np.minimum(centres + step / 2, stack.size - 0.5), np.maximum(centres - step / 2, -0.5)
    covered = np.clip((above - below) / step, 0, 1)
    near = np.clip(centres, 0, stack.size - 1)
    width = max(step, 1.0)
    total = np.zeros(recipe.depth, np.float64)
    for number in range(stack.size):
        total += np.clip(1 - np.abs(number - near) / width, 0, None)
    for number in range(stack.size):
        part = np.clip(1 - np.abs(number - near) / width, 0, None)
        yield number, np.asarray(covered * part / np.maximum(total, 1e-12), np.float32)


def _placed(stack: Stack, number: int, recipe: ImageRecipe) -> NDArray[np.float32]:
    """One slice in the square of the volume: float32 [channels, S, S]."""
    image = stack.read(number)
    if not (recipe.spacing_mm and stack.spacing_mm):
        return np.asarray(fit(image, recipe, stack.aspect))
    # The square covers so many of the slice's pixels: cut to it, or fill up with black, then resize.
    rows, columns = (max(1, round(recipe.image_size_px * recipe.spacing_mm[1] / side)) for side in stack.spacing_mm[1:])
    return np.asarray(fit(_centred(image, rows, columns), recipe, columns / rows))


def _centred(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """The middle of an image, cut or filled up with black to rows x columns."""
    out = np.zeros((rows, columns, *image.shape[2:]), image.dtype)
    (into_y, from_y), (into_x, from_x) = (
        _overlap(have, want) for have, want in zip(image.shape[:2], (rows, columns), strict=True)
    )
    out[into_y, into_x] = image[from_y, from_x]
    return out


def _overlap(have: int, want: int) -> tuple[slice, slice]:
    start = (have - want) // 2
    length = min(have, want)
    into, of = max(0, -start), max(0, start)
    return slice(into, into + length), slice(of, of + length)
