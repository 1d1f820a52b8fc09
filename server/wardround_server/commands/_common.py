"""What the coordinator's commands share: the app, arguments, help texts, and the SuperLink's list of hospitals."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from pydantic import TypeAdapter, ValidationError
from rich.table import Column, Table

from wardround.config import Name
from wardround.errors import ConfigError
from wardround.screen import Screen
from wardround_server.home import Home
from wardround_server.hospitals import Registry

EXIT_CODES = (
    "Exit codes: 0 done, 1 other error, 2 invalid file or option, 5 malformed message, "
    "6 the federation cannot go on (unreachable, untrusted, quorum missed), 7 disk, 8 port in use, 130 interrupted."
)
app = typer.Typer(no_args_is_help=True, help="The coordinator: it asks hospitals and never sees a patient.")
console = Screen()
HomeArgument = Annotated[Path, typer.Argument(help="The coordinator's home folder.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")]


def example(*lines: str) -> str:
    """The epilog of a command: examples, then the exit codes."""
    return "\n\n".join(["Examples:", *(f"    {line}" for line in lines), EXIT_CODES])


def say(line: str) -> None:
    """One line for a person; a path in it stays whole, so that it can be copied."""
    console.print(line, soft_wrap=True)


def show_table(*columns: str, rows: list[list[str]]) -> None:
    """A table for a person; cells are folded, never cut."""
    table = Table(*(Column(name, overflow="fold") for name in columns))
    for row in rows:
        table.add_row(*row)
    console.print(table)


def at_a_terminal() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin.isatty()


def checked_run_name(name: str) -> str:
    """The name, if a run may have it: it is a folder's name, and every hospital's ledger keeps it."""
    try:
        return str(TypeAdapter(Name).validate_python(name))
    except ValidationError:
        raise ConfigError(
            f"the run name {name!r}",
            allowed="up to 63 letters, digits, dots, dashes and underscores, beginning with a letter or a digit",
            do="choose another --run",
        ) from None


def register_nodes(coordinator: Home, admin: int) -> dict[str, int]:
    """Make the SuperLink know the hospitals of the registry and no other; done again it changes nothing.

    -> name, node id.
    """
    from wardround_server.flower.superlink import Control

    registry, nodes = Registry(coordinator.folder), dict[str, int]()
    with Control(admin, coordinator.tls.ca) as control:
        for hospital in list(registry):
            nodes[hospital.name] = control.register(hospital.name, hospital.key_pem)
            if nodes[hospital.name] != hospital.node_id:
                registry.set_node(hospital.name, nodes[hospital.name])
        for node, state in control.nodes().items():
            if node not in nodes.values() and state != "unregistered":
                control.unregister(node)
    return nodes
