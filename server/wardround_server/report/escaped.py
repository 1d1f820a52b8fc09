"""Text of a run, as HTML shows it: no markup of its own, and no letters that cannot be seen."""

from __future__ import annotations

import html

from wardround.text import shown


def escape(text: object, quote: bool = True) -> str:
    """The text for an element or an attribute."""
    # The narrow blank before our own per cent signs is no more than a blank.
    return html.escape("\u202f".join(shown(part, 2000) for part in str(text).split("\u202f")), quote)
