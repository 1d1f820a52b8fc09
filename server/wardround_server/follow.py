"""Watching a run from outside: its events as they are written, and what Flower says of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import wardround.errors
from wardround.errors import FederationError, RunStopped, StorageError, Unreachable, WardroundError
from wardround.files import room_on_disk
from wardround.text import shown
from wardround_server.events import Event, RunEnded, RunFailed, whole_lines

POLL_S = 0.1
STATUS_EVERY_S, LONGEST_SILENCE_S = 1.0, 300.0
LONGEST_REASON, LONGEST_MESSAGE = 500, 4000


class RunControl(Protocol):
    """What following needs of the Control API."""

    def run_status(self, run_id: int) -> tuple[str, str]:
        """-> (state, what Flower says of a finished run)."""
        ...

    def stop_run(self, run_id: int) -> None:
        """Stop it."""
        ...


def follow(control: RunControl, run_id: int, path: Path, offset: int, tell: Callable[[Event], None]) -> None:
    """Tell of a run until it is done. Ctrl-C stops the run.

    Args:
        control: asked whether the run still lives.
        run_id: Flower's number of the run.
        path: the run's events.jsonl.
        offset: byte of it at which this run begins.
        tell: is given each event but the last.

    Raises:
        WardroundError: the error with which the run failed.
        RunStopped: somebody else stopped it.
        KeyboardInterrupt: after the run was stopped.
    """
    try:
        for event in _events(control, run_id, path, offset):
            if isinstance(event, RunFailed):
                raise _as_error(event)
            if isinstance(event, RunEnded):
                return
            tell(event)
    except KeyboardInterrupt:
        control.stop_run(run_id)
        raise


def last_event(path: Path) -> tuple[Event | None, str]:
    """(the last whole event of a run, or None; why its file cannot be read, or "")."""
    try:
        return next((event for _, event in reversed(list(whole_lines(path)))), None), ""
    except (WardroundError, OSError) as error:
        return None, str(error)


def _events(control: RunControl, run_id: int, path: Path, offset: int) -> Iterator[Event]:
    """Events as they come. Raises: FederationError, when the run ends without saying how; RunStopped."""
    asked, ended, ended_as = time.monotonic(), False, ""
    known = asked
    while True:
        for after, event in whole_lines(path, offset):
            offset, known = after, time.monotonic()
            yield event
        if ended and ended_as.split()[:1] == ["stopped"]:
            raise RunStopped("somebody stopped the run", do="run again with --resume: what is finished is kept")
        if ended and not room_on_disk(path.parent):
            raise StorageError(f"the disk of {path.parent} is full", do="make room, then run again with --resume")
        if ended:
            raise FederationError(
                f"the run ended early: {shown(ended_as, LONGEST_REASON)}",
                do="read superexec.log in the coordinator's home",
            )
        if time.monotonic() - asked > STATUS_EVERY_S:
            asked = time.monotonic()
            try:
                state, ended_as = control.run_status(run_id)
                known = asked if state != "unknown" else known
                if asked - known > LONGEST_SILENCE_S:
                    raise Unreachable("the coordinator does not answer")
            except Unreachable as error:
                raise Unreachable(
                    "the coordinator went away during the run", do="start it with `up`, then run again with --resume"
                ) from error
            ended = state == "finished"  # once more round the loop: its last words may have come meanwhile
        else:
            time.sleep(POLL_S)


def _as_error(event: RunFailed) -> WardroundError:
    """The error that the run's process met, as far as its name is one of ours."""
    kind = getattr(wardround.errors, event.error, None)
    if isinstance(kind, type) and issubclass(kind, WardroundError) and kind is not wardround.errors.PolicyRefusal:
        return kind(shown(event.message, LONGEST_MESSAGE))
    return FederationError(shown(event.message, LONGEST_MESSAGE))
