"""How well a share is known from few."""

from __future__ import annotations

from math import sqrt

_Z95 = 1.96


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion over so many (JASA 22, 1927): of 2 of 2 it is 0.34 to 1."""
    if count <= 0:
        return 0.0, 1.0
    spread = _Z95 * sqrt(share * (1 - share) / count + _Z95**2 / (4 * count**2))
    middle, scale = share + _Z95**2 / (2 * count), 1 + _Z95**2 / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
