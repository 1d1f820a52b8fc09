"""Encoders made of encoders: for the cells of an image, for the slices of a volume, for several inputs of a patient."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wardround.models.columns import Columns
from wardround.models.head import Encoder, MapEncoder

_AT_ONCE = 16  # slices that are encoded together: memory stays flat, whatever the depth


@dataclass(frozen=True, eq=False)
class Cells:
    """The maps of an encoder over a grid of `side` x `side` cells: each cell is an example."""

    encoder: MapEncoder
    side: int

    @property
    def features(self) -> int:
        """Channels of the maps."""
        return self.encoder.features

    @property
    def fingerprint(self) -> str:
        """Of the encoder, and the grid."""
        return _fingerprint("cells", self.side, self.encoder.map_fingerprint)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, S, S] -> float32 [n side^2, features], an image's cells row by row."""
        return self.of_maps(self.encoder.maps(x))

    def of_maps(self, maps: Tensor) -> Tensor:
        """float32 [n, features, m, m] -> float32 [n side^2, features]."""
        if maps.shape[-1] != self.side:
            antialias = maps.shape[-1] > self.side
            maps = interpolate(maps, (self.side, self.side), mode="bilinear", antialias=antialias, align_corners=False)
        return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


@dataclass(frozen=True, eq=False)
class Slices:
    """The slices of a volume through an encoder: mean and maximum of each feature over those that are not black."""

    encoder: Encoder

    @property
    def features(self) -> int:
        """Means, then maxima."""
        return 2 * self.encoder.features

    @property
    def fingerprint(self) -> str:
        """Of the encoder, and what is done with its features."""
        return _fingerprint("slices", "mean max", self.encoder.fingerprint)

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, depth, S, S] -> float32 [n, features]."""
        return torch.stack([self._pooled(volume) for volume in x])

    def _pooled(self, volume: Tensor) -> Tensor:
        slices = volume.transpose(0, 1)
        there = slices.flatten(1).amax(1) > 0
        slices = slices[there] if there.any() else slices[:1]
        z = torch.cat([self.encoder(part.contiguous()) for part in torch.split(slices, _AT_ONCE)])
        return torch.cat([z.mean(0), z.amax(0)])


@dataclass(frozen=True, eq=False)
class Together:
    """Several inputs, each through its encoder: all features, then 1 or 0 for whether each input is there.

    A missing input has features of 0, which is what a public mean is. shapes: of the inputs, in their order.
    """

    parts: tuple[Encoder | Columns, ...]
    shapes: tuple[tuple[int, ...], ...]

    @property
    def features(self) -> int:
        """Of all, and a flag each."""
        return sum(each.features for each in self.parts) + len(self.parts)

    @property
    def fingerprint(self) -> str:
        """Of all."""
        return _fingerprint("together", *(each.fingerprint for each in self.parts))

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, numbers], the inputs one after another, NaN where one is missing -> float32 [n, features]."""
        pieces = torch.split(x, [math.prod(shape) for shape in self.shapes], 1)
        there = [~piece.isnan().all(1, keepdim=True) for piece in pieces]
        encoded = [
            torch.where(known, part(_shaped(part, piece, shape)), 0.0)
            for part, piece, shape, known in zip(self.parts, pieces, self.shapes, there, strict=True)
        ]
        return torch.cat([*encoded, *(known.to(x.dtype) for known in there)], 1)


def _shaped(part: Encoder | Columns, piece: Tensor, shape: Sequence[int]) -> Tensor:
    """As the part takes it: a table keeps its gaps, a picture has none."""
    return piece if isinstance(part, Columns) else torch.nan_to_num(piece, nan=0.0).view(-1, *shape)


def _fingerprint(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
