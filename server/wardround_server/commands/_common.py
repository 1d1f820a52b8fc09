"""What the coordinator's commands share: the home argument, and whether there is a person to ask."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

HomeArgument = Annotated[Path, typer.Argument(help="The coordinator's home folder.", show_default=False)]


def at_a_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty()
