"""Watching a run from outside: its events as they are written, and what Flower says of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

import wardround.errors
from wardround.errors import FederationError, StorageError, Unreachable, WardroundError
from wardround.files import room_on_disk
from wardround.text import shown

POLL_S = 0.1
STATUS_EVERY_S = 1.0
LONGEST_REASON, LONGEST_MESSAGE = 500, 4000


class RunControl(Protocol):
    """What following needs of the Control API."""

    def run_status(self, run_id: int) -> tuple[str, str]:
        """-> (state, what Flower says of a finished run)."""
        ...

    def stop_run(self, run_id: int) -> None:
        """Stop it."""
        ...


def follow(control: RunControl, run_id: int, folder: Path, offset: int, *, as_json: bool, console: Console) -> None:
    """Show a run until it is done. Ctrl-C stops the run.

    Args:
        control: asked whether the run still lives.
        run_id: Flower's number of the run.
        folder: the run's folder, with events.jsonl.
        offset: byte of events.jsonl at which this run begins.
        as_json: print the events instead of a progress bar.
        console: where the progress bar goes.

    Raises:
        WardroundError: the error with which the run failed.
        KeyboardInterrupt: after the run was stopped.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[news]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=as_json) as progress:
        bar = progress.add_task("starting", total=None, news="")
        try:
            for event in _events(control, run_id, folder / "events.jsonl", offset):
                if event["event"] == "failed":
                    raise _as_error(event)
                if event["event"] == "done":
                    return
                if as_json:
                    print(json.dumps(event), flush=True)
                elif event["event"] == "start":
                    progress.update(bar, total=event["rounds"], completed=event["from_round"], description=event["run"])
                    if event.get("rule", "mean") != "mean" and not event["liars_borne"]:
                        progress.console.print(
                            f"outer.rule {event['rule']} is the mean while fewer than three hospitals answer: of two "
                            "that disagree, nobody can tell which one lies.",
                            markup=False,
                        )
                elif event["event"] == "waiting":
                    progress.update(bar, news=f"waiting until {event['quorum']} hospitals are connected")
                else:
                    progress.update(bar, completed=event["round"] + 1, news=_news(event))
                    for who, reason in event["rejected"].items():
                        line = f"round {event['round']}: {shown(who)}: {shown(reason, LONGEST_REASON)}"
                        progress.console.print(line, markup=False)
                    for who, factor in event.get("clipped", {}).items():
                        said = f"round {event['round']}: {shown(who)}: cut to {100 * factor:.0f} % of its length"
                        progress.console.print(f"{said}: no honest reply is longer", markup=False)
        except KeyboardInterrupt:
            control.stop_run(run_id)
            if not as_json:
                progress.console.print("The run is stopped. Go on with the same command and --resume.")
            raise


def last_event(folder: Path) -> dict[str, Any]:
    """The last whole event of a run; empty without one."""
    events = list(_whole_lines(folder / "events.jsonl", 0))
    return dict(events[-1][1]) if events else {}


def _events(control: RunControl, run_id: int, path: Path, offset: int) -> Iterator[dict[str, Any]]:
    """Events as they come. Raises: FederationError, when the run ends without saying how."""
    asked, ended, ended_as = time.monotonic(), False, ""
    while True:
        for after, event in _whole_lines(path, offset):
            offset = after
            yield event
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
            except Unreachable as error:
                raise Unreachable(
                    "the coordinator went away during the run", do="start it with `up`, then run again with --resume"
                ) from error
            ended = state == "finished"  # once more round the loop: its last words may have come meanwhile
        else:
            time.sleep(POLL_S)


def _whole_lines(path: Path, offset: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """(byte after it, event) for each line from `offset` that is written to its end."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield offset, json.loads(line)


def _news(event: dict[str, Any]) -> str:
    parts = [f"{event['replied']}/{event['hospitals']} hospitals"]
    if event.get("epsilon_max") is not None:
        parts.append(f"epsilon {event['epsilon_max']:.2f}")
    if event.get("accuracy") is not None:
        parts.append(f"accuracy {event['accuracy']:.3f}")
    return ", ".join(parts)


def _as_error(event: dict[str, Any]) -> WardroundError:
    """The error that the run's process met, as far as its name is one of ours."""
    kind = getattr(wardround.errors, str(event["error"]), None)
    if isinstance(kind, type) and issubclass(kind, WardroundError) and kind is not wardround.errors.PolicyRefusal:
        return kind(shown(event["message"], LONGEST_MESSAGE))
    return FederationError(shown(event["message"], LONGEST_MESSAGE))
