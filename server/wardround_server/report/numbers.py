"""Numbers as a report writes them, and intervals that are never narrower than what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wardround.proportions import wilson

NOTHING = "\u2013"


@dataclass(frozen=True)
class Cell:
    """A number of a table, with its interval below; range is "" without one. alarm: it is worth one."""

    value: str
    range: str = ""
    alarm: bool = False


def percent(share: float, digits: int = 0) -> str:
    """0.5 -> 50 %."""
    return f"{100 * share:.{digits}f}\u202f%"


def whole_percent(part: int, of: int) -> str:
    """A share in whole per cent that says 0 and 100 only of none and of all."""
    rounded = round(100 * part / of)
    return percent((0 if part == 0 else 100 if part == of else min(max(rounded, 1), 99)) / 100)


def significant(share: float) -> str:
    """In per cent, with the two or three digits that matter, and without the sign."""
    value = 100 * float(share)
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """A time span for a reader."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def limits(cell: Mapping[str, Any], patients: int = 0) -> tuple[float, float, float]:
    """(value, low, high) of a proportion; where nothing varied, as wide as so many patients allow."""
    value = float(cell["value"] if "value" in cell else cell["mean"])
    low, high = float(cell.get("low", value)), float(cell.get("high", value))
    return (value, *wilson(value, patients)) if patients and not low < high else (value, low, high)
