"""Wavelet scattering in two dimensions, from its definition.

Mallat, "Group Invariant Scattering", 2012; Bruna and Mallat, "Invariant Scattering Convolution Networks", 2013. A path
of length two is U[p2] U[p1] x = | | x * psi_1 | * psi_2 |, over scales j1 < j2; its average over the image is stable to
deformation and does not change when the image is shifted. Nothing in it is learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import cos, exp, pi, sin

import torch
from torch import Tensor

# The mother wavelet of Bruna and Mallat, section 2.1 and their experiments: frequency and width of its envelope.
XI = 3 * pi / 4
SIGMA = 0.8


def morlet(size: int, scale: int, angle: float, slant: float) -> Tensor:
    """Fourier transform of one Morlet wavelet on a size x size grid, float64 [size, size], real.

    psi^(w) = g^(2^j R w - xi) - kappa g^(2^j R w), where g^ is a Gaussian that in space is 1/slant times as long
    across the wave as along it, R turns by `angle` (radians), and kappa makes psi^(0) = 0 (Bruna and Mallat,
    section 2.1).
    """
    frequency = 2 * pi * torch.fft.fftfreq(size, dtype=torch.float64)
    total = torch.zeros(size, size, dtype=torch.float64)
    # The neighbouring periods fold into the grid: at scale 0 the Gaussian reaches over the edge.
    for row in (-2 * pi, 0.0, 2 * pi):
        for column in (-2 * pi, 0.0, 2 * pi):
            v, u = torch.meshgrid(frequency + row, frequency + column, indexing="ij")
            along = 2**scale * (u * cos(angle) + v * sin(angle))
            across = 2**scale * (v * cos(angle) - u * sin(angle)) / slant
            envelope = -0.5 * SIGMA**2 * across.square()
            total += torch.exp(envelope - 0.5 * SIGMA**2 * (along - XI).square())
            total -= exp(-0.5 * (SIGMA * XI) ** 2) * torch.exp(envelope - 0.5 * SIGMA**2 * along.square())
    return total


@dataclass(frozen=True)
class Scattering:
    """First and second order moduli of a size x size image.

    scales: J, wavelets at 2^0 .. 2^(J-1). angles: L, orientations over half a turn. size is divisible by 2^J.
    """

    size: int
    scales: int
    angles: int

    @property
    def first_order(self) -> int:
        """Paths of length one: J L."""
        return self.scales * self.angles

    @property
    def second_order(self) -> int:
        """Paths of length two, j1 < j2: L^2 J (J - 1) / 2."""
        return self.angles**2 * self.scales * (self.scales - 1) // 2

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Moduli of x float32 [n, size, size].

        Returns: the first-order maps |x * psi|, one tensor [n, L, size/2^j, size/2^j] a scale, and the spatial means
        of the second order, float32 [n, second_order].
        """
        first: list[Tensor] = []
        second: list[Tensor] = []
        spectrum = torch.fft.fft2(x)
        for j1 in range(self.scales):
            maps = _modulus(spectrum, j1, self.angles)
            first.append(maps)
            if j1 + 1 < self.scales:
                inner = torch.fft.fft2(maps)
                # At the resolution of `maps` the wavelet of scale j2 is the one of scale j2 - j1.
                steps = range(1, self.scales - j1)
                second += [_modulus(inner, step, self.angles).mean((-2, -1)).flatten(1) for step in steps]
        return first, torch.cat(second, 1)


def _modulus(spectrum: Tensor, scale: int, angles: int) -> Tensor:
    """|x * psi| at every 2^scale-th pixel, for each angle: spectrum [..., s, s] -> [..., L, s/2^scale, s/2^scale].

    Past scale 0 a wavelet leaves nothing of the frequencies beyond its own octave and the next, so they are cut off
    first; taking every other pixel of the rest is folding its spectrum in half in each direction.
    """
    if scale == 0:
        finest = wavelets(spectrum.shape[-1], 0, angles, spectrum.device)
        return _magnitude(spectrum.unsqueeze(-3) * finest)
    size = spectrum.shape[-1] >> (scale - 1)
    bank = wavelets(size, 1, angles, spectrum.device)
    product = _low_frequencies(spectrum, size).unsqueeze(-3) * bank
    half = size // 2
    folded: Tensor = product.reshape(*product.shape[:-2], 2, half, 2, half).sum((-4, -2))
    return _magnitude(folded / 4**scale)


def _magnitude(spectrum: Tensor) -> Tensor:
    magnitude: Tensor = torch.fft.ifft2(spectrum).abs()
    return magnitude


def _low_frequencies(spectrum: Tensor, size: int) -> Tensor:
    """The size x size lowest frequencies of [..., s, s], in torch.fft's order."""
    if spectrum.shape[-1] == size:
        return spectrum
    half = size // 2
    rows = torch.cat([spectrum[..., :half, :], spectrum[..., -half:, :]], -2)
    return torch.cat([rows[..., :half], rows[..., -half:]], -1)


@cache
def wavelets(size: int, scale: int, angles: int, device: torch.device) -> Tensor:
    """The wavelets of one scale, float32 [L, size, size]."""
    # 4 / L: the more directions there are, the narrower each must be to tile the plane.
    turned = [morlet(size, scale, pi * k / angles, 4 / angles) for k in range(angles)]
    return torch.stack(turned).float().to(device)
