"""The public images on which the built-in encoder's principal components are fitted, and the fit of both kinds.

No patient and no photograph: noise with a power-law spectrum, as natural and medical images have (Field, "Relations
between the statistics of natural images and the response properties of cortical cells", 1987), with soft shapes of
random size, place and contrast on it. `python -m wardround.models.public FOLDER` makes what the package ships.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import pi
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from wardround.models.portable import uniform
from wardround.models.raw import SCALES, RawFeatures
from wardround.models.raw_maps import SIDES, RawMaps

IMAGES, PORTION = 1500, 100
COMPONENTS = 64
SHAPES = 3
WEIGHTS = (0.25, 1.0, 0.03)  # of brightness and colour, scattering, random convolutions
# Real images lie further out than these; half the spread brings theirs to about 1.
SPREAD = 0.5
# A raw feature that hardly varies here may vary there; it is not blown up.
LEAST_DEVIATION = 0.1
MAP_IMAGES, PIXELS = 200, 100  # of each image, where its maps are fitted
MAP_WEIGHTS = (0.25, 1.0, 0.3)  # of brightness, pyramid, random convolutions
MAP_SPREAD = 0.8  # a pixel of a real image lies hardly further out than one of these


def images(count: int, side: int, channels: int, stream: str = "public") -> Tensor:
    """float32 [count, channels, side, side] in [0, 1], the same on every machine up to rounding."""
    u = uniform(f"wardround/{stream}/numbers", (count, 24 + 16 * SHAPES))
    scalars = [column[:, None, None, None] for column in u[:, :8].T]
    slope, level, contrast, grain, blur, order, colour, _ = scalars
    field = power_law(uniform(f"wardround/{stream}/noise", (count, channels, side, side)), 0.8 + 2.0 * slope, colour)
    for shape in range(SHAPES):
        field = field + _shape(side, channels, u[:, 16 + 16 * shape : 32 + 16 * shape])
    field = field / field.std((1, 2, 3), keepdim=True)
    speckle = 0.6 * grain.square() * 12**0.5 * (uniform(f"wardround/{stream}/grain", tuple(field.shape)) - 0.5)
    # Either the optics blur and the detector adds grain, or an image was enlarged and all of it is smooth.
    field = torch.where(order < 0.5, _blurred(field, blur) + speckle, _blurred(field + speckle, blur))
    tint = 0.6 * (uniform(f"wardround/{stream}/tint", (count, channels, 1, 1)) - 0.5) if channels > 1 else 0.0
    drawn: Tensor = 0.15 + 0.7 * level + tint + (0.03 + 0.22 * contrast) * field
    return (drawn * _body(side, u[:, -8:])).clamp(0, 1).float()


def _body(side: int, u: Tensor) -> Tensor:
    """Half of the images show a body on black, as most radiographs and slices do; float64 [count, 1, side, side]."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side - 0.5
    dy, dx = place[None, :, None] - 0.1 * (u[:, 0, None, None] - 0.5), place - 0.1 * (u[:, 1, None, None] - 0.5)
    height, width = 0.28 + 0.3 * u[:, 2, None, None], 0.28 + 0.3 * u[:, 3, None, None]
    # An exponent of 2 draws an ellipse, a larger one a rounded box.
    power = 2 + 4 * u[:, 4, None, None]
    distance = ((dy / height).abs() ** power + (dx / width).abs() ** power) ** (1 / power)
    mask = torch.sigmoid((1 - distance) / (0.02 + 0.06 * u[:, 5, None, None]))
    return torch.where(u[:, 6, None, None] < 0.5, mask, torch.ones(()).double())[:, None]


def _radius(side: int) -> Tensor:
    """|f| in cycles a pixel on torch.fft's grid, float64 [side, side]."""
    frequency = torch.fft.fftfreq(side, dtype=torch.float64)
    radius: Tensor = (frequency[:, None].square() + frequency[None].square()).sqrt()
    return radius


def power_law(white: Tensor, slope: Tensor, colour: Tensor) -> Tensor:
    """White noise [count, channels, side, side] -> noise of amplitude 1 / f^slope and unit variance.

    The channels share most of it, as those of photographs do: `colour` in [0, 1] says how much they do not.
    """
    white = white - 0.5
    if white.shape[1] > 1:
        white = white.mean(1, keepdim=True) + 0.3 * colour.square() * white
    side = white.shape[-1]
    field: Tensor = torch.fft.ifft2(torch.fft.fft2(white) * _radius(side).clamp(min=1 / side) ** -slope).real
    return field / field.std((1, 2, 3), keepdim=True)


def _blurred(field: Tensor, blur: Tensor) -> Tensor:
    """Gaussian blur of standard deviation 0 to 1.5 pixels, as `blur` in [0, 1] says."""
    transfer = torch.exp(-0.5 * (2 * pi * _radius(field.shape[-1]) * 1.5 * blur).square())
    blurred: Tensor = torch.fft.ifft2(torch.fft.fft2(field) * transfer).real
    return blurred


