"""The built-in encoder without what ONNX lacks: Fourier transforms as products with real matrices, and filters that
resize as two matrices. The same numbers as torch's, up to rounding.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from wardround.models.encoder import GREATEST_VALUE, BuiltinEncoder
from wardround.models.scattering import Scattering, wavelets

Parts = tuple[Tensor, Tensor]
"""Real and imaginary part."""


class BuiltinModule(nn.Module):
    """What a `BuiltinEncoder` computes of images [n, channels, S, S]."""

    def __init__(self, encoder: BuiltinEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        """float32 [n, channels, S, S] in [0, 1] -> features [n, features]."""
        raw = self.encoder.raw
        features = raw.of_side(linearly(x, raw.side), RealWaves(raw.waves))
        return ((features - self.encoder.mean) @ self.encoder.basis).clamp(-GREATEST_VALUE, GREATEST_VALUE)


def linearly(x: Tensor, side: int, *, antialias: bool = True) -> Tensor:
    """`interpolate` with mode "bilinear" of [n, c, h, w] to [n, c, side, side]: it is linear in rows and in columns."""
    if x.shape[-2:] == (side, side):
        return x
    rows, columns = (_filter(int(size), side, antialias) for size in x.shape[-2:])
    return rows @ x @ columns.T


def _filter(size: int, side: int, antialias: bool) -> Tensor:
    """float32 [side, size]: what a line of `size` pixels becomes."""
    lines = torch.eye(size)[:, None, None, :].expand(-1, 1, side, -1)
    resized = interpolate(lines, (side, side), mode="bilinear", align_corners=False, antialias=antialias)
    return resized[:, 0, 0].T.contiguous()


class RealWaves:
    """`Scattering`, with real numbers alone."""

    def __init__(self, waves: Scattering) -> None:
        self.waves = waves

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """See `Scattering`."""
        waves, first, second = self.waves, list[Tensor](), list[Tensor]()
        spectrum = _fourier((x, torch.zeros_like(x)), -1)
        for j1 in range(waves.scales):
            maps = self._modulus(spectrum, j1)
            first.append(maps)
            if j1 + 1 < waves.scales:
                inner = _fourier((maps, torch.zeros_like(maps)), -1)
                steps = range(1, waves.scales - j1)
                second += [self._modulus(inner, step).mean((-2, -1)).flatten(1) for step in steps]
        return first, torch.cat(second, 1)

    def _modulus(self, spectrum: Parts, scale: int) -> Tensor:
        angles, side = self.waves.angles, int(spectrum[0].shape[-1])
        if scale == 0:
            finest = wavelets(side, 0, angles, spectrum[0].device)
            return _magnitude((spectrum[0].unsqueeze(-3) * finest, spectrum[1].unsqueeze(-3) * finest))
        size = side >> (scale - 1)
        coarse = wavelets(size, 1, angles, spectrum[0].device)
        real, imaginary = (_folded(_low(part, size).unsqueeze(-3) * coarse) / 4**scale for part in spectrum)
        return _magnitude((real, imaginary))


def _folded(product: Tensor) -> Tensor:
    """In half in each direction."""
    half = int(product.shape[-1]) // 2
    rows = product[..., :half, :] + product[..., half:, :]
    return rows[..., :half] + rows[..., half:]


def _low(part: Tensor, size: int) -> Tensor:
    """The size x size lowest frequencies."""
    if part.shape[-1] == size:
        return part
    half = size // 2
    rows = torch.cat([part[..., :half, :], part[..., -half:, :]], -2)
    return torch.cat([rows[..., :half], rows[..., -half:]], -1)


def _magnitude(spectrum: Parts) -> Tensor:
    real, imaginary = _fourier(spectrum, 1)
    size = int(real.shape[-1]) ** 2
    return (real.square() + imaginary.square()).sqrt() / size


def _fourier(signal: Parts, sign: int) -> Parts:
    """The transform of rows and columns, with exp(sign 2 pi i jk / n)."""
    n = int(signal[0].shape[-1])
    turn = 2 * pi * ((torch.arange(n)[:, None] * torch.arange(n)) % n).double() / n
    cosine, sine = turn.cos().float(), (sign * turn.sin()).float()
    rows = cosine @ signal[0] - sine @ signal[1], cosine @ signal[1] + sine @ signal[0]
    return rows[0] @ cosine - rows[1] @ sine, rows[1] @ cosine + rows[0] @ sine
