"""What FedAdam and FedYogi share: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 2.

As in the paper they start from v = tau^2 and correct no bias; torch.optim.Adam does otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wardround.optimizers import Optimizer


class Adaptive(Optimizer):
    """State: "first", m; "second", v; float32 [P] each. The files say how v goes on."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    tau: Annotated[float, Field(ge=1e-12, le=1e3)] = 1e-3

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """The next v, of v and g^2, float32 [P] each."""
        raise NotImplementedError

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """M = 0, v = tau^2."""
        return {"first": torch.zeros_like(theta), "second": torch.full_like(theta, self.tau**2)}

    def step(self, state: Mapping[str, Tensor], theta: Tensor, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """M <- beta1 m + (1 - beta1) g; theta <- theta - eta m / (sqrt v + tau)."""
        v = self.second(state["second"], gradient.square())
        m = self.beta1 * state["first"] + (1 - self.beta1) * gradient
        return {**state, "first": m, "second": v}, theta - self.learning_rate * m / (v.sqrt() + self.tau)
