"""What commands print: lines, tables and bars for a person, JSON objects for a program."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import typer
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.text import Text

from wardround.screen import LONGEST, Screen
from wardround.text import shown

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

console = Screen()
_INDENT = "  "
_GAP = 2  # blanks between columns
_SENTENCE = 26  # what is longer and has blanks may be wrapped, in no narrower a column


def say(line: str, style: str = "") -> None:
    """One line for a person; a path in it stays whole, so that it can be copied."""
    console.print(Text(line, style=style), soft_wrap=True)


def emit(**fields: Any) -> None:
    """One JSON object on a line."""
    typer.echo(json.dumps(fields))


def show(what: RenderableType) -> None:
    """A table, or names and values; what does not fit is wrapped at blanks or stands in the next line, never cut."""
    console.print(what, crop=False)


@dataclass(frozen=True)
class Fields:
    """Names and values, one a line. A value with a word too long to stand beside its name stands below it, whole."""

    values: Mapping[str, str]
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        if self.title:
            yield _line(self.title, "bold")
        label = max(map(cell_len, self.values), default=0) + _GAP
        for name, value in ((shown(name), shown(value, LONGEST)) for name, value in self.values.items()):
            room = options.max_width - label - len(_INDENT)
            beside = max(map(cell_len, value.split(" "))) <= room
            start = _INDENT + (name + " " * (label - cell_len(name)) if beside else _INDENT)
            if not beside:
                yield _line(_INDENT + name)
            for number, line in enumerate(_wrapped(value, options.max_width - cell_len(start))):
                yield _line((" " * cell_len(start) if number else start) + line)


@dataclass(frozen=True)
class Table:
    """Rows of cells; where columns cannot stand beside each other, each row is a list of names and values.

    Every cell but a sentence stands on one line. A column whose name begins with ">" is set to the right; a row of
    nothing is an empty line.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Text]]
    title: str = ""
    caption: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = [name.removeprefix(">") for name in self.columns]
        if self.title:
            yield _line(self.title, "bold", no_wrap=False)
        widths = self._widths(names, options.max_width)
        if widths is None:
            for row in filter(None, self.rows):
                yield Fields({name: str(cell) for name, cell in zip(names, row, strict=True)})
                yield _line("")
        else:
            yield from self._lines(names, widths, "dim")
            for row in self.rows:
                yield from self._lines(row or [""] * len(names), widths)
        if self.caption:
            yield _line(self.caption, no_wrap=False)

    def _lines(self, row: Sequence[str | Text], widths: Sequence[int], style: str = "") -> Iterator[Text]:
        """A row's cells beside each other, as many lines as the longest takes."""
        styles = [cell.style if isinstance(cell, Text) else style for cell in row]
        cells = [_wrapped(shown(str(cell), LONGEST), width) for cell, width in zip(row, widths, strict=True)]
        for parts in zip_longest(*cells, fillvalue=""):
            line = _line("")
            for column, part, width, of in zip(self.columns, parts, widths, styles, strict=True):
                space = " " * (width - cell_len(part))
                line.append(f"{space}{part}" if column.startswith(">") else f"{part}{space}", of)
                line.append(" " * _GAP)
            line.rstrip()
            yield line

    def _widths(self, names: Sequence[str], width: int) -> list[int] | None:
        """Columns' widths in which every cell but a sentence stands on one line; None where there are none."""
        cells = [[name, *(shown(str(row[i]), LONGEST) for row in self.rows if row)] for i, name in enumerate(names)]
        wide = [max(map(cell_len, column)) for column in cells]
        room = width - _GAP * len(names)
        prose = {
            i: max(_SENTENCE, *(cell_len(word) for cell in column for word in cell.split(" ")))
            for i, column in enumerate(cells)
            if any(" " in cell and cell_len(cell) > _SENTENCE for cell in column)
        }
        for i, least in prose.items():
            others = sum(wide) - wide[i]
            wide[i] = max(least, min(wide[i], room - others))
        return wide if sum(wide) <= room else None


def _line(text: str, style: str = "", *, no_wrap: bool = True) -> Text:
    return Text(text, style=style, no_wrap=no_wrap, overflow="ignore" if no_wrap else "fold")


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most so many columns, broken at blanks alone."""
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        if cell_len(lines[-1]) + 1 + cell_len(word) > width:
            lines.append(word)
        else:
            lines[-1] += f" {word}"
    return lines


def progress_bar(count: ProgressColumn, *, quiet: bool, description: str = "{task.description}") -> Progress:
    """A bar that shows only on a terminal, and goes when the work is done; count tells how far it is in words."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn(description),
        BarColumn(),
        count,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
