"""A model, and numbers that a method learns beside it: learning rates, a comparing network, a temperature."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from wardround.models.base import Hidden, Model
from wardround.vector import Layout


@dataclass(frozen=True, eq=False)
class Extended:
    """A model whose vector goes on behind its own parameters. Implements `Model`.

    model: the one that is extended. beside: layout of what is added. start: float32 [added], where it starts.
    """

    model: Model
    beside: Layout
    start: Tensor

    @classmethod
    def of(cls, model: Model, added: dict[str, Tensor]) -> Extended:
        """The model and these tensors, which are where learning starts; behind what a model was extended by before."""
        beside = Layout.of(added)
        start = beside.pack(added)
        if isinstance(model, Extended):
            beside, start = Layout(model.beside.tensors + beside.tensors), torch.cat([model.start, start])
            model = model.model
        return cls(model, beside, start)

    @cached_property
    def layout(self) -> Layout:
        """The model's, then what is added."""
        return Layout(self.model.layout.tensors + self.beside.tensors)

    @property
    def body_size(self) -> int:
        """The model's."""
        return self.model.body_size

    @property
    def embedding_size(self) -> int:
        """The model's."""
        return self.model.embedding_size

    @property
    def embedding_gain(self) -> float:
        """The model's."""
        return self.model.embedding_gain

    @property
    def scaling_size(self) -> int:
        """The model's."""
        return self.model.scaling_size

    @property
    def classes(self) -> int:
        """The model's."""
        return self.model.classes

    @property
    def fingerprint(self) -> str:
        """The model's: what is added is learned, not frozen."""
        return self.model.fingerprint

    @property
    def hidden(self) -> Hidden:
        """The model's."""
        return self.model.hidden

    def encode(self, x: Tensor) -> Tensor:
        """The model's."""
        return self.model.encode(x)

    def summary(self, z: Tensor) -> Tensor:
        """The model's."""
        return self.model.summary(z)

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The model's, at its own part of theta float32 [P]."""
        return self.model.logits(theta[: self.model.layout.size], z, shift, scale)

    def embed(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The model's."""
        return self.model.embed(theta, z, shift, scale)

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        """What is added, by name: views into theta float32 [P]."""
        return self.beside.unpack(theta[self.model.layout.size :])

    def initial(self) -> Tensor:
        """The model's start, then that of what is added."""
        return torch.cat([self.model.initial(), self.start])
