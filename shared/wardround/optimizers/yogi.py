"""FedYogi: Reddi et al., "Adaptive Federated Optimization", 2021, algorithm 2."""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.optimizers._adaptive import Adaptive


class Yogi(Adaptive):
    """V forgets a large gradient slowly."""

    name: str = "yogi"

    def second(self, v: Tensor, squared: Tensor) -> Tensor:
        """V <- v - (1 - beta2) g^2 sign(v - g^2)."""
        return v - (1 - self.beta2) * squared * torch.sign(v - squared)


optimizer = Yogi
