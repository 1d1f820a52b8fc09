"""The `wardround` command. Its words come from the packages that are installed: entry points `wardround.commands`.

Whatever goes wrong ends here as one message and one exit code (see wardround.errors), never as a traceback; with
--json the message is one JSON object on a line. WARDROUND_DEBUG=1 shows the traceback.
"""

from __future__ import annotations

import io
import json
import os
import sys
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import click
import typer
from platformdirs import user_log_path

from wardround import __version__
from wardround.command import WIDTH, Command
from wardround.errors import EXIT_CODES, WardroundError
from wardround.logs import indented
from wardround.text import shown

GROUP = "wardround.commands"
DEBUG = "WARDROUND_DEBUG"
INTERRUPTED = 130
_DOCTOR = EntryPoint("doctor", "wardround.doctor_command:app", GROUP)  # of whatever else is installed
_LONGEST = 4000  # characters of a message
_HELP = "Hospitals meta-learn together from their own images; only differentially private model deltas leave them."


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    raise SystemExit(run(given))


def run(arguments: Sequence[str]) -> int:
    """Run the command line -> its exit code. Never raises an Exception.

    What it writes, and what the processes that it starts write, is for its user alone, whatever the umask was.
    """
    before = os.umask(0o077)
    try:
        return _run(arguments, as_json="--json" in arguments)
    finally:
        os.umask(before)


def _run(arguments: Sequence[str], *, as_json: bool) -> int:
    try:
        result = command().main(list(arguments), prog_name="wardround", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except WardroundError as error:
        return _fail(type(error).__name__, str(error), error.exit_code, as_json)
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        if not as_json:
            told = io.StringIO()
            error.show(told)  # it quotes what was typed, a file's name perhaps
            click.echo("\n".join(shown(line, _LONGEST) for line in told.getvalue().splitlines()), err=True)
            return error.exit_code
        return _fail(type(error).__name__, error.format_message(), error.exit_code, as_json)
    except (KeyboardInterrupt, click.Abort):
        return _fail("Interrupted", "interrupted.", INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader of a pipe, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
        log = _log(arguments)
        where = f"the log is {log}" if log else f"{DEBUG}=1 shows more"
        return _fail("InternalError", f"internal error ({type(error).__name__}): this is a bug; {where}.", 1, as_json)


def command() -> click.Command:
    """The root command with every installed word; a word's package is imported when the word is used."""
    root = _Root(name="wardround", help=_HELP, no_args_is_help=True, context_settings={"max_content_width": WIDTH})
    root.params.append(
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
        )
    )
    return root


class _Root(click.Group):
    """A group whose words are entry points: a `Command`, `Commands`, or a Typer app of another package."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The words that are installed, in the order of use."""
        return sorted(_words(), key=lambda word: (getattr(_loaded(word), "place", 100), word))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a word. One that cannot be imported fails when it is used, not before."""
        if cmd_name not in _words():
            return None
        part = _loaded(cmd_name)
        if isinstance(part, Command):
            return part.as_click(cmd_name)
        return part if isinstance(part, click.Command) else typer.main.get_command(part)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The words with the first sentence of their help; what is typed in turn; the exit codes."""
        words = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(200)) for name, found in words.items() if found])
        turns = [("Try it", "wardround simulate")] * ("simulate" in words) + [
            (journey.purpose, f"wardround {name} " + ", ".join(journey.commands))
            for name, found in words.items()
            for journey in getattr(found, "journeys", ())
        ]
        if turns:
            with formatter.section("In the order of use"):
                formatter.write_dl(turns)
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(code), meaning) for code, meaning in EXIT_CODES.items()])


def _loaded(word: str) -> Any:
    """What the entry point of a word names, or a command that says why it cannot be imported."""
    try:
        return _words()[word].load()
    except ImportError as error:
        return _broken(word, error)


def _words() -> dict[str, EntryPoint]:
    return {point.name: point for point in (_DOCTOR, *entry_points(group=GROUP))}


def _broken(name: str, error: ImportError) -> click.Command:
    missing = error.name or str(error)

    def fail() -> None:
        raise WardroundError(
            f"`wardround {name}` cannot be loaded: {missing} is missing", do="install wardround again, with its extras"
        )

    return click.Command(
        name,
        callback=fail,
        help="(cannot be loaded)",
        context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    )


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(f"wardround {__version__}")
        ctx.exit()


def _fail(kind: str, message: str, code: int, as_json: bool) -> int:
    if as_json:
        click.echo(json.dumps({"event": "error", "error": kind, "message": message, "exit_code": code}))
    else:
        click.echo(f"wardround: {shown(message, _LONGEST)}", err=True)
    return code


def _log(arguments: Sequence[str]) -> Path | None:
    """Append the current traceback to a file of this user (0600) -> the file, or None where that is impossible."""
    try:
        folder = user_log_path("wardround")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "wardround.log"
        path.touch(mode=0o600)
        word = " ".join(argument for argument in arguments[:2] if not argument.startswith("-"))
        with path.open("a", encoding="utf-8") as file:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            file.write(f"{when} wardround {shown(word)}\n{indented(traceback.format_exc())}\n")
    except OSError:
        return None
    return path
