"""The terminal: text is shown as text. No markup in it is obeyed, no escape sequence or line break of it gets through.

Only what the program itself puts around a text (a style, a table's lines, the cursor of a bar) is ever a control.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Span, Text

from wardround.text import shown

LONGEST = 40_000  # characters of one text: more than the longest list of classes


class Screen(Console):
    """A console for texts from anywhere; styles are given as `style=`, or as a `Text` of the program's own."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False} | options)

    def render_str(self, text: str, **options: Any) -> Text:
        """See Console; a text is one line."""
        return super().render_str(shown(text, LONGEST), **options | {"markup": False, "emoji": False})

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """See Console; of a `Text` the letters are shown, and its styles are kept where it is harmless already."""
        if isinstance(renderable, Text):
            renderable = harmless(renderable)
        return super().render(renderable, options)


def harmless(text: Text) -> Text:
    """The same text, or one in the same styles that shows what cannot be seen."""
    line = text.plain.removesuffix("\n")
    if shown(line, LONGEST) == line:
        return text
    pieces = [shown(letter) for letter in line]
    starts = list(accumulate(map(len, pieces), initial=0))
    spans = [
        Span(starts[min(span.start, len(line))], starts[min(span.end, len(line))], span.style) for span in text.spans
    ]
    return Text(
        "".join(pieces)[:LONGEST],
        style=text.style,
        justify=text.justify,
        overflow=text.overflow,
        no_wrap=text.no_wrap,
        end=text.end,
        spans=spans,
    )
