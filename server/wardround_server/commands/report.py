"""`wardround coordinator report`: write a run's report."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home
from wardround_server.office.names import checked_run_name


def report(
    home: HomeArgument,
    run_name: Annotated[str, typer.Argument(help="The run's name, as `status` shows it.", metavar="RUN")],
    as_json: JsonOption = False,
) -> None:
    """Write report.html of a run, finished or not."""
    from wardround_server.report import write_report

    written = write_report(Home(home).run_folder(checked_run_name(run_name)))
    if as_json:
        emit(event="report", run=run_name, report=str(written))
    else:
        say(f"The report is {written}.")


command = Command(
    report,
    panel="Run",
    place=4,
    examples=("wardround coordinator report ~/coordinator spring",),
)
