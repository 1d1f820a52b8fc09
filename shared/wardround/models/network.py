"""A torch module seen as a function of one parameter vector."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wardround.models.portable import he_uniform
from wardround.vector import Layout


@dataclass(frozen=True, eq=False)
class Network:
    """A module without buffers, its layout, and the vector at which meta-learning starts.

    body: the part of the module before its last linear layer, with the same names of parameters; those of the linear
    layer are the last two of the layout.
    """

    module: nn.Module
    body: nn.Module
    layout: Layout
    start: Tensor

    @classmethod
    def zeros(cls, module: nn.Module, body: nn.Module) -> Network:
        """Start at zero: for a linear model no random direction has to be unlearned."""
        layout = Layout.of(dict(module.named_parameters()))
        return cls(module.requires_grad_(False), body, layout, torch.zeros(layout.size))

    @classmethod
    def he(cls, module: nn.Module, body: nn.Module, name: str) -> Network:
        """Weights of two or more axes from the portable stream `name`; normalisation gains 1, biases 0."""
        layout = Layout.of(dict(module.named_parameters()))
        start = {}
        for key, shape in layout.tensors:
            if len(shape) > 1:
                start[key] = he_uniform(f"{name}/{key}", shape)
            else:
                start[key] = torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
        return cls(module.requires_grad_(False), body, layout, layout.pack(start))

    @cached_property
    def body_layout(self) -> Layout:
        """Of the body: all but the linear layer's weight and bias."""
        return Layout(self.layout.tensors[:-2])

    @property
    def embedding_size(self) -> int:
        """Numbers that the body gives, and the linear layer [outputs, e] takes."""
        _, (_, e) = self.layout.tensors[-2]
        return e

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The module's output at parameters theta float32 [P]."""
        output: Tensor = functional_call(self.module, self.layout.unpack(theta), (x,))
        return output

    def embed(self, theta: Tensor, x: Tensor) -> Tensor:
        """The body's output at theta float32 [at least the body's size], of which only the body is read."""
        body = self.body_layout
        output: Tensor = functional_call(self.body, body.unpack(theta[: body.size]), (x,))
        return output
