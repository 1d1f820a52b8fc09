"""Text of a run, as HTML shows it: no markup of its own, and no letters that cannot be seen."""

from __future__ import annotations

import markupsafe
from markupsafe import Markup

from wardround.text import shown

LONGEST = 2000


def visible(value: object) -> object:
    """What a template is given, before it is escaped; drawings and other markup of our own stay as they are."""
    if isinstance(value, Markup):
        return value
    # The narrow blank before our own per cent signs is no more than a blank.
    return "\u202f".join(shown(part, LONGEST) for part in str(value).split("\u202f"))


def escape(text: object) -> Markup:
    """The text for an element or an attribute."""
    return markupsafe.escape(visible(text))
