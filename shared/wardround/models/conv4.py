"""Conv4, the few-shot literature's convolutional network (Vinyals et al., "Matching Networks", 2016, section 4.1).

GroupNorm (Wu and He, 2018) stands where the paper has batch normalisation: a batch's statistics would mix patients, so
that no gradient would belong to one patient and clipping would bound nothing. A global mean stands before the last
layer instead of a flattening, so that any image size gives the same parameters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn

from wardround.models.base import Hidden
from wardround.models.network import Network
from wardround.vector import Layout

BLOCKS = 4
GROUPS = 8


class Conv4Body(nn.Module):
    """Four blocks of 3x3 convolution, GroupNorm, ReLU and 2x2 max pooling; then a global mean."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        sizes = [channels, *[width] * BLOCKS]
        # No bias before a normalisation that would remove it.
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairwise(sizes)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(gcd(GROUPS, width), width) for _ in range(BLOCKS))

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] -> float32 [n, width]."""
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = convolution(x)
            # Of one value there is nothing to normalise, and torch refuses it for a batch of one image alone.
            x = norm(x) if x.shape[1:].numel() > gcd(GROUPS, x.shape[1]) else x
            if min(x.shape[-2:]) > 1:
                x = nn.functional.max_pool2d(x, 2)
            x = torch.relu(x)  # after the pooling, which it may change places with: a quarter of the work
        return x.mean((-2, -1))


class Conv4Module(Conv4Body):
    """The body, then a linear layer."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__(channels, width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] -> logits float32 [n, classes]."""
        logits: Tensor = self.linear(super().forward(x))
        return logits


@dataclass(frozen=True)
class Conv4:
    """Conv4 trained whole. Nothing is frozen: `encode` is the identity. Implements `Model`."""

    network: Network
    channels: int
    classes: int

    @classmethod
    def of(cls, channels: int, width: int, classes: int) -> Conv4:
        """Conv4-`width` on images of `channels`."""
        network = Network.he(Conv4Module(channels, width, classes), Conv4Body(channels, width), "conv4")
        return cls(network, channels, classes)

    @property
    def layout(self) -> Layout:
        """Of the network."""
        return self.network.layout

    @property
    def body_size(self) -> int:
        """Of the convolutions and norms."""
        return self.network.body_layout.size

    @property
    def embedding_size(self) -> int:
        """The width of the last block."""
        return self.network.embedding_size

    @property
    def embedding_gain(self) -> float:
        """Means of rectified normalised maps are about 1 as they are."""
        return 1.0

    @property
    def scaling_size(self) -> int:
        """One shift and scale a channel."""
        return self.channels

    @property
    def fingerprint(self) -> str:
        """Nothing is frozen but the family itself."""
        return hashlib.sha256(b"wardround/conv4/1").hexdigest()

    @property
    def hidden(self) -> Hidden:
        """Four blocks."""
        return "deep"

    def encode(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w], as it is but contiguous: one memory format for everything downstream."""
        return x.contiguous()

    def summary(self, z: Tensor) -> Tensor:
        """Mean intensity a channel, in [-1, 1] for images in [0, 1]; float32 [n, channels]."""
        return 2 * z.mean((-2, -1)) - 1

    def logits(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """float32 [n, classes] of images standardised a channel."""
        return self.network(theta, _standardised(z, shift, scale))

    def embed(self, theta: Tensor, z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """The last block's global mean, float32 [n, width]."""
        return self.network.embed(theta, _standardised(z, shift, scale))

    def initial(self) -> Tensor:
        """He-uniform weights, the same on every machine; float32 [P]."""
        return self.network.start.clone()


def _standardised(z: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return (2 * z - 1 - shift[:, None, None]) / scale[:, None, None]
