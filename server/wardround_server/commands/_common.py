"""What the coordinator's commands share: arguments, names of runs, and the SuperLink's list of hospitals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError

from wardround.config import Name
from wardround.errors import ConfigError
from wardround.text import shown
from wardround_server.home import Home
from wardround_server.hospitals import LastSeen, Registry

SILENT_S = 9.0  # two heartbeats

HomeArgument = Annotated[Path, typer.Argument(help="The coordinator's home folder.", show_default=False)]


def at_a_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty()


def checked_run_name(name: str) -> str:
    """The name, if a run may have it: it is a folder's name, and every hospital's ledger keeps it."""
    return _checked(name, f"the run name {name!r}", do="choose another --run")


def checked_hospital_name(name: str) -> str:
    """The name, if a hospital may have it."""
    return _checked(name, f"the hospital's name {shown(name)!r}", do="choose another name")


def _checked(name: str, what: str, *, do: str) -> str:
    try:
        return str(TypeAdapter(Name).validate_python(name))
    except ValidationError:
        raise ConfigError(
            what,
            allowed="1 to 63 of a to z, A to Z, digits, dots, dashes and underscores; first a letter or a digit",
            do=do,
        ) from None


def register_nodes(coordinator: Home, admin: int) -> dict[str, int]:
    """Make the SuperLink know the hospitals of the registry and no other; done again it changes nothing.

    -> name, node id.
    """
    from wardround_server.flower.control import ControlApi

    registry, nodes = Registry(coordinator.folder), dict[str, int]()
    with ControlApi(admin, coordinator.tls.ca) as control:
        for hospital in list(registry):
            nodes[hospital.name] = control.register(hospital.name, hospital.key_pem)
            if nodes[hospital.name] != hospital.node_id:
                registry.set_node(hospital.name, nodes[hospital.name])
        for node, state in control.nodes().items():
            if node not in nodes.values() and state != "unregistered":
                control.unregister(node)
    return nodes


def seen_nodes(coordinator: Home) -> dict[int, LastSeen]:
    """Each node's state. Raises: Unreachable."""
    admin = int(coordinator.running()["admin"])
    from wardround_server.flower.control import ControlApi

    with ControlApi(admin, coordinator.tls.ca) as control:
        return control.seen()


def in_words(seen: LastSeen | None) -> str:
    """A node's state in words."""
    if seen is None:
        return "unknown"
    if seen.status == "registered":
        return "never connected"
    if seen.ago_s is None or (seen.status == "online" and seen.ago_s < SILENT_S):
        return seen.status
    if seen.status == "online":
        return f"silent, last seen {_ago(seen.ago_s)} ago"
    return f"{seen.status} for {_ago(seen.ago_s)}"


def _ago(seconds: float) -> str:
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
