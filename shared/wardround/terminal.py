"""What commands print: lines, tables and bars for a person, JSON objects for a program."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Column, Table

from wardround.screen import Screen

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

console = Screen()


def say(line: str) -> None:
    """One line for a person; a path in it stays whole, so that it can be copied."""
    console.print(line, soft_wrap=True)


def emit(**fields: Any) -> None:
    """One JSON object on a line."""
    typer.echo(json.dumps(fields))


def table(*columns: str, rows: Sequence[Sequence[str]], title: str = "") -> Table:
    """A table for a person: what does not fit is folded, never cut."""
    built = Table(*(Column(name, overflow="fold") for name in columns), title=title or None, title_justify="left")
    for row in rows:
        built.add_row(*row)
    return built


def fields(values: Mapping[str, str], title: str = "") -> Table:
    """Names and values in two columns: a digest that is to be compared is there whole."""
    built = Table(Column(), Column(overflow="fold"), title=title or None, show_header=False, title_justify="left")
    for name, value in values.items():
        built.add_row(name, value)
    return built


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
