"""The coordinator as a Flower ServerApp: `rounds.run` over Flower's Grid. Public Flower API only, and no code ships."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from wardround.config import Federation
from wardround.errors import ConfigError, FederationError, MessageError, StorageError, WardroundError
from wardround.files import Held
from wardround_flower import MESSAGE_TYPE, pack, unpack
from wardround_server.checkpoint import Checkpointer
from wardround_server.hospitals import Hospital, Registry

HOME = "WARDROUND_COORDINATOR_HOME"
COORDINATOR_PID = "WARDROUND_COORDINATOR_PID"
EVENTS = "events.jsonl"
POLL_S, SLOWEST_POLL_S = 0.05, 0.25
log = logging.getLogger(__name__)

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run. What happened stands in runs/<run>/events.jsonl; a failure is its last line, and Flower's too."""
    federation = _federation(context)
    home = Path(os.environ.get(HOME, "."))
    run_name = str(context.run_config.get("run") or f"{federation.name}-{context.run_id}")
    folder = home / "runs" / run_name
    _end_with_the_coordinator(home)
    # torch and the models are slow to import: not before Flower has been told that the run is alive.
    from wardround.meta import extended
    from wardround.models import build_model
    from wardround_server.rounds import run

    if COORDINATOR_PID in os.environ:  # deployed: the Grid is Flower's own, over HTTP
        from wardround_server.superlink import ask_again_soon

        ask_again_soon()

    with EventLog(folder) as events:
        try:
            for event in run(
                federation,
                extended(build_model(federation, folder), federation),
                GridTransport(grid, Registry(home).by_node()),
                Checkpointer(folder),
                deltas={each.name: each.delta for each in Registry(home) if each.delta is not None},
                run_name=run_name,
                resume=bool(context.run_config.get("resume", False)),
            ):
                events.write(event)
        except Held:
            raise  # the events are those of the run that is going on: its end is not ours to tell
        except WardroundError as error:
            events.write(
                {
                    "event": "failed",
                    "run": run_name,
                    "error": type(error).__name__,
                    "message": str(error),
                    "exit_code": error.exit_code,
                }
            )
            raise


class GridTransport:
    """Hospitals behind a Flower Grid. Names are those of `hospitals` (by node id), else the node ids themselves."""

    def __init__(self, grid: Grid, hospitals: Mapping[int, Hospital]) -> None:
        self._grid = grid
        self._names = {node: hospital.name for node, hospital in hospitals.items()}
        self._declared = {hospital.name: hospital.declared_patients for hospital in hospitals.values()}
        self._nodes: dict[str, int] = {}

    def hospitals(self) -> Sequence[str]:
        """Names of those that Flower has heard of lately."""
        self._nodes = {self._names.get(node, str(node)): node for node in self._grid.get_node_ids()}
        return sorted(self._nodes)

    def declared_patients(self, name: str) -> int | None:
        """What the hospital registered with; None for a node that nobody registered."""
        return self._declared.get(name)

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Send each request as one message; yield replies and failures as they arrive, until the deadline."""
        until = time.monotonic() + deadline_s
        names, messages = list(requests), []
        for name, blob in requests.items():
            messages.append(Message(pack(blob), self._nodes[name], MESSAGE_TYPE, ttl=deadline_s + 60.0))
        # A failure's sender is the SuperLink, so replies are told apart by what they reply to.
        waiting = {}
        for name, identity in zip(names, self._grid.push_messages(messages), strict=True):
            if identity:
                waiting[identity] = name
            else:
                yield name, FederationError("the message could not be sent")
        pause = POLL_S
        while waiting and time.monotonic() < until:
            for reply in self._grid.pull_messages(list(waiting)):
                name = waiting.pop(reply.metadata.reply_to_message_id)
                yield name, _outcome(reply)
            if waiting:
                time.sleep(pause)
                pause = min(pause * 1.1, SLOWEST_POLL_S)  # who has not answered soon is computing: leave it the CPU


class EventLog:
    """events.jsonl: one JSON object a line, on the disk before the next round begins."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / EVENTS
        self._file: IO[str] | None = None

    def __enter__(self) -> EventLog:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("a", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written ({error.strerror})", do="check the disk") from None
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()

    def write(self, event: Mapping[str, object]) -> None:
        """Append one event. Raises: StorageError."""
        assert self._file is not None
        try:
            self._file.write(json.dumps(event) + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be written ({error.strerror})", do="make room, resume") from None


def _end_with_the_coordinator(home: Path) -> None:
    """End this process when the coordinator that started it has ended or was replaced.

    Flower's process goes on asking a SuperLink that was killed, for ever, and would keep the run from being resumed.
    Nothing is lost: the checkpoint is on the disk after every round. Without a coordinator (a simulation) nothing is
    watched.
    """
    if COORDINATOR_PID not in os.environ:
        return
    pid = int(os.environ[COORDINATOR_PID])

    def watch() -> None:
        while True:
            try:
                os.kill(pid, 0)
                if json.loads((home / "up.json").read_text(encoding="utf-8"))["pid"] != pid:
                    os._exit(1)
            except (OSError, ValueError, KeyError):
                os._exit(1)
            time.sleep(0.3)

    threading.Thread(target=watch, name="coordinator-watch", daemon=True).start()


def _outcome(reply: Message) -> bytes | WardroundError:
    if reply.has_error():
        return FederationError(f"Flower reports error {reply.error.code}: {str(reply.error.reason)[:200]}")
    try:
        return unpack(reply.content)
    except MessageError as error:
        return error


def _federation(context: Context) -> Federation:
    try:
        return Federation.model_validate(json.loads(str(context.run_config["federation"])))
    except (KeyError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"the bundle holds no valid federation ({type(error).__name__})", do="submit it with `coordinator run`"
        ) from None
