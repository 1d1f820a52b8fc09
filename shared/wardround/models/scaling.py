"""What the coordinator and the hospital make of noised statistics. All of it is post-processing: it costs nothing."""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

# The public prior of scaling_of: features of mean 0 and variance 1, worth so many patients.
PRIOR_PATIENTS = 50.0
LEAST_VARIANCE, GREATEST_VARIANCE = 0.05, 20.0
GREATEST_SHIFT = 5.0


def no_scaling(size: int) -> tuple[Tensor, Tensor]:
    """The public fallback before round 0: shift 0 and scale 1, float32 [size] each."""
    return torch.zeros(size), torch.ones(size)


def standardised(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(z - shift) / scale / sqrt d for z [..., d]: rows of norm about 1, whatever d is.

    A linear head's per-patient gradient is an error of norm at most sqrt 2 times its input, so the same clip norm,
    near 1, and the same learning rate suit every number of features.
    """
    return (z - shift) / (scale * sqrt(z.shape[-1]))


def scaling_of(sum_z: Tensor, sum_zz: Tensor, patients: Tensor) -> tuple[Tensor, Tensor]:
    """Noised moments of all hospitals together -> shift, scale: float32 [d] each, finite, scale > 0.

    Public features have mean 0 and variance 1 by construction; that prior counts as PRIOR_PATIENTS patients, which
    keeps a small or very noisy federation near the public constants.

    sum_z, sum_zz: float32 [d], sums over patients of features and of their squares. patients: float32 [], how many.
    """
    patients = patients.clamp(min=0) + PRIOR_PATIENTS
    shift = (sum_z / patients).clamp(-GREATEST_SHIFT, GREATEST_SHIFT)
    variance = (sum_zz + PRIOR_PATIENTS) / patients - shift.square()
    return shift.float(), variance.clamp(LEAST_VARIANCE, GREATEST_VARIANCE).sqrt().float()
