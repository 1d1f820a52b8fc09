"""What the hospital's commands share: the app, the home argument, help texts and JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from wardround.errors import ConfigError
from wardround.screen import Screen

if TYPE_CHECKING:
    from rich.progress import Progress, ProgressColumn

EXIT_CODES = (
    "Exit codes: 0 done, 1 other error, 2 impossible file or option, 3 the cohort or its files, "
    "4 policy, budget or audit, 6 the coordinator or the daemon does not answer or is not trusted, 7 disk, "
    "130 interrupted."
)
app = typer.Typer(no_args_is_help=True, help="A hospital: its images stay here, private answers leave.")
console = Screen()
HomeArgument = Annotated[
    Path, typer.Argument(help="The hospital's home folder.", envvar="WARDROUND_HOSPITAL", metavar="[HOME]")
]
HERE = Path()  # the default of HomeArgument
NewHome = Annotated[Path, typer.Argument(help="The hospital's home folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def example(*lines: str) -> str:
    """The epilog of a command: examples, then the exit codes."""
    return "\n\n".join(["Examples:", *(f"    {line}" for line in lines), EXIT_CODES])


def checked(home: Path) -> Path:
    """The home, made absolute. Raises: ConfigError, when no hospital lives there."""
    if not (home / "hospital.toml").is_file():
        raise ConfigError(
            f"{home} is no hospital's home",
            do=f"make it with `wardround hospital init {home} --name NAME --patients N`",
        )
    return home.absolute()


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


def emit(**fields: Any) -> None:
    """One JSON object on a line."""
    typer.echo(json.dumps(fields))


def say(line: str) -> None:
    """One line for a person; a path in it stays whole, so that it can be copied."""
    console.print(line, soft_wrap=True)


def show(rows: dict[str, str], title: str = "") -> None:
    """Two columns for a person."""
    # Folded, not cut: a hash that is to be compared must be there whole.
    table = Table(Column(), Column(overflow="fold"), title=title or None, show_header=False, title_justify="left")
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
