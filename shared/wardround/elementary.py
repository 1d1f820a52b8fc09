"""Arithmetic whose every bit is decided by its own operands: elementary operations, element by element.

IEEE 754-2019, section 5.4.1: + - x / and the square root are correctly rounded, so that the result for one element is a
function of that element's operands alone, wherever they lie in memory, however many others are computed beside them and
by however many threads. A library's sums, matrix products and exponentials are not: the order of additions and the code
for the last few elements follow from alignment, batch and thread count. So here a sum is a tree of elementwise
additions that the number of terms fixes, and an exponential is a polynomial and ten squarings. All is float64.
"""

from __future__ import annotations

from math import factorial

import torch
from torch import Tensor

_LEAST = -700.0  # exp of it is 1e-304, and nothing below is told from 0
_SQUARINGS = 10
# Taylor's, at |x| <= 700 / 1024: the first term left out is below 1e-17.
_COEFFICIENTS = [1 / factorial(power) for power in range(16, -1, -1)]


def total(terms: Tensor) -> Tensor:
    """The sum over the last axis, float64 [..., n] -> [...]: halves are added to halves, whatever n is; 0 for n = 0."""
    if not terms.shape[-1]:
        return terms.new_zeros(terms.shape[:-1])
    while (size := terms.shape[-1]) > 1:
        half = size // 2
        added = terms[..., :half] + terms[..., half : 2 * half]
        terms = torch.cat([added, terms[..., 2 * half :]], -1) if size % 2 else added
    return terms[..., 0]


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """X [n, d], weight [k, d], bias [k], float64 -> W x + b, float64 [n, k]; [n, k, d] of memory."""
    return total(x.unsqueeze(1) * weight) + bias


def exp(x: Tensor) -> Tensor:
    """The exponential of x <= 0, float64, to a relative 1e-12."""
    x = x.clamp_min(_LEAST) / 2**_SQUARINGS
    power = torch.full_like(x, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        power = power * x
        power = power + coefficient
    for _ in range(_SQUARINGS):
        power = power * power
    return power


def softmax(logits: Tensor) -> Tensor:
    """Over the last axis, float64."""
    odds = exp(logits - logits.amax(-1, keepdim=True))
    return odds / total(odds).unsqueeze(-1)


def tanh(x: Tensor) -> Tensor:
    """(1 - exp(-2 x)) / (1 + exp(-2 x)), float64."""
    odds = exp(-2 * x.abs())
    size = (1 - odds) / (1 + odds)
    return torch.where(x >= 0, size, -size)


def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x)), float64."""
    odds = exp(-x.abs())
    return torch.where(x >= 0, 1 / (1 + odds), odds / (1 + odds))
