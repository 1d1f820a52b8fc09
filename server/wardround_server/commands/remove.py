"""`wardround coordinator remove`: take a hospital out."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import Unreachable
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home
from wardround_server.hospitals import Registry
from wardround_server.office.hospitals import register_nodes


def remove(
    home: HomeArgument,
    name: Annotated[str, typer.Argument(help="The hospital's name, as `status` shows it.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Remove a hospital at once, also in the middle of a run: it is not asked any more, and its answers are dropped."""
    coordinator = Home(home)
    coordinator.config()
    hospital = Registry(home).remove(name)
    with contextlib.suppress(Unreachable):  # then the next `up` forgets its key
        register_nodes(coordinator, int(coordinator.running()["admin"]))
    if as_json:
        emit(event="remove", hospital=hospital.name)
        return
    say(f"{hospital.name} is removed. What it has contributed stays in the models that it helped to make.")


command = Command(
    remove,
    panel="Maintain",
    place=1,
    examples=("wardround coordinator remove ~/coordinator st-anna",),
)
