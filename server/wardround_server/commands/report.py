"""`wardround coordinator report`: write a run's report."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command
from wardround.terminal import say
from wardround_server.commands._common import HomeArgument, checked_run_name
from wardround_server.home import Home


def report(
    home: HomeArgument,
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="The name of the run.", show_default=False)],
) -> None:
    """Write report.html of a run, finished or not."""
    from wardround_server.report import write_report

    say(f"The report is {write_report(Home(home).run_folder(checked_run_name(run_name)))}.")


command = Command(
    report,
    panel="Run",
    place=4,
    examples=("wardround coordinator report ~/coordinator spring",),
)
