"""What the hospital's commands share: the home argument, and the check that a hospital lives there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.errors import ConfigError

HomeArgument = Annotated[
    Path, typer.Argument(help="The hospital's home folder.", envvar="WARDROUND_HOSPITAL", metavar="[HOME]")
]
HERE = Path()  # the default of HomeArgument
NewHome = Annotated[Path, typer.Argument(help="The hospital's home folder.", show_default=False)]


def checked(home: Path) -> Path:
    """The home, made absolute. Raises: ConfigError, when no hospital lives there."""
    if not (home / "hospital.toml").is_file():
        raise ConfigError(
            f"{home} is not a hospital's home",
            do=f"make it with `wardround hospital init {home} --name NAME --patients N`",
        )
    return home.absolute()
