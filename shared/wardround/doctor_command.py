"""`wardround doctor`: what is wrong with a home, whosever it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import click
import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.text import listed

MARKS = {
    "hospital": ("hospital.toml", "secret.key", "ledger.sqlite"),
    "coordinator": ("coordinator.toml", "hospitals.json", "superlink.db"),
}


def doctor(
    context: typer.Context,
    home: Annotated[Path, typer.Argument(help="The home of a hospital or a coordinator.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Look at a home, and say what is wrong and what to do about it. Nothing is changed.

    It finds out whose home it is, and does what `hospital doctor` or `coordinator doctor` does.

    Ends with the exit code of the first thing that is wrong, and with 0 if there is nothing.
    """
    root = context.find_root()
    assert isinstance(root.command, click.Group)
    word = whose(home)
    group = root.command.get_command(root, word)
    found = group.get_command(root, "doctor") if isinstance(group, click.Group) else None
    if found is None:
        raise ConfigError(f"`wardround {word}` is not installed here", do="ask the machine on which it runs")
    raise typer.Exit(found.main([str(home), *["--json"] * as_json], standalone_mode=False) or 0)


def whose(home: Path) -> str:
    """The word of the command that knows this home, by its files. Raises: ConfigError."""
    there = {word: [name for name in names if (home / name).exists()] for word, names in MARKS.items()}
    match [word for word, names in there.items() if names]:
        case [word]:
            return word
        case []:
            raise ConfigError(
                f"{home} is neither a hospital's home nor a coordinator's",
                allowed=f"a folder with {' or '.join(names[0] for names in MARKS.values())}",
                do="name the folder that `wardround hospital init` or `wardround coordinator init` made",
            )
        case words:
            both = " and ".join(f"{listed(there[word])} of a {word}" for word in words)
            raise ConfigError(f"{home} holds {both}", do=f"say whose: `wardround {words[0]} doctor {home}`")


app = Command(
    doctor, panel="", place=5, examples=("wardround doctor ~/st-anna", "wardround doctor ~/coordinator --json")
)
