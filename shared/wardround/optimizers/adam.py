"""FedAdam: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 2."""

from __future__ import annotations

from torch import Tensor

from wardround.optimizers._adaptive import Adaptive


class Adam(Adaptive):
    """V is a running mean of g^2."""

    name: str = "adam"

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """V <- beta2 v + (1 - beta2) g^2."""
        return self.beta2 * v + (1 - self.beta2) * squared


optimizer = Adam
