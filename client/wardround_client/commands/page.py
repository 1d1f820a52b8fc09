"""`wardround hospital page`: the hospital's pages in a browser on this machine."""

from __future__ import annotations

import os
import threading
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround_client.commands._common import NewHome, checked


def page(
    home: NewHome,
    federations: Annotated[
        list[Path] | None,
        typer.Argument(help="Agreements to show, beside those in HOME/proposed.", metavar="[FEDERATION]..."),
    ] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0: any that is free.", min=0, max=65535)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show the hospital in a browser: what waits for an approval, the budget, what left. Until Ctrl-C.

    It prints a link that works once, for one browser of this machine. Only your own processes are answered. The page
    does what the commands do; the daemon may run meanwhile, and goes on when the page ends.

    From another machine: `ssh -L 8470:127.0.0.1:8470 HOSPITAL`, with --port 8470 here.
    """
    home = checked(home)
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # before Flower is imported
    from wardround.web.serving import serve
    from wardround_client.pages.desk import Desk
    from wardround_client.pages.process import LOG
    from wardround_client.pages.site import app
    from wardround_client.pages.work import end
    from wardround_client.service.log_file import logging_to

    # What an agreement is checked with takes seconds to import, and the person reads the first page meanwhile.
    threading.Thread(target=import_module, args=("opacus",), name="imports", daemon=True).start()
    desk = Desk(home, [file.absolute() for file in federations or []])
    with logging_to(home, name=LOG):
        try:
            serve(app(desk), port, as_json=as_json)
        finally:
            end(desk.site)


command = Command(
    page,
    panel="Look",
    place=5,
    examples=(
        "wardround hospital page ~/st-anna",
        "wardround hospital page ~/st-anna federation.toml --port 8470",
    ),
)
