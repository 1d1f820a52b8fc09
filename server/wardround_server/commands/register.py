"""`wardround coordinator register`: let a hospital take part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import Fields, emit, say, show
from wardround_server.commands._common import HomeArgument, at_a_terminal
from wardround_server.home import Home
from wardround_server.hospitals import Card, Registry, load_card
from wardround_server.office.hospitals import enrol


def register(
    home: HomeArgument,
    card: Annotated[Path, typer.Argument(help="The hospital's join.json.", show_default=False)],
    patients: Annotated[
        int, typer.Option(help="Number of patients to weigh it by; 0: as it declares.", min=0, max=10**9)
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask. Without a terminal nothing is asked.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Register a hospital and show its weight. While the coordinator is down, the next `up` registers it."""
    coordinator = Home(home)
    coordinator.config()
    registry, wanted = Registry(home), load_card(card)
    if as_json and not yes:
        raise ConfigError("--json cannot ask", do="add --yes")
    if patients and patients != wanted.declared_patients:
        if not as_json:
            say(f"It declares {wanted.declared_patients:,} patients; its own hospital.toml has to say {patients:,}.")
        wanted = Card.model_validate(wanted.model_dump() | {"declared_patients": patients})
    share, count = registry.share(wanted), f"{wanted.declared_patients:,}"
    if not as_json:
        weight = f"{share:.1%} of the federation's, unless it is agreed to weigh all alike"
        show(Fields({"hospital": wanted.name, "key": wanted.fingerprint, "patients": count, "weight": weight}))
    if not yes and at_a_terminal() and not typer.confirm("Register it?"):
        say("Not registered. Nothing was changed.")
        raise typer.Exit(1)
    hospital, node_id = enrol(coordinator, wanted)
    if as_json:
        emit(event="register", hospital=hospital.name, key=wanted.fingerprint, weight=share, node_id=node_id)
    elif node_id is None:
        say(f"{hospital.name} is noted; it can connect after the next `wardround coordinator up {home}`.")
    else:
        say(f"{hospital.name} is registered, as node {node_id}.")


command = Command(
    register,
    panel="Set up",
    place=4,
    examples=(
        "wardround coordinator register ~/coordinator st-anna/join.json",
        "wardround coordinator register ~/coordinator st-anna/join.json --patients 400 --yes",
    ),
)
