"""A heat map as SVG: signed points in blue and orange, which colour-blind people tell apart, each with its number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tables import Estimate

NAME_PX, CELL_PX, ROW_PX, GAP_PX, TOP_PX = 178, 46, 24, 12, 78
DEEPEST = 0.15
"""A difference from which on the colour is the deepest."""
# Ends of ColorBrewer's PuOr and RdBu, which stay apart for every kind of colour blindness.
_AHEAD, _BEHIND, _WHITE = (33, 102, 172), (179, 88, 6), (255, 255, 255)
_DARK_FROM = 0.6
_STYLE = (
    "text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;fill:#1d2530}"
    ".soft{fill:#5d6877}.sure{font-weight:700}.end{text-anchor:end}.mid{text-anchor:middle}"
)


def heat_map(
    title: str,
    note: str,
    names: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    cells: Mapping[tuple[str, str, str], Estimate],
) -> str:
    """A file of its own, on white.

    Args:
        title: above it, and for those who cannot see it.
        note: a line below the title.
        names: of the lines.
        groups: columns, by the heading that stands over several.
        cells: by name, heading and column. A number whose interval leaves 0 out is bold; what is not there stays empty.
    """
    lefts, left = {}, float(NAME_PX)
    for heading, columns in groups.items():
        for column in columns:
            lefts[heading, column] = left
            left += CELL_PX
        left += GAP_PX
    width, height = left - GAP_PX + 8, TOP_PX + ROW_PX * len(names) + 8
    parts = [
        f'<text class="sure" x="8" y="18">{escape(title)}</text><text class="soft" x="8" y="36">{escape(note)}</text>'
    ]
    for heading, columns in groups.items():
        middle = lefts[heading, columns[0]] + CELL_PX * len(columns) / 2
        parts.append(f'<text class="mid sure" x="{middle:g}" y="58">{escape(heading)}</text>')
        for column in columns:
            x = lefts[heading, column] + CELL_PX / 2
            parts.append(f'<text class="mid soft" x="{x:g}" y="73">{escape(column)}</text>')
    for place, name in enumerate(names):
        y = TOP_PX + ROW_PX * place
        parts.append(f'<text class="end" x="{NAME_PX - 8}" y="{y + 16}">{escape(name)}</text>')
        for (heading, column), x in lefts.items():
            parts.append(_cell(x, y, cells.get((name, heading, column)), f"{name}, {heading}, {column}"))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title><style>{_STYLE}</style>'
        f'<rect width="{width:g}" height="{height}" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def _cell(x: float, y: float, found: Estimate | None, what: str) -> str:
    box = f'x="{x + 1:g}" y="{y + 1:g}" width="{CELL_PX - 2}" height="{ROW_PX - 2}" rx="2"'
    if found is None:
        return f'<rect {box} fill="none" stroke="#d9d9d4"/>'
    depth = min(abs(found.mean) / DEEPEST, 1.0) ** 0.8
    colour = _mixed(_AHEAD if found.mean > 0 else _BEHIND, depth)
    ink = ' style="fill:#fff"' if depth > _DARK_FROM else ""
    sure = " sure" if abs(found.mean) > found.half_width else ""
    return (
        f'<rect {box} fill="{colour}"><title>{escape(what)}: {found}</title></rect>'
        f'<text class="mid{sure}"{ink} x="{x + CELL_PX / 2:g}" y="{y + 16:g}">{signed(found.mean)}</text>'
    )


def signed(fraction: float) -> str:
    """In points.

    >>> signed(0.0449), signed(-0.0004)
    ('+4.5', '0.0')
    """
    points = round(100 * fraction, 1) + 0.0
    return f"{points:+.1f}" if points else "0.0"


def _mixed(colour: tuple[int, int, int], depth: float) -> str:
    parts = (round(white + depth * (own - white)) for own, white in zip(colour, _WHITE, strict=True))
    return "#" + "".join(f"{part:02x}" for part in parts)
