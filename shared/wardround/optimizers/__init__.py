"""The coordinator's outer optimizers, one file each: pure functions (state, theta, gradient) -> (state, theta)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from wardround.plugins import Kind
from wardround.settings import Part, Rate

if TYPE_CHECKING:
    from torch import Tensor


class Optimizer(Part):
    """An outer optimizer with its settings. learning_rate: of a step along the hospitals' pooled delta."""

    learning_rate: Rate = 1.0

    def start(self, theta: Tensor) -> dict[str, Tensor]:
        """The state before the first round, by name, for theta float32 [P]: each checkpoint holds it."""
        raise NotImplementedError

    def step(self, state: Mapping[str, Tensor], theta: Tensor, gradient: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """One step down the gradient float32 [P] -> new state and theta; what else is in the state stays as it is."""
        raise NotImplementedError


OPTIMIZERS: Kind[type[Optimizer]] = Kind("optimizer", "wardround.optimizers", "optimizer", "wardround.optimizers")
