"""`wardround hospital up`: the daemon."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import emit, say
from wardround_client.commands._common import HERE, HomeArgument, checked


def up(
    home: HomeArgument = HERE,
    give_up_after_s: Annotated[
        float, typer.Option(help="End with exit code 6 when nothing connects for so long; 0: keep trying.", min=0)
    ] = 0.0,
    once: Annotated[bool, typer.Option("--once", help="Connect, say so and end.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the daemon until SIGTERM or Ctrl-C. It dials out, opens no port and reconnects by itself."""
    home = checked(home)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported: this program talks to its coordinator alone
    from wardround_client.config import load_hospital_config
    from wardround_client.service.daemon import Daemon, locked, stopped_by_signals
    from wardround_client.service.log_file import logging_to

    def show(line: str) -> None:
        if as_json:
            emit(event="link", detail=line)
        else:
            say(line)
        if once and line.startswith("connected"):
            daemon.stop.set()

    operations = load_hospital_config(home / "hospital.toml").operations
    with locked(home), logging_to(home, operations.log_format):
        daemon = Daemon(home, say=show)
        with stopped_by_signals(daemon.stop):
            daemon.run(give_up_after_s=give_up_after_s or (0.0 if once else None))


command = Command(
    up,
    panel="Take part",
    place=2,
    examples=(
        "wardround hospital up ~/st-anna",
        "wardround hospital up ~/st-anna --give-up-after-s 60",
        "wardround hospital up ~/st-anna --once",
    ),
)
