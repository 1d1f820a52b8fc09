"""`wardround hospital status`: what the daemon does; without one, what the files say."""

from __future__ import annotations

import typer

from wardround.command import Command, JsonOption
from wardround.errors import Unreachable
from wardround.terminal import say
from wardround_client.commands._common import HERE, HomeArgument, checked
from wardround_client.commands._status import print_status
from wardround_client.office.status import beside, from_daemon, from_files


def status(home: HomeArgument = HERE, as_json: JsonOption = False) -> None:
    """Show the daemon's status. Without a daemon: what the ledger says, and exit code 6.

    `approved` lists digests; `wardround hospital revoke HOME DIGEST` takes an approval back.
    """
    home = checked(home)
    from wardround_client.service.control import Control

    try:
        with Control(home) as control:
            state = from_daemon(control.status()) | beside(home)
    except Unreachable as error:
        print_status(from_files(home) | beside(home), as_json)
        if not as_json:
            say(str(error))
        raise typer.Exit(error.exit_code) from None
    print_status(state, as_json)


command = Command(
    status,
    panel="Look",
    place=1,
    examples=("wardround hospital status ~/st-anna", "wardround hospital status ~/st-anna --json"),
)
