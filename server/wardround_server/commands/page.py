"""`wardround coordinator page`: the coordinator's pages in a browser on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home


def page(
    home: HomeArgument,
    federations: Annotated[
        list[Path] | None,
        typer.Argument(help="Agreements to start, beside HOME/federation.toml.", metavar="[FEDERATION]..."),
    ] = None,
    port: Annotated[int, typer.Option(help="On 127.0.0.1; 0: any that is free.", min=0, max=65535)] = 0,
    as_json: JsonOption = False,
) -> None:
    """Show the coordinator in a browser: runs as they happen, hospitals and why one is late, start and resume. Until
    Ctrl-C.

    It prints a link that works once, for one browser of this machine. Only your own processes are answered. The page
    does what the commands do; a run that it started goes on when the page ends.
    """
    from wardround.web.serving import serve
    from wardround_server.flower.environment import prepare

    coordinator = Home(home.absolute())
    coordinator.config()
    prepare(coordinator.folder, log="page.log")  # Flower reads its environment when it is imported
    from wardround_server.pages.desk import Desk
    from wardround_server.pages.site import app

    serve(app(Desk(coordinator, [file.absolute() for file in federations or []])), port, as_json=as_json)


command = Command(
    page,
    panel="Run",
    place=5,
    examples=("wardround coordinator page ~/coordinator",),
)
