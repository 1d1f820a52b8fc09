"""What one patient may add to a sum: a vector of bounded length, on a public grid, so that sums are exact.

Everything here is elementary operations in float64 (`wardround.elementary`), and what is added up are integers. So the
difference of two sums over cohorts that differ by one patient IS that patient's vector, to the last bit and in any
order; and its length is at most the limit, by the few roundings that are counted below.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from wardround.elementary import total

GRID_BITS = 30  # a contribution's grid is 2^-30 of the limit, about: far finer than any noise
MARGIN = 2.0**-28
"""By which the clip stays below the limit. A computed length is off by a relative (P / 2 + 4) 2^-53 at most, whatever
the order of additions: squares, P additions, a root and two quotients. For P up to 2^25 that is less than 2^-28."""


def grid(limit: float) -> float:
    """The distance of two neighbours on the grid of contributions of at most `limit`: a power of two, public."""
    return 2.0 ** (math.floor(math.log2(limit)) - GRID_BITS)


def contributions(rows: Tensor, limit: float) -> Tensor:
    """Rows [n, P] -> what each adds to a sum, int64 [n, P] in units of `grid(limit)`.

    Each row is scaled to an L2 norm of at most the limit and cut off towards zero, which makes no row longer. A row
    that holds NaN or infinity adds nothing.
    """
    rows = rows.double()
    rows = torch.where(rows.isfinite().all(1, keepdim=True), rows, 0.0)
    # In units of the greatest number, so that no square overflows or vanishes.
    greatest = rows.abs().amax(1, keepdim=True) if rows.shape[1] else rows.new_zeros(len(rows), 1)
    units = rows / torch.where(greatest > 0, greatest, 1.0)
    length = total(units * units).sqrt().clamp_min(1.0).unsqueeze(1)
    factor = torch.minimum(greatest, limit * (1 - MARGIN) / length)
    return (units * factor / grid(limit)).trunc().long()


def contribution(vector: Tensor, limit: float) -> Tensor:
    """The same of ONE vector float32 [P] that lies in memory of its own, faster for a long one; in isolation."""
    vector = vector.double()  # no square of a float32 overflows
    length = float(torch.linalg.vector_norm(vector))
    if not math.isfinite(length):
        return torch.zeros(vector.shape, dtype=torch.int64, device=vector.device)
    return vector.mul_(min(1.0, limit * (1 - MARGIN) / max(length, 1e-300)) / grid(limit)).trunc_().long()


def summed(parts: Tensor, limit: float) -> Tensor:
    """Contributions int64 [n, P] -> their sum, float64 [P]: exact below 2^22 patients."""
    return parts.sum(0).double() * grid(limit)


def clipped(rows: Tensor, limit: float) -> Tensor:
    """Rows [n, P] as `contributions` makes them, as numbers: float64 [n, P]."""
    return contributions(rows, limit).double() * grid(limit)
