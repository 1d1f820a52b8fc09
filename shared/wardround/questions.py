"""The questions that an algorithm may ask about a hospital's patients. There is no other road to them.

A hospital's `PrivateCohort` answers with clipped and noised vectors whose price stands in the ledger before they are
computed; whatever an algorithm does with an answer is post-processing (architecture.md, privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Loss(Protocol):
    """A differentiable loss of ONE patient's images.

    per_patient: how per-patient gradients are computed fastest: "vmap" (small models) or "loop" (convolutions).
    """

    @property
    def per_patient(self) -> str: ...

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...] encoded images, y int64 [m] classes -> float32 [], the mean over the m."""
        ...


class Predict(Protocol):
    """x [n, ...] encoded images -> float32 [n, classes] logits, at fixed parameters."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Statistics:
    """Noised class counts and feature moments: one answer, one Gaussian.

    counts: float32 [classes], patients a class (an image-averaged patient counts as shares), may be negative.
    sum_z, sum_zz: float32 [d], sums over patients of clipped features and of their squares.
    """

    counts: Tensor
    sum_z: Tensor
    sum_zz: Tensor

    def pack(self) -> Tensor:
        """float32 [classes + 2 d]: counts, sum_z, sum_zz."""
        return torch.cat([self.counts, self.sum_z, self.sum_zz])

    @classmethod
    def unpack(cls, vector: Tensor, classes: int) -> Statistics:
        """The inverse of `pack`. Raises: ValueError, when what follows the counts cannot be halved."""
        if (len(vector) - classes) % 2 or len(vector) < classes:
            raise ValueError(f"{len(vector)} numbers are not {classes} counts and two moments")
        counts, sum_z, sum_zz = torch.split(vector, [classes, *[(len(vector) - classes) // 2] * 2])
        return cls(counts, sum_z, sum_zz)


class Cohort(Protocol):
    """A hospital's patients, as an algorithm sees them."""

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over one Poisson sample of patients of clipped mean gradients, plus noise, divided by
        a public number of expected patients. privacy.md, "One step".
        """
        ...

    def statistics(self) -> Statistics:
        """Noised class counts and moments of the encoder's features."""
        ...

    def confusion(self, predict: Predict) -> Tensor:
        """float32 [classes, classes]: noised counts, rows truth, columns prediction; a patient weighs at most 1."""
        ...
