"""`wardround coordinator run`: run a federation to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import WardroundError
from wardround.terminal import console, emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.follow import follow
from wardround_server.home import Home
from wardround_server.office.runs import Order
from wardround_server.sinks import Tell, progress
from wardround_server.sinks.jsonl import FILE as EVENTS


def run(
    home: HomeArgument,
    federation: Annotated[
        Path, typer.Argument(help="The agreement, as the hospitals approved it.", show_default=False)
    ],
    run_name: Annotated[str, typer.Option("--run", help="The run's name; default: the federation's.")] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on after the last finished round.")] = False,
    wait: Annotated[
        int,
        typer.Option(help="Seconds to wait for all registered hospitals; then a quorum is enough.", min=0, max=86_400),
    ] = 60,
    as_json: JsonOption = False,
) -> None:
    """Run a federation to its end and write the report. Stop it with Ctrl-C, go on with --resume."""
    from wardround_server.flower.control import ControlApi
    from wardround_server.report import write_report

    coordinator = Home(home.absolute())
    order = Order.checked(coordinator, federation, run_name, resume=resume, wait_s=wait)
    folder = order.folder
    with ControlApi(order.admin, coordinator.tls.ca) as control, _shown(as_json) as tell:
        run_id, start = order.start(control)
        try:
            follow(control, run_id, folder / EVENTS, start, tell)
        except BaseException as error:
            with suppress(WardroundError):  # of a run that failed, too
                report = write_report(folder)
                if not as_json:
                    say(f"The report of what was done is {report}.")
            if isinstance(error, KeyboardInterrupt) and not as_json:
                say("The run is stopped. Go on with the same command and --resume.")
            raise
    report = write_report(folder)
    if as_json:
        emit(event="done", run=order.name, report=str(report))
    else:
        say(f"The report is {report}.")


@contextmanager
def _shown(as_json: bool) -> Iterator[Tell]:
    """Where the events go: on the screen, or as JSON, a line each."""
    if as_json:
        yield lambda event: print(event.line(), flush=True)
        return
    with progress.on(console) as tell:
        yield tell


command = Command(
    run,
    panel="Run",
    place=2,
    examples=(
        "wardround coordinator run ~/coordinator federation.toml",
        "wardround coordinator run ~/coordinator federation.toml --run spring --resume",
        "wardround coordinator run ~/coordinator federation.toml --json",
    ),
)
