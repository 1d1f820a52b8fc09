"""What the hospital's commands share: the home argument, and the check that a hospital lives there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.errors import ConfigError
from wardround.terminal import emit, say

if TYPE_CHECKING:
    from wardround_client.flower.connectivity import Step

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
NAME_ALLOWED = (
    "1 to 63 of the letters a to z and A to Z (none with an accent), digits, dots, dashes and underscores; first a "
    "letter or a digit"
)
HomeArgument = Annotated[
    Path, typer.Argument(help="The hospital's home folder.", envvar="WARDROUND_HOSPITAL", metavar="[HOME]")
]
HERE = Path()  # the default of HomeArgument
NewHome = Annotated[Path, typer.Argument(help="The hospital's home folder.", show_default=False)]


def check_name(name: str) -> str:
    """A name that can be a folder's. Raises: ConfigError."""
    if not NAME.match(name):
        raise ConfigError(f"the name {name!r}", allowed=NAME_ALLOWED)
    return name


def checked(home: Path) -> Path:
    """The home, made absolute. Raises: ConfigError, when no hospital lives there."""
    if not (home / "hospital.toml").is_file():
        raise ConfigError(
            f"{home} is not a hospital's home",
            do=f"make it with `wardround hospital init {home} --name NAME --patients N`",
        )
    return home.absolute()


def tell_step(step: Step, *, as_json: bool, waits: bool = False) -> None:
    """What came of a check. waits: its error is one that others end, as everybody knows."""
    if as_json:
        emit(event="check", step=step.name, ok=step.error is None, soon=step.soon, result=step.result)
        return
    how = "waits" if step.error and waits else "FAILED" if step.error else "SOON" if step.soon else "ok"
    result = "the coordinator has not registered join.json yet" if how == "waits" else step.result
    say(f"  {how:8}{step.name:20}{result}", {"FAILED": "red", "SOON": "yellow"}.get(how, ""))
