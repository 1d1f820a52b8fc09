"""Centred clipping: Karimireddy, He and Jaggi, "Learning from History for Byzantine Robust Optimization", 2021, section
4.

The paper starts at the last round's result, this at the median, so that there is no history to keep.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.rules import Robust
from wardround.rules._matrix import combined, median

_STEPS = 3


class CentredClipping(Robust):
    """Liars move each step by at most their weight x tau."""

    name: str = "centred-clipping"

    def robust(self, deltas: Tensor, weights: Tensor, liars: int) -> Tensor:
        """Steps v <- v + sum_i w_i clip(delta_i - v, tau), from the median.

        tau is the weighted median of the deltas' distances from there: with privacy the length of the noise in a
        typical reply.
        """
        share = (weights.double() / weights.double().sum()).unsqueeze(1)
        centre = median(deltas, weights).double()
        radius = None
        for _ in range(_STEPS):
            distances = torch.stack([(delta.double() - centre).norm() for delta in deltas]).unsqueeze(1)
            radius = median(distances, weights).double() if radius is None else radius
            factors = torch.where(distances > radius, radius / distances, 1.0) * share
            centre = centre * (1 - factors.sum()) + combined(deltas, factors.squeeze(1)).double()
        return centre.float()


rule = CentredClipping
