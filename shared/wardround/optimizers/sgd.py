"""SGD with momentum, in torch.optim.SGD's form. With momentum 0 and a learning rate of 1 it is FedAvg's outer step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wardround.optimizers import Optimizer


class Sgd(Optimizer):
    """State: "first", the momentum m, float32 [P]."""

    name: str = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.8

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """No momentum."""
        return {"first": torch.zeros_like(theta)}

    def step(self, state: Mapping[str, Tensor], theta: Tensor, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """M <- mu m + g; theta <- theta - eta m."""
        m = self.momentum * state["first"] + gradient
        return {**state, "first": m}, theta - self.learning_rate * m


optimizer = Sgd
