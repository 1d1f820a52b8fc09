"""Charts as inline SVG: no script, no network, colours from the page's style sheet, so they follow light and dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from itertools import pairwise
from textwrap import wrap

from markupsafe import Markup

from wardround.web.escaped import escape

Points = Sequence[tuple[float, float]]
LABEL_LETTERS = 14  # of a line below a group of bars, at the size of a small screen


@dataclass(frozen=True)
class Curve:
    """One curve. style: a class of style.css (`main`, `second`, `third`, `fourth`, `faint`, `limit`)."""

    label: str
    points: Points
    style: str = "main"


@dataclass(frozen=True)
class Frame:
    """A drawing's size and its plot area, in px, and the values at the area's edges."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Values -> px."""
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return (
            self.left + across * (self.width - self.left - self.right),
            self.height - self.bottom - up * (self.height - self.top - self.bottom),
        )


def style_sheet() -> str:
    """The colours, light and dark, and what drawings need of a style sheet; both sides' pages begin with it."""
    return files(__package__).joinpath("static", "charts.css").read_text(encoding="utf-8")


def line_chart(
    lines: Sequence[Curve],
    *,
    title: str,
    x_label: str,
    y_label: str,
    percent: bool = False,
    y_range: tuple[float, float] | None = None,
    marks: Sequence[tuple[float, str]] = (),
    width: int = 520,
    height: int = 260,
) -> Markup:
    """Curves over rounds. marks: horizontal dashed lines, (value, what it is). An empty chart says so."""
    values = [p for line in lines for p in line.points]
    if not values:
        return Markup(f'<p class="empty">{escape(title)}: nothing was measured.</p>')
    xs = [x for x, _ in values]
    low, high = y_range or _range([y for _, y in values] + [v for v, _ in marks])
    ticks = nice_ticks(low, high)
    frame = Frame(
        width, height, 48, 16, 34, 46, (min(xs), max(max(xs), min(xs) + 1)), (min(low, ticks[0]), max(high, ticks[-1]))
    )
    parts = [_grid(frame, ticks, percent), _x_axis(frame, x_label)]
    parts.append(f'<text class="axis" x="{frame.left - 40}" y="14">{escape(y_label)}</text>')
    for value, what in marks:
        x, y = frame.at(frame.x[1], value)
        parts.append(f'<line class="mark" x1="{frame.left}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="note" x="{x:.1f}" y="{y - 4:.1f}" text-anchor="end">{escape(what)}</text>')
    parts += [_curve(frame, line, percent) for line in lines]
    return _svg(frame, title, "".join(parts))


