"""The built-in encoder's raw features: scattering, and convolutions with random weights. Nothing is learned."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, interpolate, max_pool2d, relu

from wardround.models.portable import he_uniform
from wardround.models.scattering import Scattering

SCALES = {32: 3, 64: 4, 128: 5}  # canonical side, pixels: scales of wavelets, J
ANGLES = 4
WIDTH, LAYERS = 64, 4  # of the random convolutions
BATCH = 16  # the working set stays in the processor's cache
Waves = Callable[[Tensor], tuple[list[Tensor], Tensor]]
_EPSILON = 0.02  # of an image's contrast: what is weaker is taken for noise


@dataclass(frozen=True)
class RawFeatures:
    """Raw features of images of one size and number of channels.

    An image is resized to the nearest canonical side, RGB is turned into brightness and two colour differences, and
    each image's own brightness and contrast are taken out (and stay as features), because window settings and
    exposure differ between hospitals.
    """

    side: int
    channels: int

    @classmethod
    def of(cls, image_size_px: int, channels: int) -> RawFeatures:
        """The canonical side for images of image_size_px: 32 up to 44 px, 64 up to 92 px, else 128."""
        return cls(32 if image_size_px <= 44 else 64 if image_size_px <= 92 else 128, channels)

    @property
    def waves(self) -> Scattering:
        """Of one plane of an image of the canonical side."""
        return Scattering(self.side, SCALES[self.side], ANGLES)

    @property
    def groups(self) -> tuple[int, int, int]:
        """How many features are of brightness and colour, of scattering, of random convolutions; D is their sum."""
        waves = self.waves
        return 4 * self.channels, (2 * waves.first_order + waves.second_order) * self.channels, (LAYERS + 2) * WIDTH

    def spec(self) -> dict[str, Any]:
        """All that defines these features, for the encoder's fingerprint."""
        return {
            "features": "scattering+random-convolutions/1",
            "side": self.side,
            "channels": self.channels,
            "scales": SCALES[self.side],
            "angles": ANGLES,
            "width": WIDTH,
            "layers": LAYERS,
        }

    def __call__(self, x: Tensor) -> Tensor:
        """float32 [n, channels, h, w] in [0, 1] -> float32 [n, D], in batches of BATCH to keep memory flat."""
        return torch.cat([self._batch(part) for part in torch.split(x.contiguous(), BATCH)])

    def _batch(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.side, self.side):
            x = interpolate(x, (self.side, self.side), mode="bilinear", antialias=True, align_corners=False)
        return self.of_side(x, self.waves)

    def of_side(self, x: Tensor, waves: Waves) -> Tensor:
        """Of images of the canonical side, float32 [n, D]. waves: `Scattering`, however it is computed."""
        planes = opponent(x) if self.channels == 3 else x
        mean = planes.mean((-2, -1), keepdim=True)
        contrast = planes.std((-2, -1), keepdim=True) + 0.02
        # Colour is measured against the contrast of brightness: on its own it may be nothing but noise.
        planes = (planes - mean) / contrast[:, :1]
        intensity = torch.cat([mean.flatten(1), contrast.flatten(1).log(), _moments(planes)], 1)
        scattered = [_scattering(planes[:, channel], waves) for channel in range(self.channels)]
        return torch.cat([intensity, *scattered, _random_convolutions(planes)], 1)


def opponent(x: Tensor) -> Tensor:
    """RGB [n, 3, ...] -> brightness, red against green, yellow against blue, the same shape."""
    red, green, blue = x.unbind(1)
    return torch.stack([(red + green + blue) / 3, red - green, (red + green) / 2 - blue], 1)


def _moments(planes: Tensor) -> Tensor:
    """Skewness and spread of the tails of each standardised plane: [n, 2 channels]."""
    cubed = planes.pow(3).mean((-2, -1))
    fourth = planes.pow(4).mean((-2, -1))
    return torch.cat([cubed.sign() * cubed.abs().log1p(), fourth.log1p()], 1)


def _scattering(plane: Tensor, waves: Waves) -> Tensor:
    """[n, side, side] -> logarithms of the scattering means, and of each first-order map's largest values."""
    first, second = waves(plane)
    means = torch.cat([maps.mean((-2, -1)) for maps in first], 1)
    # A small finding moves an average over the image little, and a maximum much.
    peaks = torch.cat([avg_pool2d(maps, 2).amax((-2, -1)) for maps in first], 1)
    return (torch.cat([means, second, peaks], 1) + _EPSILON).log()


def _random_convolutions(planes: Tensor) -> Tensor:
    """Means of each layer of an untrained Conv4, and maxima of its last two: [n, (LAYERS + 2) WIDTH]."""
    pooled = []
    for layer, weight in enumerate(_weights(planes.shape[1], planes.device)):
        planes = relu(conv2d(planes, weight, padding=1))
        pooled.append(planes.mean((-2, -1)))
        if layer >= LAYERS - 2:
            pooled.append(planes.amax((-2, -1)))
        planes = max_pool2d(planes, 2)
    return (torch.cat(pooled, 1) + _EPSILON).log()


@cache
def _weights(channels: int, device: torch.device) -> list[Tensor]:
    sizes = [channels, *[WIDTH] * LAYERS]
    return [
        he_uniform(f"wardround/encoder/{channels}/{layer}", (WIDTH, sizes[layer], 3, 3)).to(device)
        for layer in range(LAYERS)
    ]
