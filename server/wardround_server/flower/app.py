"""The coordinator as a Flower ServerApp: `rounds.run` over Flower's Grid. Public Flower API only, and no code ships."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import ValidationError

from wardround.config import Federation
from wardround.errors import ConfigError, FederationError, StorageError, WardroundError
from wardround.files import Held, room_on_disk
from wardround.text import shown
from wardround_server.answers import AnswerBook
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import Registered, RunEnded, RunFailed
from wardround_server.experience import keep
from wardround_server.flower.reasons import TAKEN_FOR_DEAD
from wardround_server.flower.transport import GridTransport
from wardround_server.home import Home, RunOptions
from wardround_server.hospitals import Member, Registry
from wardround_server.network.limits import announced_run
from wardround_server.sinks import Sinks

if TYPE_CHECKING:
    from flwr.superlink.grid.http_grid import HttpGrid

HOME = "WARDROUND_COORDINATOR_HOME"
COORDINATOR_PID = "WARDROUND_COORDINATOR_PID"
LONGEST_MESSAGE = 4000  # characters of a failure's text

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One run. What happened stands in runs/<run>/events.jsonl; a failure is its last line, and Flower's too."""
    federation = _federation(context)
    home = Path(os.environ.get(HOME, "."))
    run_name = str(context.run_config.get("run") or f"{federation.name}-{context.run_id}")
    folder, registry = home / "runs" / run_name, Registry(home)
    _end_with_the_coordinator(home)
    # torch and the models are slow to import: not before Flower has been told that the run is alive.
    from wardround.models import build_model
    from wardround.schedule import Schedule
    from wardround.wire import reply_bytes
    from wardround_server.rounds import run

    wanted = Home(home).config().sinks if COORDINATOR_PID in os.environ else {}
    with Sinks(folder, wanted) as sinks, contextlib.ExitStack() as stack:
        try:
            model = federation.algorithm.extended(build_model(federation, folder))
            if COORDINATOR_PID in os.environ:  # deployed: Flower's own Grid over HTTP, and only who is registered
                from wardround_server.flower.mail import Mail

                longest = reply_bytes(max(Schedule.of(federation).answer_sizes(federation, model)))
                stack.enter_context(announced_run(home, context.run_id, longest))
                transport = GridTransport(
                    grid, registry.by_node, mail=Mail(_over_http(grid), longest, federation.digest)
                )
            else:  # a simulation under `flwr run`: nobody registers, and every node is taken at its word
                transport = GridTransport(grid, dict, everybody=True, digest=federation.digest)
            for event in run(
                federation,
                model,
                transport,
                Checkpointer(folder),
                deltas={each.name: each.delta for each in registry if each.delta is not None},
                run_name=run_name,
                answers=AnswerBook.of_home(home, registry),
                resume=bool(context.run_config.get("resume", False)),
                registered=lambda: {each.name: _registered(each) for each in registry},
                wait_s=RunOptions.of(folder).wait_s,
            ):
                if isinstance(event, RunEnded) and COORDINATOR_PID in os.environ:
                    keep(folder, federation, home)
                sinks.tell(event)
        except Held:
            raise  # the events are those of the run that is going on: its end is not ours to tell
        except Exception as error:
            if type(error).__name__ == "RunNotRunningException":  # somebody stopped it, which is no failure
                raise
            known = error if isinstance(error, WardroundError) else _of_flower(error, home)
            message = shown(known, LONGEST_MESSAGE)
            failed = RunFailed(run=run_name, error=type(known).__name__, message=message, exit_code=known.exit_code)
            sinks.tell(failed)
            raise known from error


def _registered(hospital: Member) -> Registered:
    return Registered(declared_patients=hospital.declared_patients, delta=hospital.delta)


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


def _over_http(grid: Grid) -> HttpGrid:
    from flwr.superlink.grid.http_grid import HttpGrid

    if not isinstance(grid, HttpGrid):
        raise FederationError(f"Flower gave a {type(grid).__name__}", do="install the flwr that wardround names")
    return grid


def _of_flower(error: Exception, home: Path) -> WardroundError:
    """What Flower raised in the middle of a round, in words."""
    if isinstance(error, httpx.HTTPStatusError) and error.response.status_code == httpx.codes.UNAUTHORIZED:
        return FederationError(TAKEN_FOR_DEAD, do="run again with --resume, when the machine is less busy")
    if not room_on_disk(home):
        return StorageError(f"the disk of {home} is full", do="make room, then run again with --resume")
    return FederationError(
        f"the coordinator did not answer its own run ({type(error).__name__}: {shown(error)})",
        do="read coordinator.log in the coordinator's home, then run again with --resume",
    )


def _federation(context: Context) -> Federation:
    try:
        return Federation.from_canonical(str(context.run_config["federation"]))
    except (KeyError, ValueError, ValidationError) as error:
        raise ConfigError(
            f"the bundle holds no valid federation ({type(error).__name__})", do="submit it with `coordinator run`"
        ) from None
