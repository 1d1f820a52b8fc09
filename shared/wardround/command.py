"""Commands, one file each: what a file says of its command, and the group that finds the files of a folder.

Help is plain text of at most 80 columns, in the order of use. A file is imported when its command is used, or when a
group's help is shown; nothing else is, because importing takes time that a person waits for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Annotated

import click
import typer
from typer.core import TyperCommand, TyperGroup

from wardround.plugins import Kind

WIDTH = 80
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


@dataclass(frozen=True)
class Command:
    """One command.

    run: a function as Typer takes it; its docstring is the help. panel: the heading under which the group's help shows
    it, one of the group's. place: where under it, ascending. examples: whole lines, as a person types them.
    """

    run: Callable[..., None]
    panel: str
    place: int
    examples: tuple[str, ...] = ()

    def as_click(self, name: str) -> click.Command:
        """The command as click runs it."""
        app = typer.Typer(add_completion=False, rich_markup_mode=None)
        settings = {"max_content_width": WIDTH}
        app.command(name, cls=_Plain, epilog=epilog(self.examples), context_settings=settings)(self.run)
        return typer.main.get_command(app)


class _Plain(TyperCommand):
    """A command whose help is text: typer escapes brackets for rich even where rich does not print them."""

    def get_help(self, ctx: click.Context) -> str:
        """See click."""
        return super().get_help(ctx).replace("\\[", "[")


@dataclass(frozen=True)
class Journey:
    """What one types in turn, for the help of `wardround`: its purpose, and names of commands."""

    purpose: str
    commands: tuple[str, ...]


class Commands(TyperGroup):
    """The commands below one word: files of a folder, and entry points of other packages.

    Args:
        name: the word.
        help: its help, the first sentence by itself.
        kind: where its commands are.
        place: among the words, ascending.
        panels: headings, in the order of use; a command under another heading comes last.
        journeys: how its commands are used in turn, for the help of `wardround`.
    """

    def __init__(
        self,
        name: str,
        *,
        help: str,
        kind: Kind[Command],
        place: int,
        panels: Sequence[str],
        journeys: Sequence[Journey] = (),
    ) -> None:
        super().__init__(
            name=name, help=help, rich_markup_mode=None, no_args_is_help=True, epilog=epilog(()),
            context_settings={"max_content_width": WIDTH},
        )  # fmt: skip
        self.kind, self.place, self.panels, self.journeys = kind, place, tuple(panels), tuple(journeys)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of use."""
        return sorted(self.kind.names, key=self._order)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name; None without one."""
        return self.kind[cmd_name].as_click(cmd_name) if cmd_name in self.kind else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click; a name that is not there gets the names that are like it."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            alike = get_close_matches(args[0], self.kind.names)
            if not alike:
                raise
            raise click.UsageError(f"{error.message} Did you mean {' or '.join(map(repr, alike))}?", ctx) from None

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands first: they are what a reader looks for."""
        self.format_commands(ctx, formatter)
        click.Command.format_options(self, ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """A section a panel."""
        parts = {name: self.kind[name] for name in self.list_commands(ctx)}
        for panel in dict.fromkeys(part.panel for part in parts.values()):
            with formatter.section(panel):
                formatter.write_dl([(name, _summary(part)) for name, part in parts.items() if part.panel == panel])

    def _order(self, name: str) -> tuple[int, int, str]:
        part = self.kind[name]
        panel = self.panels.index(part.panel) if part.panel in self.panels else len(self.panels)
        return panel, part.place, name


def _summary(part: Command) -> str:
    """The first sentence of its help."""
    text = " ".join((part.run.__doc__ or "").split("\n\n")[0].split())
    return text.split(". ")[0].rstrip(".") + "."


def epilog(examples: Sequence[str]) -> str:
    """What stands below a command's options: examples that can be copied, and where exit codes are listed."""
    lines = ["Examples:", *(_folded(each) for each in examples)] if examples else []
    paragraphs = ["\b\n" + "\n".join(lines)] if lines else []
    return "\n\n".join([*paragraphs, "Exit codes: see `wardround --help`."])


def _folded(example: str) -> str:
    """A command line in lines of at most 78 characters, as a shell takes it, broken before an option if possible."""
    line, width = f"  {example}", WIDTH - 2
    lines = []
    while len(line) > width:
        at = max(line.rfind(" --", 8, width), 0) or line.rfind(" ", 8, width)
        if at < 0:
            break
        lines.append(f"{line[:at]} \\")
        line = f"      {line[at + 1 :]}"
    return "\n".join([*lines, line])