def _shape(side: int, channels: int, u: Tensor) -> Tensor:
    """One soft-edged ellipse an image: filled, hollow or striped; present in two images of three."""
    place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    dy = place[None, :, None] - u[:, 0, None, None]
    dx = place[None, None, :] - u[:, 1, None, None]
    turn = (pi * u[:, 2])[:, None, None]
    along, across = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
    radius = (0.03 + 0.4 * u[:, 3].square())[:, None, None]
    distance = (along.square() + (across / (0.25 + 0.75 * u[:, 4, None, None])).square()).sqrt() / radius
    softness = (0.03 + 0.3 * u[:, 5])[:, None, None]
    body = torch.sigmoid((1 - distance) / softness)
    ring = body - torch.sigmoid((0.7 - distance) / softness)
    stripes = body * torch.cos(2 * pi * (2 + 6 * u[:, 6])[:, None, None] * along / radius / 4)
    kind = (3 * u[:, 7]).long()[:, None, None]
    drawn = torch.where(kind == 0, body, torch.where(kind == 1, ring, stripes))
    strength = 4 * (u[:, 8] - 0.5) * (u[:, 9] < 2 / 3)
    colour = 1 + 0.8 * (u[:, 10 : 10 + channels] - 0.5) if channels > 1 else torch.ones(len(u), 1)
    return (strength[:, None] * colour)[:, :, None, None] * drawn[:, None]


def fit(
    features: Tensor, groups: Sequence[int], weights: Sequence[float] = WEIGHTS, spread: float = SPREAD
) -> dict[str, Tensor]:
    """Raw features [n, D] of public images, in groups of these sizes -> mean [D] and basis [D, COMPONENTS], float32.

    Each raw feature is brought to unit variance and each group to its share `weights` of variance, so that many
    features do not outvote few; then the principal components are taken, each scaled to standard deviation `spread`:
    (raw - mean) @ basis has spread^2 times the identity as covariance over the public images.
    """
    raw = features.double()
    mean, deviation = raw.mean(0), raw.std(0).clamp(min=LEAST_DEVIATION)
    weight = torch.cat(
        [torch.full((size,), (share / size) ** 0.5) for size, share in zip(groups, weights, strict=True)]
    )
    standardised = (raw - mean) / deviation * weight
    _, singular, right = torch.linalg.svd(standardised, full_matrices=False)
    scale = spread * (len(raw) - 1) ** 0.5 / singular[:COMPONENTS]
    basis = right[:COMPONENTS].T * scale * (weight / deviation)[:, None]
    return {"mean": mean.float(), "basis": basis.float().contiguous()}


def fit_all(raw: RawFeatures, count: int = IMAGES) -> dict[str, Tensor]:
    """`fit` on `count` public images, drawn in portions to keep memory flat."""
    portions = range(0, count, PORTION)
    drawn = [raw(images(min(PORTION, count - at), raw.side, raw.channels, f"public/{at}")) for at in portions]
    return fit(torch.cat(drawn), raw.groups)


def fit_maps(raw: RawMaps, count: int = MAP_IMAGES) -> dict[str, Tensor]:
    """`fit` on PIXELS random places of the grid in each of `count` public images."""
    rows = [_places(raw, f"maps/{at}") for at in range(0, count, PORTION)]
    return fit(torch.cat(rows), raw.groups, MAP_WEIGHTS, MAP_SPREAD)


def _places(raw: RawMaps, stream: str) -> Tensor:
    """float32 [PORTION PIXELS, D]."""
    drawn = images(PORTION, raw.side, raw.channels, stream)
    places = (uniform(f"wardround/{stream}/places", (PORTION, PIXELS)) * raw.size**2).long()
    rows = [raw(drawn[at : at + 1])[0].flatten(1).T[places[at]] for at in range(PORTION)]
    return torch.cat(rows)


def main(folder: Path) -> None:
    """Fit a basis for every canonical side and number of channels, and write them to two safetensors files."""
    metadata = {"wardround": "principal components of public synthetic images"}
    pooled = [(raw, fit_all(raw)) for raw in (RawFeatures(side, channels) for side in SCALES for channels in (1, 3))]
    maps = [(raw, fit_maps(raw)) for raw in (RawMaps(side, channels) for side in SIDES for channels in (1, 3))]
    save_file(_named(pooled), folder / "public_components.safetensors", metadata=metadata)
    save_file(_named(maps), folder / "public_map_components.safetensors", metadata=metadata)


def _named(fitted: Sequence[tuple[RawFeatures | RawMaps, dict[str, Tensor]]]) -> dict[str, Tensor]:
    return {f"{raw.side}/{raw.channels}/{name}": each for raw, found in fitted for name, each in found.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
