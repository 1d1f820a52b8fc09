"""A model is ONE float32 vector plus a layout that says which stretch of it is which tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a model's tensors, in the order in which they lie in the vector.

    >>> Layout((("weight", (3, 2)), ("bias", (3,)))).size
    9
    """

    tensors: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, parameters: Mapping[str, Tensor]) -> Layout:
        """The layout of named tensors, in their own order."""
        return cls(tuple((name, tuple(tensor.shape)) for name, tensor in parameters.items()))

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Elements of each tensor."""
        return tuple(prod(shape) for _, shape in self.tensors)

    @cached_property
    def size(self) -> int:
        """Elements of the whole vector."""
        return sum(self.sizes)

    def size_of(self, name: str) -> int:
        """Elements of one tensor. Raises: KeyError."""
        return dict(zip((name for name, _ in self.tensors), self.sizes, strict=True))[name]

    def __str__(self) -> str:
        """Each tensor's name and shape, in their order: "head.weight 4x32, head.bias 4"."""
        return ", ".join(f"{name} {'x'.join(map(str, shape)) or 1}" for name, shape in self.tensors)

    def pack(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Named tensors -> float32 [size]. Raises: ValueError, if names or shapes are not the layout's."""
        if Layout.of({name: parameters[name] for name, _ in self.tensors if name in parameters}) != self:
            raise ValueError(f"tensors do not fit the layout {self.tensors}")
        return torch.cat([parameters[name].detach().reshape(-1).float() for name, _ in self.tensors])

    def unpack(self, vector: Tensor) -> dict[str, Tensor]:
        """float32 [size] -> named views into it (no copy, differentiable). Raises: ValueError on a wrong length."""
        if vector.shape != (self.size,):
            raise ValueError(f"a vector of shape {tuple(vector.shape)} does not fit a layout of {self.size}")
        pieces = torch.split(vector, list(self.sizes))
        return {name: piece.view(shape) for (name, shape), piece in zip(self.tensors, pieces, strict=True)}
