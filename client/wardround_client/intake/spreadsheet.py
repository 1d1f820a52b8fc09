"""CSV files that a spreadsheet may open."""

from __future__ import annotations

import re

from wardround.text import shown

# Fullwidth signs are formulas in some languages; cells may be cut at a semicolon or a tab, which commas do not protect.
_FORMULA = re.compile(r"^\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_BEHIND_A_CUT = re.compile(r"(?<=[;|])(?=\s*[=+\-@\uff1d\uff0b\uff0d\uff20])")
_LONGEST = 30_000  # characters; a spreadsheet's cell holds 32,767


def harmless(value: object) -> object:
    """A cell that a spreadsheet shows and never computes: whoever names a run or a file must not run a formula here.

    Control characters and the like are written out (`wardround.text`): none reaches the terminal of a reader.
    """
    if not isinstance(value, str):
        return value
    cell = _BEHIND_A_CUT.sub("'", shown(value, _LONGEST))
    return f"'{cell}" if _FORMULA.match(value) or _FORMULA.match(cell) else cell
