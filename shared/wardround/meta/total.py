"""Functions that are right for honest numbers and total for all others: whatever comes in, nothing raises.

What is learned beside a model arrives from a coordinator, and an embedding comes from patients. An exception, or a sum
that takes for ever, would tell something about a patient that no noise covers.
"""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST = 30.0
# Of a matrix' trace. Cholesky's algorithm needs no more of a float64, and honest penalties are far above.
_FLOOR = 1e-12


def positive(logarithm: Tensor) -> Tensor:
    """Its exponential, within e^-30 and e^30, where whatever learns is not near."""
    return logarithm.clamp(-LARGEST, LARGEST).exp()


def solved(gram: Tensor, penalty: Tensor, right: Tensor) -> Tensor:
    """(gram + penalty I)^-1 right, differentiable, of a gram matrix that may be singular.

    The penalty is raised by a millionth of a millionth of the trace, so that there is a solution in floating point as
    well. `torch.linalg.solve` and the backward pass of `solve_ex` raise where there is none; this gives numbers that
    are not finite where gram is not.

    Args:
        gram: float64 [n, n], symmetric, no eigenvalue below 0.
        penalty: [], above 0.
        right: float64 [n, k].
    """
    floor = penalty + _FLOOR * gram.diagonal().sum()
    factor, _ = torch.linalg.cholesky_ex(gram + floor * torch.eye(len(gram)).to(gram))
    return torch.cholesky_solve(right, factor)
