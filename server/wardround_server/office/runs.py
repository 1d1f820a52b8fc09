"""Runs: checked before they begin, started, stopped, and how far each is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

from wardround.config import AS_APPROVED, Federation, agreement_text
from wardround.errors import ConfigError, StorageError, Unreachable
from wardround.files import Held, write_atomically
from wardround.text import counted
from wardround.toml import loads
from wardround_server.events import Event, Proceeding, RoundEnded, RoundMissed, RunEnded, RunFailed, RunStarted, Waiting
from wardround_server.home import OPTIONS, Home, RunOptions
from wardround_server.office.names import checked_run_name
from wardround_server.sinks import SINKS
from wardround_server.sinks.jsonl import FILE as EVENTS

BEGUN = "begun.json"
"""In a run's folder: Flower's number of the run, and the process of the coordinator that it belongs to."""


class Control(Protocol):
    """What starting and stopping need of the Control API."""

    def start_run(self, bundle: bytes, config: dict[str, str | bool]) -> int:
        """-> Flower's number of the run."""
        ...

    def run_status(self, run_id: int) -> tuple[str, str]:
        """-> (state, what Flower says of a finished run)."""
        ...

    def stop_run(self, run_id: int) -> None:
        """Stop it."""
        ...


@dataclass(frozen=True)
class Order:
    """A run that can be started. text: of its agreement, as it was read; admin: the coordinator's port."""

    coordinator: Home
    federation: Path
    text: str
    agreement: Federation
    name: str
    folder: Path
    admin: int
    resume: bool
    wait_s: int

    @classmethod
    def checked(cls, coordinator: Home, federation: Path, name: str, *, resume: bool, wait_s: int) -> Self:
        """Raises: ConfigError; Unreachable, while the coordinator is down."""
        text = agreement_text(federation)
        agreement = loads(text, Federation, name=str(federation), context=AS_APPROVED if resume else None)
        for sink in coordinator.config().sinks:
            _ = SINKS[sink]  # an unknown one is an error now, and not a line in a log later
        admin = int(coordinator.running()["admin"])
        name = checked_run_name(name or agreement.name)
        folder = coordinator.run_folder(name)
        if not resume and (folder / "checkpoint.safetensors").exists():
            raise ConfigError(f"run {name!r} exists already", do="continue it with --resume, or choose another --run")
        if resume and not folder.is_dir():
            raise ConfigError(f"there is no run {name!r} to resume", do="leave --resume out, or name an earlier --run")
        return cls(coordinator, federation, text, agreement, name, folder, admin, resume, wait_s)

    def start(self, control: Control) -> tuple[int, int]:
        """-> (Flower's number of the run, the byte of its events at which it begins).

        What cannot begin changes nothing of a run that was. Raises: ConfigError, StorageError, FederationError; Held,
        while the run is going on.
        """
        from wardround import bundle
        from wardround.models.from_outside import pinned
        from wardround_server.checkpoint import Checkpointer

        choice, checkpoints = self.agreement.model, Checkpointer(self.folder)
        encoder = None
        if choice.encoder != "builtin":
            encoder = pinned(self.federation.parent / choice.encoder, choice.encoder_sha256, None)

        def not_yet() -> None:
            if going_on(self.coordinator, control, self.name) is not None:
                raise Held(f"run {self.name!r} is going on already", do="wait for it, stop it, or choose another --run")

        not_yet()  # at once: the folder is waited for
        with checkpoints.held():  # what is going on already keeps its agreement
            not_yet()  # nor is there another that has no process yet, and so holds nothing
            if self.resume:
                checkpoints.load(run=self.name, federation=self.agreement.digest)
            self.coordinator.write(f"runs/{self.name}/federation.toml", self.text)
            options = RunOptions(wait_s=self.wait_s).model_dump_json()
            self.coordinator.write(f"runs/{self.name}/{OPTIONS}", options + "\n")
            if encoder is not None:
                _keep(encoder, self.folder / choice.encoder)
            events = self.folder / EVENTS
            start = events.stat().st_size if events.exists() else 0
            run_id = control.start_run(bundle.build(self.agreement), {"run": self.name, "resume": self.resume})
            begun = {"pid": self.coordinator.running()["pid"], "run_id": run_id}
            self.coordinator.write(f"runs/{self.name}/{BEGUN}", json.dumps(begun) + "\n")
        return run_id, start


def going_on(coordinator: Home, control: Control, name: str) -> int | None:
    """Flower's number of a run that has begun and not ended; None of any other. Raises: Unreachable."""
    try:
        begun = json.loads((coordinator.run_folder(name) / BEGUN).read_text(encoding="utf-8"))
        run_id, pid = int(begun["run_id"]), int(begun["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if pid != coordinator.running()["pid"]:
        return None  # a run ends with its coordinator
    return run_id if control.run_status(run_id)[0] != "finished" else None


def all_going_on(coordinator: Home, names: Iterable[str]) -> dict[str, int] | None:
    """Flower's numbers of those of the runs that are going on; None while the coordinator is down, when none is."""
    from wardround_server.flower.control import ControlApi

    try:
        with ControlApi(int(coordinator.running()["admin"]), coordinator.tls.ca) as control:
            numbers = {name: going_on(coordinator, control, name) for name in names}
            return {name: number for name, number in numbers.items() if number is not None}
    except Unreachable:
        return None


def stop(coordinator: Home, name: str, *, number: str = "") -> None:
    """Stop a run, as Ctrl-C does in the terminal that started it: it ends in the middle of its round, and goes on with
    that round when it is resumed.

    number: Flower's, of the one that somebody looked at; "": whichever has that name.

    Raises: ConfigError, when it is not going on; Unreachable.
    """
    from wardround_server.flower.control import ControlApi

    name = checked_run_name(name)
    with ControlApi(int(coordinator.running()["admin"]), coordinator.tls.ca) as control:
        run_id = going_on(coordinator, control, name)
        if run_id is None:
            raise ConfigError(f"run {name!r} is not going on", do="see `wardround coordinator status`")
        if number not in ("", str(run_id)):
            raise ConfigError(f"run {name!r} was resumed after you looked at it", do="look at it again")
        control.stop_run(run_id)


def _keep(encoder: bytes, copy: Path) -> None:
    """Keep the encoder of an agreement in the run's folder. Raises: StorageError."""
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(copy, encoder)
    except OSError as error:
        raise StorageError(f"{copy}: cannot be written ({error.strerror})", do="check the disk") from None


def stands(event: Event | None, *, going_on: bool) -> str:
    """In a word, how a run stands whose last event is given."""
    if going_on:
        return "going on"
    return "ended" if isinstance(event, RunEnded | RunFailed) else "stopped"


def how_far(event: Event | None) -> tuple[str, str]:
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
