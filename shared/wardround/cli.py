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

import click
import typer
from platformdirs import user_log_path

from wardround import __version__
from wardround.errors import WardroundError
from wardround.logs import indented
from wardround.text import shown

GROUP = "wardround.commands"
DEBUG = "WARDROUND_DEBUG"
INTERRUPTED = 130
_LONGEST = 4000  # characters of a message
_HELP = "Hospitals meta-learn together from their own images; only differentially private model deltas leave."
_EPILOG = (
    "Exit codes: 0 done, 1 other error, 2 impossible file or option, 3 data, 4 privacy, 5 malformed message, "
    "6 federation (nobody answers, not trusted, quorum missed), 7 disk, 8 port in use, 130 interrupted."
)


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
    root = _Root(name="wardround", help=_HELP, epilog=_EPILOG, no_args_is_help=True)
    root.params.append(
        click.Option(
            ["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Show the version."
        )
    )
    return root


class _Root(click.Group):
    """A group whose words are entry points."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The words that are installed."""
        return sorted(_words())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a word: a Typer app. One that cannot be imported fails when it is used, not before."""
        found = _words().get(cmd_name)
        if found is None:
            return None
        try:
            return typer.main.get_command(found.load())
        except ImportError as error:
            return _broken(cmd_name, error)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The words with the first line of their help."""
        known = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([(name, found.get_short_help_str(90)) for name, found in known if found])


def _words() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


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
