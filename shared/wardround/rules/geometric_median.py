"""The geometric median: Pillutla, Kakade and Harchaoui, "Robust Aggregation for Federated Learning", 2022."""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.rules import Robust
from wardround.rules._matrix import BLOCK, combined, median


class GeometricMedian(Robust):
    """Liars of less than half of the weight move it by a bounded multiple of the honest deltas' spread."""

    name: str = "geometric-median"

    def robust(self, deltas: Tensor, weights: Tensor, liars: int) -> Tensor:
        """The point with the least weighted sum of distances to the deltas, by Weiszfeld's steps on smoothed distances.

        It is a mean of the deltas with other weights, so that steps need their inner products alone.
        """
        weights, start = weights.double(), median(deltas, weights).double()
        gram = deltas.new_zeros(len(deltas), len(deltas), dtype=torch.float64)
        for block, centre in zip(torch.split(deltas, BLOCK, dim=1), torch.split(start, BLOCK), strict=True):
            apart = block.double() - centre
            gram += apart @ apart.T
        # From the median, not from the mean, which one reply may have moved beyond what float64 resolves.
        squares, smooth = gram.diagonal(), 1e-12 * gram.diagonal().median() + 1e-300
        share = torch.zeros_like(weights)
        for _ in range(1000):
            pulled = weights / (squares.clamp_min(0) + smooth).sqrt()
            before, share = share, pulled / pulled.sum()
            squares = gram.diagonal() - 2 * gram @ share + share @ gram @ share
            if bool((share - before).abs().amax() < 1e-12):
                break
        return combined(deltas, share)


rule = GeometricMedian