def spark(
    lines: Sequence[Curve], *, title: str, x: tuple[float, float], y: tuple[float, float], percent: bool
) -> Markup:
    """A small multiple: curves on shared axes with the last value written at its end."""
    frame = Frame(210, 74, 4, 46, 8, 8, x, y)
    base = frame.at(x[0], y[0])[1]
    parts = [f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{base:.1f}" y2="{base:.1f}"/>']
    for line in lines:
        parts.append(_curve(frame, line, percent))
        if line.points:
            px, py = frame.at(*line.points[-1])
            parts.append(f'<circle class="dot {line.style}" cx="{px:.1f}" cy="{py:.1f}" r="2.5"/>')
            shown = number(line.points[-1][1], percent)
            parts.append(f'<text class="value {line.style}" x="{px + 7:.1f}" y="{py + 4:.1f}">{shown}</text>')
    return _svg(frame, title, "".join(parts), "spark")


@dataclass(frozen=True)
class Bar:
    """One bar with its interval."""

    value: float
    low: float
    high: float
    style: str
    label: str


def bar_chart(
    groups: Sequence[tuple[str, Sequence[Bar]]], *, title: str, chance: float | None, y_label: str, x_label: str = ""
) -> Markup:
    """Groups of bars in percent, each with its interval and its value written above."""
    frame = Frame(520, 290, 48, 58, 42, 60, (0, len(groups)), (0, 1))
    parts = [_grid(frame, [0, 0.25, 0.5, 0.75, 1.0], True)]
    parts.append(f'<text class="axis" x="{frame.left - 40}" y="14">{escape(y_label)}</text>')
    for index, (name, bars) in enumerate(groups):
        wide = 0.62 / max(len(bars), 1)
        for place, bar in enumerate(bars):
            left, top = frame.at(index + 0.19 + place * wide, bar.value)
            right, base = frame.at(index + 0.19 + (place + 0.92) * wide, 0)
            middle, shown = (left + right) / 2, number(bar.value, True)
            _, high = frame.at(0, min(bar.high, 1))
            _, low = frame.at(0, max(bar.low, 0))
            parts.append(
                f'<rect class="bar {bar.style}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{max(base - top, 0):.1f}" rx="2"><title>{escape(bar.label)}: {shown}</title></rect>'
                f'<line class="whisker" x1="{middle:.1f}" x2="{middle:.1f}" y1="{high:.1f}" y2="{low:.1f}"/>'
                f'<text class="value" text-anchor="middle" x="{middle:.1f}" y="{min(top, high) - 5:.1f}">{shown}</text>'
            )
        x, _ = frame.at(index + 0.5, 0)
        for line, text in enumerate(wrap(name, LABEL_LETTERS)):
            y = frame.height - frame.bottom + 20 + 18 * line
            parts.append(f'<text class="axis" text-anchor="middle" x="{x:.1f}" y="{y:.0f}">{escape(text)}</text>')
    if x_label:
        parts.append(_below(frame, x_label))
    if chance is not None:
        x, y = frame.at(len(groups), chance)
        parts.append(f'<line class="mark" x1="{frame.left}" x2="{x:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="note" x="{x + 5:.1f}" y="{y + 4:.1f}">chance</text>')
    return _svg(frame, title, "".join(parts))


ROC_FROM = 1e-4


def roc_chart(lines: Sequence[Curve], *, title: str, resolution: float) -> Markup:
    """ROC curves on logarithmic axes from ROC_FROM to 1, with the line of guessing.

    Args:
        lines: points (FPR, TPR), FPR ascending. Measured curves are drawn as the steps that they are; one of style
            `limit` is a formula, and is drawn smooth.
        title: for those who cannot see it.
        resolution: the least FPR above 0 that the data can show; what lies below is shaded.
    """
    frame = Frame(520, 430, 58, 14, 26, 44, (math.log10(ROC_FROM), 0), (math.log10(ROC_FROM), 0))
    parts = [_decades(frame), _unresolved(frame, resolution)]
    parts.append(f'<text class="axis" x="{frame.left - 50}" y="{frame.top - 12:.0f}">true positive rate</text>')
    parts.append(_below(frame, "false positive rate"))
    (x1, y1), (x2, y2) = frame.at(frame.x[0], frame.y[0]), frame.at(0, 0)
    parts.append(f'<line class="chance" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for line in lines:
        points = line.points if line.style == "limit" else _steps(line.points)
        shown = [(math.log10(max(x, ROC_FROM)), math.log10(max(y, ROC_FROM))) for x, y in points]
        places = " ".join("{:.1f},{:.1f}".format(*frame.at(x, y)) for x, y in shown)
        parts.append(
            f'<polyline class="curve {line.style}" points="{places}"><title>{escape(line.label)}</title></polyline>'
        )
    return _svg(frame, title, "".join(parts))


def _steps(points: Points) -> list[tuple[float, float]]:
    """The corners between measured points: a TPR holds until a higher FPR buys a higher one."""
    corners = list(points[:1])
    for (_, before), (x, y) in pairwise(points):
        corners += [(x, before), (x, y)]
    return corners


def _decades(frame: Frame) -> str:
    parts = []
    for power in range(round(frame.x[0]), 1):
        (x, y), shown = frame.at(power, power), f"{100 * 10.0**power:g}\u202f%"
        right, below = frame.width - frame.right, frame.height - frame.bottom
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{below}"/>'
            f'<text class="axis" text-anchor="end" x="{frame.left - 6}" y="{y + 4:.1f}">{shown}</text>'
            f'<text class="axis" text-anchor="middle" x="{x:.1f}" y="{below + 16:.0f}">{shown}</text>'
        )
    return "".join(parts)


def _unresolved(frame: Frame, resolution: float) -> str:
    if resolution <= ROC_FROM:
        return ""
    (left, _), (right, _) = frame.at(frame.x[0], 0), frame.at(math.log10(min(resolution, 1.0)), 0)
    high, low = frame.top, frame.height - frame.bottom
    return (
        f'<rect class="unresolved" x="{left:.1f}" y="{high}" width="{right - left:.1f}" height="{low - high}"/>'
        f'<text class="note" text-anchor="middle" x="{(left + right) / 2:.1f}" y="{high + 16}">too few people</text>'
    )


def number(value: float, percent: bool = False) -> str:
    """A value as it is written beside a curve."""
    if percent:
        return f"{100 * value:.0f}\u202f%"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def nice_ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover [low, high]: steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(s * power for s in (1, 2, 5, 10) if span / (s * power) <= about)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    return min(0.0, min(values)), max(values) if max(values) > min(0.0, min(values)) else min(values) + 1.0


def _grid(frame: Frame, ticks: Sequence[float], percent: bool) -> str:
    parts = []
    for tick in ticks:
        _, y = frame.at(frame.x[0], tick)
        parts.append(
            f'<line class="grid" x1="{frame.left}" x2="{frame.width - frame.right}" y1="{y:.1f}" y2="{y:.1f}"/>'
            f'<text class="axis" text-anchor="end" x="{frame.left - 6}" y="{y + 4:.1f}">{number(tick, percent)}</text>'
        )
    return "".join(parts)


def _x_axis(frame: Frame, label: str) -> str:
    ticks = [t for t in nice_ticks(*frame.x, about=8) if t == int(t) and frame.x[0] <= t <= frame.x[1]]
    parts, below = [], frame.height - frame.bottom + 16
    for tick in ticks:
        x, _ = frame.at(tick, 0)
        parts.append(f'<text class="axis" text-anchor="middle" x="{x:.1f}" y="{below:.0f}">{tick:.0f}</text>')
    parts.append(_below(frame, label))
    return "".join(parts)


def _curve(frame: Frame, line: Curve, percent: bool) -> str:
    if not line.points:
        return ""
    places = " ".join("{:.1f},{:.1f}".format(*frame.at(x, y)) for x, y in line.points)
    last = number(line.points[-1][1], percent)
    note = f"<title>{escape(line.label)}: {last} at the end</title>"
    if len(line.points) == 1:
        x, y = frame.at(*line.points[0])
        return f'<circle class="dot {line.style}" cx="{x:.1f}" cy="{y:.1f}" r="3">{note}</circle>'
    return f'<polyline class="curve {line.style}" points="{places}">{note}</polyline>'


def _below(frame: Frame, label: str) -> str:
    """What the horizontal axis shows."""
    middle = (frame.left + frame.width - frame.right) / 2
    return f'<text class="axis" text-anchor="middle" x="{middle:.0f}" y="{frame.height - 6}">{escape(label)}</text>'


def _svg(frame: Frame, title: str, body: str, kind: str = "chart") -> Markup:
    return Markup(
        f'<svg class="{kind}" viewBox="0 0 {frame.width:.0f} {frame.height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>{body}</svg>'
    )
