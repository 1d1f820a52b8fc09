"""What the coordinator and the hospital make of noised statistics. All of it is post-processing: it costs nothing."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from wardround.questions import Statistics

# The public prior of pool_statistics: features of mean 0 and variance 1, worth so many patients.
PRIOR_PATIENTS = 50.0
LEAST_VARIANCE, GREATEST_VARIANCE = 0.05, 20.0
GREATEST_SHIFT = 5.0
# log_prior and log_odds take no class or finding to be rarer than this, and no finding to be missing more rarely.
LEAST_PREVALENCE = 0.01


def no_scaling(size: int) -> tuple[Tensor, Tensor]:
    """The public fallback before round 0: shift 0 and scale 1, float32 [size] each."""
    return torch.zeros(size), torch.ones(size)


def standardised(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """(z - shift) / scale / sqrt d for z [..., d]: rows of norm about 1, whatever d is.

    A linear head's per-patient gradient is an error of norm at most sqrt 2 times its input, so the same clip norm,
    near 1, and the same learning rate suit every number of features.
    """
    return (z - shift) / (scale * sqrt(z.shape[-1]))


def pool_statistics(replies: Sequence[Statistics], declared_patients: int | None = None) -> tuple[Tensor, Tensor]:
    """Noised moments of all hospitals -> shift, scale: float32 [d] each, finite, scale > 0.

    The sums are pooled, so a hospital weighs as many patients as it has. Public features have mean 0 and variance 1
    by construction; that prior counts as PRIOR_PATIENTS patients, which keeps a small or very noisy federation near the
    public constants.

    Args:
        replies: at least one, all of one size.
        declared_patients: of these hospitals together, where a patient may have several findings; without it the counts
            add up to the patients.

    Raises: ValueError, for no replies; RuntimeError, for replies of different sizes.
    """
    if not replies:
        raise ValueError("no statistics to pool; before round 0 use no_scaling")
    pooled = Statistics.unpack(torch.stack([reply.pack() for reply in replies]).sum(0), len(replies[0].counts))
    counted = pooled.counts.sum() if declared_patients is None else torch.tensor(float(declared_patients))
    patients = counted.clamp(min=0) + PRIOR_PATIENTS
    shift = (pooled.sum_z / patients).clamp(-GREATEST_SHIFT, GREATEST_SHIFT)
    variance = (pooled.sum_zz + PRIOR_PATIENTS) / patients - shift.square()
    return shift.float(), variance.clamp(LEAST_VARIANCE, GREATEST_VARIANCE).sqrt().float()


def log_prior(counts: Tensor) -> Tensor:
    """Noised class counts float32 [K] -> log prevalence float32 [K], each class at least LEAST_PREVALENCE.

    For logit adjustment. Counts may be negative or all noise; then every class counts alike.
    """
    positive = counts.clamp(min=0)
    total = positive.sum()
    if not total > 0:
        return torch.full_like(counts, 1 / len(counts)).log()
    shares = (positive / total).clamp(min=LEAST_PREVALENCE)
    return (shares / shares.sum()).log()


def log_odds(counts: Tensor, declared_patients: int) -> Tensor:
    """Noised counts of findings float32 [K] -> log(p / (1 - p)), float32 [K], p = count / declared patients.

    For logit adjustment where each finding is there or not. p is kept LEAST_PREVALENCE away from 0 and 1.
    """
    return (counts / declared_patients).clamp(LEAST_PREVALENCE, 1 - LEAST_PREVALENCE).logit()
