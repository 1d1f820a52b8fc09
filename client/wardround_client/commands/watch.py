"""`wardround hospital watch`: the status, again at every change."""

from __future__ import annotations

from wardround.command import Command, JsonOption
from wardround.terminal import console
from wardround_client.commands._common import HERE, HomeArgument, checked
from wardround_client.commands._status import print_status, status_fields
from wardround_client.office.status import from_daemon


def watch(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Show the daemon's status at every change, until Ctrl-C or the daemon's end."""
    home = checked(home)
    from rich.live import Live

    from wardround_client.service.control import Control

    with Control(home) as control:
        if as_json or not console.is_terminal:
            for reply in control.watch():
                print_status(from_daemon(reply), as_json)
            return
        with Live(console=console, auto_refresh=False) as live:
            for reply in control.watch():
                live.update(status_fields(from_daemon(reply)), refresh=True)


command = Command(
    watch,
    panel="Look",
    place=2,
    examples=("wardround hospital watch ~/st-anna", "wardround hospital watch ~/st-anna --json"),
)
