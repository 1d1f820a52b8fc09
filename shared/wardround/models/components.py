"""Public principal components of what a network gives: a standardisation and a projection, of public pictures."""

from __future__ import annotations

import torch
from torch import Tensor

LEAST_DEVIATION = 0.2  # of the features' median deviation: what hardly varies here may vary there
# A component's variance is its eigenvalue to this power: between whitened (0) and as it is (1).
SPECTRUM_POWER = 0.25


def components(taps: Tensor, features: int, power: float = SPECTRUM_POWER) -> tuple[Tensor, Tensor]:
    """What public pictures gave [n, D] -> weight float32 [features, D], bias [features]; features is at most D and n.

    Over the pictures the features have mean 0, no correlation, and as variance the eigenvalue, relative to the mean of
    those kept, to that power.
    """
    raw = taps.double()
    mean, deviation = raw.mean(0), raw.std(0, correction=0)
    deviation = deviation.clamp(min=float(LEAST_DEVIATION * deviation.median()) or 1.0)
    standardised = (raw - mean) / deviation
    eigenvalue, axes = _principal(standardised)
    eigenvalue, axes = eigenvalue[:features].clamp(min=1e-12), axes[:features]
    # An axis' sign is arbitrary; its greatest entry is made positive.
    axes = axes * axes.gather(1, axes.abs().argmax(1, keepdim=True)).sign()
    spread = (eigenvalue / eigenvalue.mean()) ** (power / 2) / eigenvalue.sqrt()
    weight = axes * spread[:, None] / deviation
    return weight.float().contiguous(), (-weight @ mean).float()


def _principal(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of the covariance of rows [n, D], the greatest first, and their axes [min(n, D), D].

    By whichever of both matrices is smaller: of many numbers each, the other takes minutes.
    """
    if len(rows) < rows.shape[1]:
        _, singular, right = torch.linalg.svd(rows, full_matrices=False)
        return singular.square() / len(rows), right
    eigenvalue, axes = torch.linalg.eigh(rows.T @ rows / len(rows))
    return eigenvalue.flip(0), axes.flip(1).T
