"""The intake's fit of an image into a square, as a graph can do it: two matrices that follow from the image's size.

Pillow's bilinear filter is a triangle as wide as the reduction, so each row of the result is a weighted mean of rows,
and each column of columns (`fit` of the hospital's intake, which tests hold this to).
"""

from __future__ import annotations

import torch
from torch import Tensor


def in_square(x: Tensor, side: int) -> Tensor:
    """An image float32 [1, c, h, w] of any size, pixels square -> [1, c, side, side], in proportion, amid black.

    Traced, it holds for every h and w: they are counted, and not read from a shape.
    """
    rows, columns = (torch.ones_like(line).double().cumsum(0) for line in (x[0, 0, :, 0], x[0, 0, 0, :]))
    longest = torch.maximum(rows[-1], columns[-1])
    return _filter(rows, longest, side) @ x @ _filter(columns, longest, side).T


def _filter(numbers: Tensor, longest: Tensor, side: int) -> Tensor:
    """float32 [side, n], what each line of the result is made of; numbers: float64 1 .. n."""
    length = numbers[-1]
    inner = (side * length / longest).round().clamp_min(1)  # half to even, as Python rounds
    line = torch.arange(side).double() - torch.floor((side - inner) / 2)
    scale = length / inner
    distance = ((line.unsqueeze(1) + 0.5) * scale - (numbers - 0.5)).abs()
    weight = (1 - distance / scale.clamp_min(1)).clamp_min(0)
    inside = (line >= 0) & (line < inner)
    weight = weight / weight.sum(1, keepdim=True).clamp_min(1e-12)
    return torch.where(inside.unsqueeze(1), weight, 0.0).float()
