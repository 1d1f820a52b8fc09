"""Tables: logistic regression and a small multilayer perceptron."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import sqrt

from torch import Tensor, nn

from wardround.models.base import Hidden
from wardround.models.columns import Columns
from wardround.models.network import Network
from wardround.models.scaling import standardised
from wardround.vector import Layout


@dataclass(frozen=True)
class Tabular:
    """A network on columns that are standardised twice: by public guesses (frozen), then by private statistics.

    front: the guesses, ranks and flags. Implements `Model`.
    """

    network: Network
    front: Columns
    classes: int
    fingerprint: str

    @classmethod
    def logistic(cls, columns: Columns | int, classes: int) -> Tabular:
        """Multinomial logistic regression, starting at zero. columns: or how many there are."""
        front = Columns(columns) if isinstance(columns, int) else columns
        network = Network.zeros(nn.Linear(front.features, classes), nn.Identity())
        return cls(network, front, classes, _fingerprint("logistic", front))

    @classmethod
    def mlp(cls, columns: Columns | int, classes: int, width: int) -> Tabular:
        """One hidden layer of `width` tanh units, whose bounded slopes keep per-patient gradients small."""
        front = Columns(columns) if isinstance(columns, int) else columns
        module = nn.Sequential(nn.Linear(front.features, width), nn.Tanh(), nn.Linear(width, classes))
        network = Network.he(module, module[:-1], "mlp")
        return cls(network, front, classes, _fingerprint("mlp", front))

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
        """One shift and scale a column, and a flag."""
        return self.front.features

    @property
    def hidden(self) -> Hidden:
        """The units of a multilayer perceptron."""
        return "tanh" if self.body_size else "none"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, columns] in their own units, NaN where one is missing -> float32 [n, columns and flags]."""
        return self.front(x)

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


def _fingerprint(family: str, front: Columns) -> str:
    """What is frozen: the family and the public guesses."""
    spec = "".join(f" {each}" for each in front.spec)
    return hashlib.sha256(f"wardround/{family}/1 {front.centre} {front.spread}{spec}".encode()).hexdigest()
