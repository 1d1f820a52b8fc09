"""The coordinator's outer optimizers: SGD with momentum, and FedAdam and FedYogi of Reddi et al., "Adaptive Federated
Optimization", 2021, algorithm 2. Pure functions: (state, theta, gradient) -> (state, theta).

As in the paper, Adam and Yogi start from v = tau^2 and correct no bias; torch.optim.Adam does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.config import OuterOptimizer


@dataclass(frozen=True)
class OptimizerState:
    """What the optimizer remembers. first: momentum m, float32 [P]. second: v, float32 [P] (zeros for SGD)."""

    first: Tensor
    second: Tensor

    def pack(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint keeps."""
        return {"optimizer.first": self.first, "optimizer.second": self.second}

    @classmethod
    def unpack(cls, tensors: Mapping[str, Tensor]) -> OptimizerState:
        """The inverse of `pack`; other names are ignored. Raises: KeyError, when one is missing."""
        return cls(tensors["optimizer.first"], tensors["optimizer.second"])


def initial_state(choice: OuterOptimizer, theta: Tensor) -> OptimizerState:
    """The state before the first round, for theta float32 [P]."""
    start = 0.0 if choice.optimizer == "sgd" else choice.tau**2
    return OptimizerState(torch.zeros_like(theta), torch.full_like(theta, start))


def step(
    choice: OuterOptimizer, state: OptimizerState, theta: Tensor, gradient: Tensor
) -> tuple[OptimizerState, Tensor]:
    """One outer step: theta and gradient float32 [P] -> the new state and theta."""
    return _STEPS[choice.optimizer](choice, state, theta, gradient)


def sgd(
    choice: OuterOptimizer, state: OptimizerState, theta: Tensor, gradient: Tensor
) -> tuple[OptimizerState, Tensor]:
    """Momentum: m <- mu m + g; theta <- theta - eta m (torch.optim.SGD's form of momentum)."""
    m = choice.momentum * state.first + gradient
    return OptimizerState(m, state.second), theta - choice.learning_rate * m


def adam(
    choice: OuterOptimizer, state: OptimizerState, theta: Tensor, gradient: Tensor
) -> tuple[OptimizerState, Tensor]:
    """FedAdam: v <- beta2 v + (1 - beta2) g^2."""
    v = choice.beta2 * state.second + (1 - choice.beta2) * gradient.square()
    return _adaptive(choice, state, v, theta, gradient)


def yogi(
    choice: OuterOptimizer, state: OptimizerState, theta: Tensor, gradient: Tensor
) -> tuple[OptimizerState, Tensor]:
    """FedYogi: v <- v - (1 - beta2) g^2 sign(v - g^2): v forgets a large gradient slowly."""
    squared = gradient.square()
    v = state.second - (1 - choice.beta2) * squared * torch.sign(state.second - squared)
    return _adaptive(choice, state, v, theta, gradient)


def _adaptive(
    choice: OuterOptimizer, state: OptimizerState, v: Tensor, theta: Tensor, gradient: Tensor
) -> tuple[OptimizerState, Tensor]:
    """Both: m <- beta1 m + (1 - beta1) g; theta <- theta - eta m / (sqrt v + tau)."""
    m = choice.beta1 * state.first + (1 - choice.beta1) * gradient
    return OptimizerState(m, v), theta - choice.learning_rate * m / (v.sqrt() + choice.tau)


_Step = Callable[[OuterOptimizer, OptimizerState, Tensor, Tensor], tuple[OptimizerState, Tensor]]
_STEPS: dict[str, _Step] = {"sgd": sgd, "adam": adam, "yogi": yogi}
