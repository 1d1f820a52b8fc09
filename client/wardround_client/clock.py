"""The time as every file of a hospital writes it."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta


def now() -> str:
    """UTC, ISO 8601, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def now_on_grid(since: str, grid_s: float) -> str:
    """The time as whole multiples of grid_s seconds after `since`, rounded up; as it is where grid_s is 0."""
    if grid_s == 0:
        return now()
    begun = datetime.fromisoformat(since)
    steps = max(1, math.ceil((datetime.now(UTC) - begun).total_seconds() / grid_s))
    return (begun + timedelta(seconds=steps * grid_s)).isoformat(timespec="milliseconds")
