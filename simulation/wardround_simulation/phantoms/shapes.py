"""Soft shapes and smooth random fields on a grid in millimetres, for many images at once.

Every field is float32 [n, rows, columns]; a parameter that differs between images is [n, 1, 1]. x runs to the
right of the picture and y downwards, both from the middle of the field of view.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

# float32 at run time; numpy's stubs widen a product with a Python number.
Field = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Grid:
    """The pixels of a square detector: `size_px` pixels a side, `spacing_mm` apart."""

    size_px: int
    spacing_mm: float

    @property
    def axis_mm(self) -> Field:
        """Positions of the pixels along one side, float32 [size_px]."""
        return ((np.arange(self.size_px) - (self.size_px - 1) / 2) * self.spacing_mm).astype(np.float32)

    def rotated(self, angle_rad: Field, shift_x_mm: Field, shift_y_mm: Field) -> tuple[Field, Field]:
        """The coordinates x and y, each [n, size, size], of patients who lie askew by that angle and that shift."""
        x = self.axis_mm[None, None, :] - shift_x_mm
        y = self.axis_mm[None, :, None] - shift_y_mm
        cos, sin = np.cos(angle_rad), np.sin(angle_rad)
        return cos * x + sin * y, cos * y - sin * x


def ramp(depth_mm: Field, edge_mm: float = 3.0) -> Field:
    """0 outside, 1 inside, and a straight rise over `edge_mm` where the signed depth passes zero."""
    inside: Field = np.clip(depth_mm / np.float32(edge_mm) + np.float32(0.5), 0, 1)
    return inside


def ellipse_depth(x: Field, y: Field, cx: Field | float, cy: Field | float, a: Field, b: Field) -> Field:
    """About how many millimetres a point lies inside an ellipse of half axes a and b (negative outside)."""
    radius = np.sqrt(((x - cx) / a) ** 2 + ((y - cy) / b) ** 2)
    return (1 - radius) * np.minimum(a, b)


def ellipse(
    x: Field, y: Field, cx: Field | float, cy: Field | float, a: Field, b: Field, edge_mm: float = 3.0
) -> Field:
    """A filled ellipse with a soft edge, in [0, 1]."""
    return ramp(ellipse_depth(x, y, cx, cy, a, b), edge_mm)


def over(under: Field, cover: Field, value: Field | float) -> Field:
    """Paint `value` over `under` where `cover` is 1, and blend in between."""
    return under + cover * (value - under)


def smooth_noise(rng: np.random.Generator, n: int, grid: Grid, cell_mm: float) -> Field:
    """Gaussian random fields [n, size, size], mean 0, variance 1, whose blobs are about `cell_mm` wide.

    White noise on a coarse lattice, spread by a separable Gaussian kernel as two matrix products: several times
    faster than a filter, and the width is in millimetres whatever the matrix.
    """
    half = grid.size_px * grid.spacing_mm / 2 + cell_mm
    knots = np.arange(-half, half + cell_mm, cell_mm / 2, dtype=np.float32)
    spread = np.exp(-(((grid.axis_mm[:, None] - knots[None, :]) / np.float32(cell_mm / 2)) ** 2))
    spread /= np.linalg.norm(spread, axis=1, keepdims=True)
    white = rng.standard_normal((n, knots.size, knots.size), dtype=np.float32)
    return _separable(white, spread)


def blur(image: Field, grid: Grid, sigma_mm: float) -> Field:
    """The point spread of a detector: a Gaussian of `sigma_mm`, edges repeated by normalisation."""
    if sigma_mm <= 0:
        return image
    axis = grid.axis_mm
    kernel = np.exp(-0.5 * ((axis[:, None] - axis[None, :]) / np.float32(sigma_mm)) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    return _separable(image, kernel)


def _separable(images: Field, kernel: Field) -> Field:
    """Apply kernel [m, k] to both sides of images [n, k, k]: kernel @ image @ kernel.T, [n, m, m].

    As two large products: a product an image would wake and park BLAS's threads thousands of times.
    """
    n, k, m = len(images), kernel.shape[1], kernel.shape[0]
    across = (images.reshape(n * k, k) @ kernel.T).reshape(n, k, m).swapaxes(1, 2)
    both = (across.reshape(n * m, k) @ kernel.T).reshape(n, m, m)
    return np.asarray(both.swapaxes(1, 2), dtype=np.float32)


def column(values: npt.ArrayLike) -> Field:
    """[n] as float32 [n, 1, 1], so that it varies over images and not over pixels."""
    return np.asarray(values, dtype=np.float32)[:, None, None]
