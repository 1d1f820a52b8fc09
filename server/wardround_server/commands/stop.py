"""`wardround coordinator stop`: stop a run that was started elsewhere."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home


def stop(
    home: HomeArgument,
    run_name: Annotated[str, typer.Argument(help="The run's name, as `status` shows it.", metavar="RUN")],
    as_json: JsonOption = False,
) -> None:
    """Stop a run that goes on, whoever started it: at another terminal, or on the page.

    It ends in the middle of its round. What its finished rounds came to is kept, and `run --resume` goes on.
    """
    coordinator = Home(home.absolute())
    coordinator.config()
    from wardround_server.office.runs import stop as stop_run

    stop_run(coordinator, run_name)
    if as_json:
        emit(event="stop", run=run_name)
        return
    say(f"The run {run_name} is stopped. Go on with `run` and --resume.")


command = Command(
    stop,
    panel="Run",
    place=6,
    examples=("wardround coordinator stop ~/coordinator spring",),
)
