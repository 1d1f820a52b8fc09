"""The private head on a frozen encoder's features: a linear classifier, a few hundred numbers."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor, nn

from wardround.models.base import Hidden
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


class MapEncoder(Encoder, Protocol):
    """An encoder that says what lies around each pixel as well, for masks.

    map_size: side of the grid of `maps`, which covers the image whatever its size; 0: this encoder has no maps.
    map_fingerprint: SHA-256, 64 hex digits, of all that defines the maps.
    """

    @property
    def map_size(self) -> int: ...
    @property
    def map_fingerprint(self) -> str: ...

    def maps(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features, map_size, map_size], about mean 0 and variance
        1, bounded. What cannot be computed is refused when the encoder is loaded; where map_size is 0, do not ask.
        """
        ...


class EmbeddedHead(nn.Module):
    """A linear embedding without bias, then a linear layer."""

    def __init__(self, features: int, size: int, classes: int) -> None:
        super().__init__()
        self.embedding = nn.Linear(features, size, bias=False)
        self.linear = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, features] -> logits float32 [n, classes]."""
        logits: Tensor = self.linear(self.embedding(x))
        return logits


@dataclass(frozen=True)
class EncoderHead:
    """A frozen public encoder, an optional linear embedding of its standardised features, a linear head.

    Implements `Model`. The head starts at zero, every class equally likely; the embedding starts as
    the first so many features, which are the greatest principal components.
    """

    encoder: Encoder
    head: Network
    classes: int

    @classmethod
    def of(cls, encoder: Encoder, classes: int, embedding: int = 0) -> EncoderHead:
        """With an embedding of that many numbers, or without one (0)."""
        features = encoder.features
        if not embedding:
            return cls(encoder, Network.zeros(nn.Linear(features, classes), nn.Identity()), classes)
        module = EmbeddedHead(features, embedding, classes)
        network = Network.zeros(module, nn.Sequential(OrderedDict(embedding=module.embedding)))
        first = torch.eye(embedding, features).flatten()
        return cls(encoder, replace(network, start=torch.cat([first, network.start[len(first) :]])), classes)

    @property
    def layout(self) -> Layout:
        """Of the embedding [e, features], if any, then weight [classes, e] and bias [classes]."""
        return self.head.layout

    @property
    def body_size(self) -> int:
        """Of the embedding; 0 without one."""
        return self.head.body_layout.size

    @property
    def embedding_size(self) -> int:
        """e: of the embedding, or the features themselves."""
        return self.head.embedding_size

    @property
    def embedding_gain(self) -> float:
        """Standardised features have a norm of about 1."""
        return sqrt(self.embedding_size)

    @property
    def scaling_size(self) -> int:
        """One shift and scale a feature."""
        return self.encoder.features

    @property
    def fingerprint(self) -> str:
        """The encoder's."""
        return self.encoder.fingerprint

    @property
    def hidden(self) -> Hidden:
        """The embedding, if any."""
        return "linear" if self.body_size else "none"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, features]."""
        return self.encoder(x)

    def summary(self, z: Tensor) -> Tensor:
        """The features themselves, [n, features]."""
        return z

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """W embed + b, float32 [n, classes]."""
        return self.head(theta, standardised(z, shift, scale))

    def embed(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """(z - shift) / scale with rows of norm about 1 (`standardised`), embedded; float32 [n, e]."""
        return self.head.embed(theta, standardised(z, shift, scale))

    def initial(self) -> Tensor:
        """float32 [P]: a head of zeros, an embedding that selects."""
        return self.head.start.clone()
