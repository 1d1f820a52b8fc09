"""Tables: logistic regression and a small multilayer perceptron."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn

from wardround.models.base import Hidden
from wardround.models.network import Network
from wardround.models.scaling import standardised
from wardround.vector import Layout


@dataclass(frozen=True)
class Tabular:
    """A network on columns that are standardised twice: by public guesses (frozen), then by private statistics.

    centre, spread: the guesses, one number a column; empty for 0 and 1. Implements `Model`.
    """

    network: Network
    columns: int
    classes: int
    fingerprint: str
    centre: tuple[float, ...] = ()
    spread: tuple[float, ...] = ()

    @classmethod
    def logistic(
        cls, columns: int, classes: int, *, centre: tuple[float, ...] = (), spread: tuple[float, ...] = ()
    ) -> Tabular:
        """Multinomial logistic regression, starting at zero."""
        network = Network.zeros(nn.Linear(columns, classes), nn.Identity())
        return cls(network, columns, classes, _fingerprint("logistic", centre, spread), centre, spread)

    @classmethod
    def mlp(
        cls, columns: int, classes: int, width: int, *, centre: tuple[float, ...] = (), spread: tuple[float, ...] = ()
    ) -> Tabular:
        """One hidden layer of `width` tanh units, whose bounded slopes keep per-patient gradients small."""
        module = nn.Sequential(nn.Linear(columns, width), nn.Tanh(), nn.Linear(width, classes))
        network = Network.he(module, module[:-1], "mlp")
        return cls(network, columns, classes, _fingerprint("mlp", centre, spread), centre, spread)

    @property
    def layout(self) -> Layout:
        """Of the network."""
        return self.network.layout

    @property
    def body_size(self) -> int:
        """Of the hidden layer; 0 without one."""
        return self.network.body_layout.size

    @property
    def embedding_size(self) -> int:
        """Hidden units, or the columns themselves."""
        return self.network.embedding_size

    @property
    def embedding_gain(self) -> float:
        """Hidden units and columns have a norm of about 1."""
        return sqrt(self.embedding_size)

    @property
    def scaling_size(self) -> int:
        """One shift and scale a column."""
        return self.columns

    @property
    def hidden(self) -> Hidden:
        """The units of a multilayer perceptron."""
        return "tanh" if self.body_size else "none"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, columns] in their own units -> in units of the public spread around the public centre."""
        if self.centre:
            x = x - x.new_tensor(self.centre)
        return x / x.new_tensor(self.spread) if self.spread else x

    def summary(self, z: Tensor) -> Tensor:
        """The columns, float32 [n, columns]."""
        return z

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """float32 [n, classes] of the standardised columns."""
        return self.network(theta, standardised(z, shift, scale))

    def embed(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """float32 [n, e]: the hidden units, or the standardised columns where there are none."""
        return self.network.embed(theta, standardised(z, shift, scale))

    def initial(self) -> Tensor:
        """float32 [P]: zeros (logistic) or He-uniform weights (mlp), the same on every machine."""
        return self.network.start.clone()


def _fingerprint(family: str, centre: tuple[float, ...], spread: tuple[float, ...]) -> str:
    """What is frozen: the family and the public guesses."""
    return hashlib.sha256(f"wardround/{family}/1 {centre} {spread}".encode()).hexdigest()
