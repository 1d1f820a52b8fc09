"""A quadratic loss, on which local steps have closed forms."""

from __future__ import annotations

import torch
from tests.cohorts import LossOnly
from torch import Tensor

A = torch.tensor([[2.0, 0.3, 0.0], [0.3, 1.0, -0.2], [0.0, -0.2, 0.5]])
B = torch.tensor([1.0, -1.0, 0.5])
MINIMUM = torch.linalg.solve(A, B)
THETA = torch.tensor([0.5, 0.5, -2.0])


class Quadratic(LossOnly):
    """1/2 theta' A theta - B' theta, of the first three numbers; what follows is Meta-SGD's alpha."""

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        theta = theta[:3]
        return (0.5 * theta @ A @ theta - B @ theta).expand(len(x))

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return {"alpha": theta[3:]}


def after_steps(theta: Tensor, steps: int, alpha: float | Tensor) -> Tensor:
    """theta_k in closed form: the minimum plus (I - diag(alpha) A)^k of the way to it. alpha: a number, or one each."""
    shrink = torch.eye(3) - torch.as_tensor(alpha).expand(3).diag() @ A
    theta_k: Tensor = MINIMUM + torch.linalg.matrix_power(shrink, steps) @ (theta - MINIMUM)
    return theta_k
