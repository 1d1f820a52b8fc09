"""The built-in encoder's raw maps: what lies around each pixel, at several scales. Nothing is learned.

The bank of a pixel classifier (Berg et al., "ilastik", 2019): smoothed values, gradient, the two eigenvalues of the
Hessian (a ridge, a blob) and the local spread, over a Gaussian pyramid; and the maps of convolutions with random
weights. All of it is computed by convolutions whose borders repeat the last pixel, so a finding moves with its image.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, max_pool2d, pad, relu

from wardround.models.portable import he_uniform
from wardround.models.raw import opponent

SIDES = {32: 44, 64: 92, 128: 184, 256: 1024}  # canonical side, pixels: the largest image that has it
STRIDE = 4  # pixels of the canonical side to one of the grid
LEVELS = 5  # of the pyramid: 1, 2, 4, 8 and 16 pixels
PER_LEVEL = 5  # value, gradient, greater and smaller eigenvalue, spread
WIDTH, LAYERS = 32, 4  # of the random convolutions, of which each second pixel is taken after a layer
_EPSILON = 0.02  # of an image's contrast: what is weaker is taken for noise
_BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


@dataclass(frozen=True)
class RawMaps:
    """Raw maps of images of one size and number of channels; see `RawFeatures` for what is done to an image before."""

    side: int
    channels: int

    @classmethod
    def of(cls, image_size_px: int, channels: int) -> RawMaps:
        """The canonical side for images of image_size_px: 32 up to 44 px, 64 up to 92, 128 up to 184, else 256."""
        return cls(next(side for side, most in SIDES.items() if image_size_px <= most), channels)

    @property
    def size(self) -> int:
        """Side of the grid."""
        return self.side // STRIDE

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many maps are of brightness, of the pyramid, of random convolutions; D is their sum."""
        return self.channels, LEVELS * PER_LEVEL * self.channels, LAYERS * WIDTH

    def spec(self) -> dict[str, Any]:
        """All that defines these maps, for the encoder's fingerprint."""
        return {
            "maps": "pyramid+random-convolutions/1",
            "side": self.side,
            "channels": self.channels,
            "stride": STRIDE,
            "levels": LEVELS,
            "width": WIDTH,
            "layers": LAYERS,
        }

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, D, size, size]."""
        if x.shape[-2:] != (self.side, self.side):
            x = interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        planes = opponent(x) if self.channels == 3 else x
        mean = planes.mean((-2, -1), keepdim=True)
        contrast = planes.std((-2, -1), keepdim=True) + 0.02
        level = (planes - mean) / contrast[:, :1]
        random, pyramid, convolved = level, [], []
        for number in range(LEVELS):
            pyramid += [self._on_grid(each) for each in _around(level)]
            level = _smoothed(level)[..., ::2, ::2]
            if number < LAYERS:
                random = relu(conv2d(_edged(random, 1), _weights(self.channels, x.device)[number]))
                convolved.append(self._on_grid((random + _EPSILON).log()))
                random = max_pool2d(random, 2)
        return torch.cat([avg_pool2d(planes, STRIDE), *pyramid, *convolved], 1)

    def _on_grid(self, maps: Tensor) -> Tensor:
        """Averaged over a cell of the grid, or interpolated between coarser pixels."""
        if maps.shape[-1] >= self.size:
            return avg_pool2d(maps, maps.shape[-1] // self.size)
        return interpolate(maps, (self.size, self.size), mode="bilinear", align_corners=False)


def _edged(x: Tensor, pixels: int) -> Tensor:
    """With its outermost pixels repeated so many times."""
    return pad(x, (pixels,) * 4, mode="replicate")


def _smoothed(x: Tensor) -> Tensor:
    """By a binomial kernel of 5 x 5, which is close to a Gaussian of deviation 1 (Burt and Adelson, 1983)."""
    line = torch.tensor(_BINOMIAL, device=x.device)
    kernel = (line[:, None] * line).expand(x.shape[1], 1, 5, 5)
    return conv2d(_edged(x, 2), kernel, groups=x.shape[1])


def _around(x: Tensor) -> tuple[Tensor, ...]:
    """PER_LEVEL maps of each plane: what a pixel's surroundings are like, on the scale of the plane's pixels."""
    value = _smoothed(x)
    wide = _edged(value, 1)
    left, right, above, below = wide[..., 1:-1, :-2], wide[..., 1:-1, 2:], wide[..., :-2, 1:-1], wide[..., 2:, 1:-1]
    gradient = ((right - left).square() + (below - above).square()).sqrt() / 2
    across, down = left + right - 2 * value, above + below - 2 * value
    mixed = (wide[..., :-2, :-2] + wide[..., 2:, 2:] - wide[..., :-2, 2:] - wide[..., 2:, :-2]) / 4
    middle, half = (across + down) / 2, (((across - down) / 2).square() + mixed.square()).sqrt()
    spread = (_smoothed(x.square()) - value.square()).clamp(min=0).sqrt()
    ridges = ((each / _EPSILON).asinh() for each in (middle + half, middle - half))
    return value, (gradient + _EPSILON).log(), *ridges, (spread + _EPSILON).log()


@cache
def _weights(channels: int, device: torch.device) -> list[Tensor]:
    sizes = [channels, *[WIDTH] * LAYERS]
    return [
        he_uniform(f"wardround/maps/{channels}/{layer}", (WIDTH, sizes[layer], 3, 3)).to(device)
        for layer in range(LAYERS)
    ]
