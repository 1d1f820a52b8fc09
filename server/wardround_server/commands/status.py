"""`wardround coordinator status`: who is there, and how far each run is."""

from __future__ import annotations

import typer

from wardround.certificates import until
from wardround.command import Command, JsonOption
from wardround.terminal import Table, emit, say, show
from wardround_server.commands._common import HomeArgument
from wardround_server.follow import last_event
from wardround_server.home import Home
from wardround_server.office.hospitals import there
from wardround_server.office.runs import all_going_on, how_far, stands
from wardround_server.sinks.jsonl import FILE as EVENTS


def status(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Show who is registered, who is connected, and how far each run is."""
    coordinator = Home(home)
    coordinator.config()
    hospitals, down = there(coordinator)
    runs = {folder.name: last_event(folder / EVENTS) for folder in sorted((home / "runs").glob("*")) if folder.is_dir()}
    going = all_going_on(coordinator, runs) or {}
    ends = coordinator.tls.ends()
    if as_json:
        certificates = {name: end.isoformat() for name, end in ends.items()}
        lines = [
            (event.model_dump(mode="json") if event else {})
            | {"run": name, "going_on": name in going}
            | ({"error": why} if why else {})
            for name, (event, why) in runs.items()
        ]
        emit(event="status", up=not down, hospitals=hospitals, runs=lines, certificates=certificates)
    else:
        say(f"The coordinator is {'down' if down else 'up'}.")
        for name, end in ends.items():
            say(f"The {name} ends on {until(end)}.")
        rows = [[str(value) for value in hospital.values()] for hospital in hospitals]
        show(Table(("hospital", ">declared patients", "status", ">answers"), rows))
        rows = [
            [
                name,
                "cannot be read" if why else stands(event, going_on=name in going),
                *((why, "") if why else how_far(event)),
            ]
            for name, (event, why) in runs.items()
        ]
        show(Table(("run", "", "how far", "since (UTC)"), rows))
    if down:
        raise typer.Exit(down.exit_code)


command = Command(
    status,
    panel="Run",
    place=3,
    examples=("wardround coordinator status ~/coordinator",),
)
