"""The private head on a frozen encoder's features: a linear classifier, a few hundred numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from wardround.models.network import Network
from wardround.models.scaling import standardised
from wardround.vector import Layout


class Encoder(Protocol):
    """A frozen public map of images to features.

    features: length of its output. fingerprint: SHA-256, 64 hex digits, of all that defines it.
    """

    @property
    def features(self) -> int: ...
    @property
    def fingerprint(self) -> str: ...

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features], about mean 0 and variance 1."""
        ...


@dataclass(frozen=True)
class EncoderHead:
    """A frozen public encoder, then a linear head on its standardised features. Implements `Model`."""

    encoder: Encoder
    head: Network
    classes: int

    @classmethod
    def of(cls, encoder: Encoder, classes: int) -> EncoderHead:
        """The head starts at zero: every class equally likely."""
        return cls(encoder, Network.zeros(nn.Linear(encoder.features, classes)), classes)

    @property
    def layout(self) -> Layout:
        """Of weight [classes, features] and bias [classes]."""
        return self.head.layout

    @property
    def scaling_size(self) -> int:
        """One shift and scale a feature."""
        return self.encoder.features

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint

    @property
    def per_patient(self) -> str:
        """A linear head is small: vmap."""
        return "vmap"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features]."""
        return self.encoder(x)

    def summary(self, z: Tensor) -> Tensor:
        """The features themselves, [n, features]."""
        return z

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """W (z - shift) / scale + b with inputs of norm about 1 (`standardised`), float32 [n, classes]."""
        return self.head(theta, standardised(z, shift, scale))

    def initial(self) -> Tensor:
        """Zeros, float32 [P]."""
        return self.head.start.clone()
