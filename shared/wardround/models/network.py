"""A torch module seen as a function of one parameter vector."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from wardround.models.portable import he_uniform
from wardround.vector import Layout


@dataclass(frozen=True, eq=False)
class Network:
    """A module without buffers, its layout, and the vector at which meta-learning starts."""

    module: nn.Module
    layout: Layout
    start: Tensor

    @classmethod
    def zeros(cls, module: nn.Module) -> Network:
        """Start at zero: for a linear model no random direction has to be unlearned."""
        layout = Layout.of(dict(module.named_parameters()))
        return cls(module.requires_grad_(False), layout, torch.zeros(layout.size))

    @classmethod
    def he(cls, module: nn.Module, name: str) -> Network:
        """Weights of two or more axes from the portable stream `name`; normalisation gains 1, biases 0."""
        layout = Layout.of(dict(module.named_parameters()))
        start = {}
        for key, shape in layout.tensors:
            if len(shape) > 1:
                start[key] = he_uniform(f"{name}/{key}", shape)
            else:
                start[key] = torch.ones(shape) if key.endswith("weight") else torch.zeros(shape)
        return cls(module.requires_grad_(False), layout, layout.pack(start))

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """The module's output at parameters theta float32 [P]."""
        output: Tensor = functional_call(self.module, self.layout.unpack(theta), (x,))
        return output
