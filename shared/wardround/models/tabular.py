"""Tables: logistic regression and a small multilayer perceptron."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from torch import Tensor, nn

from wardround.models.network import Network
from wardround.models.scaling import standardised
from wardround.vector import Layout


@dataclass(frozen=True)
class Tabular:
    """A network on standardised columns. Nothing is frozen: `encode` is the identity. Implements `Model`."""

    network: Network
    columns: int
    classes: int
    fingerprint: str

    @classmethod
    def logistic(cls, columns: int, classes: int) -> Tabular:
        """Multinomial logistic regression, starting at zero."""
        return cls(Network.zeros(nn.Linear(columns, classes)), columns, classes, _fingerprint("logistic"))

    @classmethod
    def mlp(cls, columns: int, classes: int, width: int) -> Tabular:
        """One hidden layer of `width` tanh units, whose bounded slopes keep per-patient gradients small."""
        module = nn.Sequential(nn.Linear(columns, width), nn.Tanh(), nn.Linear(width, classes))
        return cls(Network.he(module, "mlp"), columns, classes, _fingerprint("mlp"))

    @property
    def layout(self) -> Layout:
        """Of the network."""
        return self.network.layout

    @property
    def scaling_size(self) -> int:
        """One shift and scale a column."""
        return self.columns

    @property
    def per_patient(self) -> str:
        """Small: vmap."""
        return "vmap"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, columns], as it is."""
        return x

    def summary(self, z: Tensor) -> Tensor:
        """The columns, float32 [n, columns]."""
        return z

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """float32 [n, classes] of the standardised columns."""
        return self.network(theta, standardised(z, shift, scale))

    def initial(self) -> Tensor:
        """float32 [P]: zeros (logistic) or He-uniform weights (mlp), the same on every machine."""
        return self.network.start.clone()


def _fingerprint(family: str) -> str:
    """Nothing is frozen but the family itself."""
    return hashlib.sha256(f"wardround/{family}/1".encode()).hexdigest()
