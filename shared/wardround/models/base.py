"""What a model is to the rest of wardround."""

from __future__ import annotations

from typing import Literal, Protocol

from torch import Tensor

from wardround.vector import Layout

Hidden = Literal["none", "linear", "tanh", "deep"]


class Model(Protocol):
    """A frozen public part, `encode`, and a trained part, `logits`, whose parameters are one vector theta.

    theta is a body, a linear head (weight [classes, e], then bias [classes]), and what a method learns beside them.
    layout: of theta. body_size: numbers of the body. embedding_size: e. embedding_gain: times this, an embedding has a
    variance of about 1 at the start. scaling_size: d, the length of shift and scale. classes: number of outputs.
    fingerprint: SHA-256, 64 hex digits, of everything frozen. hidden: what lies between
    `standardised` z and the head: nothing, a linear map without bias, one layer of tanh units, or something deeper.
    """

    @property
    def layout(self) -> Layout: ...
    @property
    def body_size(self) -> int: ...
    @property
    def embedding_size(self) -> int: ...
    @property
    def embedding_gain(self) -> float: ...
    @property
    def scaling_size(self) -> int: ...
    @property
    def classes(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def hidden(self) -> Hidden: ...

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, *task.input_shape], images in [0, 1], tables as they are -> float32 z [n k, ...], on x's device:
        k examples an input, one after another: 1, or the cells of an image (`Task.cells`).

        Public and frozen, so a hospital encodes an image once and keeps z. Differentiable in x, for heat maps.
        """
        ...

    def summary(self, z: Tensor) -> Tensor:
        """From z [n, ...], float32 [n, d]: features near mean 0 and variance 1, of which `statistics` takes moments."""
        ...

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """From theta float32 [P], z [n, ...], shift and scale float32 [d]: float32 [n, classes].

        Differentiable in theta, and safe under torch.func.vmap over theta, z or both.
        """
        ...

    def embed(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """What the head is linear in: arguments as of `logits`, float32 [n, e]. Reads the body of theta alone."""
        ...

    def initial(self) -> Tensor:
        """Where meta-learning starts: float32 [P], the same on every machine."""
        ...
