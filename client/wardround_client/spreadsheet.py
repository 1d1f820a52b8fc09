"""CSV files that a spreadsheet may open."""

from __future__ import annotations

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def harmless(value: object) -> object:
    """A cell that a spreadsheet shows and never computes: whoever names a run or a file must not run a formula here."""
    return f"'{value}" if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA) else value
