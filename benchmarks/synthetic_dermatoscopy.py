"""Drawings in the manner of dermatoscopy, to fit an encoder's public components on: no patient and no photograph.

A pigmented spot with an irregular border on skin, often with a second colour inside, hairs, a vignette and a colour
cast. Every number is uniform in a range that was chosen by eye.
"""

from __future__ import annotations

from math import pi

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from wardround.models.portable import uniform
from wardround.models.public import power_law

OVERSAMPLING = 2  # drawn so many times finer, then averaged, so that a hair is thinner than a pixel
HAIRS = 3


class Stream:
    """Random numbers for `count` drawings, the same on every machine: the n-th call gives the n-th numbers."""

    def __init__(self, name: str, count: int, side: int) -> None:
        self.name, self.count, self.side, self.calls = name, count, side, 0

    def _next(self, *shape: int) -> Tensor:
        self.calls += 1
        return uniform(f"wardround/dermatoscopy/{self.name}/{self.calls}", (self.count, *shape))

    def between(self, low: float, high: float) -> Tensor:
        """One number a drawing, float64 [count, 1, 1, 1]."""
        return low + (high - low) * self._next(1, 1, 1)

    def colour(self, *ranges: tuple[float, float]) -> Tensor:
        """Red, green and blue, each between its two numbers: float64 [count, 3, 1, 1]."""
        return torch.cat([self.between(low, high) for low, high in ranges], 1)

    def chance(self, share: float) -> Tensor:
        """True in about this share of the drawings, [count, 1, 1, 1]."""
        return self._next(1, 1, 1) < share

    def texture(self, slope: float) -> Tensor:
        """Noise of amplitude 1 / f^slope and unit variance, float64 [count, 1, side, side]."""
        return power_law(self._next(1, self.side, self.side), torch.tensor(slope), torch.zeros(()))


def images(count: int, side: int, stream: str) -> Tensor:
    """float32 [count, 3, side, side] in [0, 1], the same on every machine up to rounding."""
    fine = OVERSAMPLING * side
    u = Stream(stream, count, fine)
    place = (torch.arange(fine, dtype=torch.float64) + 0.5) / fine - 0.5
    y, x = place[:, None], place
    dy, dx = y - u.between(-0.12, 0.12), x - u.between(-0.12, 0.12)
    drawn = _with_patch(u, _with_spot(u, _skin(u), dy, dx), dy, dx)
    for _ in range(HAIRS):
        drawn = drawn * (1 - 0.7 * _hair(u, y, x))
    radius = (y.square() + x.square()).sqrt()
    drawn = drawn * (1 - u.between(0, 1) * (radius - u.between(0.3, 0.6)).relu())
    drawn = torch.where(u.chance(0.06) & (radius > u.between(0.5, 0.62)), 0.08 * drawn, drawn)
    drawn = drawn * u.colour(*[(0.9, 1.1)] * 3)
    return avg_pool2d(drawn, OVERSAMPLING).clamp(0, 1).float()


def _skin(u: Stream) -> Tensor:
    """Fair to dark, pale to red, slightly uneven."""
    level, pallor = u.between(0.55, 0.95), u.between(0, 1)
    colour = torch.cat([torch.ones_like(level), 0.62 + 0.25 * pallor, 0.55 + 0.35 * pallor * u.between(0.6, 1.2)], 1)
    return level * colour * (1 + u.between(0, 0.04) * u.texture(1.5))


def _with_spot(u: Stream, skin: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """A brown, pink or red spot, elliptic with waves and noise on its border."""
    turn, radius, flattening = u.between(0, pi), u.between(0.1, 0.5), u.between(0.55, 1)
    along, across = dx * turn.cos() + dy * turn.sin(), dy * turn.cos() - dx * turn.sin()
    angle = torch.atan2(across, along)
    distance = (along.square() + (across / flattening).square()).sqrt() / radius
    for waves in (2, 3, 5):
        distance = distance + u.between(0, 0.12) * torch.cos(waves * angle + u.between(0, 2 * pi))
    distance = distance + u.between(0, 0.12) * u.texture(1.6)
    mask = torch.sigmoid((1 - distance) / u.between(0.03, 0.35))
    dark = u.between(0.15, 0.85)
    brown = dark * u.colour((1, 1), (0.5, 0.85), (0.3, 0.85))
    pink = u.colour((0.7, 1), (0.4, 0.7), (0.4, 0.75))
    red = u.colour((0.35, 0.8), (0.05, 0.35), (0.1, 0.45))
    kind = u.between(0, 1)
    colour = torch.where(kind < 0.65, brown, torch.where(kind < 0.85, pink, red))
    colour = colour * (1 + u.between(0, 0.25) * u.texture(1.0) + u.between(0, 0.3) * u.texture(2.0))
    return torch.lerp(skin, colour, mask * u.between(0.3, 1))


def _with_patch(u: Stream, drawn: Tensor, dy: Tensor, dx: Tensor) -> Tensor:
    """In half of the drawings another colour within: regression, a veil, scale or blood."""
    radius = u.between(0.03, 0.2)
    distance = ((dx - u.between(-0.15, 0.15)).square() + (dy - u.between(-0.15, 0.15)).square()).sqrt() / radius
    mask = torch.sigmoid((1 - distance - 0.2 * u.texture(1.5)) / u.between(0.05, 0.4))
    weight = mask * u.chance(0.5) * u.between(0.2, 0.9)
    return torch.lerp(drawn, u.colour((0.2, 1), (0.15, 0.95), (0.15, 0.95)).expand_as(drawn), weight.expand_as(drawn))


def _hair(u: Stream, y: Tensor, x: Tensor) -> Tensor:
    """How much of each place a bent hair covers, [count, 1, side, side]; one drawing in five has this one."""
    turn = u.between(0, pi)
    along, across = x * turn.sin() - y * turn.cos(), x * turn.cos() + y * turn.sin()
    away = (across - u.between(-0.5, 0.5) + 0.1 * u.between(-2, 2) * along.square()).abs()
    return torch.sigmoid((u.between(0.004, 0.012) - away) / 0.004) * u.chance(0.2)
