"""`wardround coordinator status`: who is there, and how far each run is."""

from __future__ import annotations

import typer

from wardround.certificates import until
from wardround.command import Command, JsonOption
from wardround.errors import Unreachable
from wardround.terminal import Table, emit, say, show
from wardround.text import counted
from wardround_server.answers import AnswerBook
from wardround_server.commands._common import HomeArgument, in_words, seen_nodes
from wardround_server.events import Event, Proceeding, RoundEnded, RoundMissed, RunEnded, RunFailed, RunStarted, Waiting
from wardround_server.follow import last_event
from wardround_server.home import Home
from wardround_server.hospitals import LastSeen, Registry
from wardround_server.sinks.jsonl import FILE as EVENTS


def status(home: HomeArgument, as_json: JsonOption = False) -> None:
    """Show who is registered, who is connected, and how far each run is."""
    coordinator = Home(home)
    coordinator.config()
    seen, down = dict[int, LastSeen](), None
    try:
        seen = seen_nodes(coordinator)
    except Unreachable as error:
        down = error
    registered = list(Registry(home))
    book = AnswerBook.of_home(home, registered)
    hospitals = [
        {
            "hospital": hospital.name,
            "declared_patients": hospital.declared_patients,
            "status": "coordinator down" if down else in_words(seen.get(hospital.node_id or 0)),
            "answers": len(book.of(hospital.name)),
        }
        for hospital in registered
    ]
    runs = {folder.name: last_event(folder / EVENTS) for folder in sorted((home / "runs").glob("*")) if folder.is_dir()}
    ends = coordinator.tls.ends()
    if as_json:
        certificates = {name: end.isoformat() for name, end in ends.items()}
        lines = [{"run": name, **(event.model_dump(mode="json") if event else {})} for name, event in runs.items()]
        emit(event="status", up=not down, hospitals=hospitals, runs=lines, certificates=certificates)
    else:
        say(f"The coordinator is {'down' if down else 'up'}.")
        for name, end in ends.items():
            say(f"The {name} ends on {until(end)}.")
        rows = [[str(value) for value in hospital.values()] for hospital in hospitals]
        show(Table(("hospital", ">declared patients", "status", ">answers"), rows))
        show(Table(("run", "how far", "since (UTC)"), [[name, *_how_far(event)] for name, event in runs.items()]))
    if down:
        raise typer.Exit(down.exit_code)


def _how_far(event: Event | None) -> tuple[str, str]:
    """(what a run did last, when)."""
    match event:
        case RunStarted() | Waiting() | Proceeding():
            what = "begins"
        case RoundEnded():
            what = f"round {event.round} of {event.rounds}: {event.replied} of {event.hospitals} replied"
        case RoundMissed():
            what = f"round {event.round}: quorum missed, {event.replied} of {event.hospitals} replied"
        case RunFailed():
            what = f"failed: {event.message}"
        case RunEnded():
            what = f"done, {counted(event.rounds, 'round')}"
        case _:
            what = "nothing yet"
    return what, event.time[:19].replace("T", " ") if event else ""


command = Command(
    status,
    panel="Run",
    place=3,
    examples=("wardround coordinator status ~/coordinator",),
)
