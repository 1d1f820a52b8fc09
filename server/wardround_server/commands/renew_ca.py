"""`wardround coordinator renew-ca`: another certificate authority, without a gap."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, Unreachable
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import Home
from wardround_server.network import tls


def renew_ca(
    home: HomeArgument,
    switch: Annotated[
        bool, typer.Option("--switch", help="Let the new CA sign from now on, and forget the old one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replace the certificate authority without a day on which nobody connects.

    1. Without --switch a new CA is made beside the old one, and invitation.toml holds both. Each hospital joins again
    with it, whenever it likes, and keeps its approvals: it then believes either. 2. When all have, or shortly before
    the old one ends: stop the coordinator, run this with --switch, and start it again.
    """
    coordinator = Home(home)
    config = coordinator.config()
    try:
        port = int(coordinator.running()["fleet"])
        if switch:
            raise ConfigError("the coordinator is running", do="stop it, run this again, and start it again")
    except Unreachable:
        port = config.listen.port
    tls.renew_ca(coordinator.tls, switch=switch)
    if switch:
        tls.create(coordinator.tls.folder, [config.address])
    invitation = coordinator.invite(config, port)
    if as_json:
        emit(event="renew-ca", switched=switch, invitation=str(invitation))
        return
    if switch:
        say(f"The new CA signs now. Who has not joined with it yet needs {invitation}.")
        return
    say(f"A new CA is made; nothing changes yet. Give {invitation} to each hospital: it joins again with it.")
    say(f"When all have: stop the coordinator, then `wardround coordinator renew-ca {home} --switch`.")


command = Command(
    renew_ca,
    panel="Maintain",
    place=2,
    examples=(
        "wardround coordinator renew-ca ~/coordinator",
        "wardround coordinator renew-ca ~/coordinator --switch",
    ),
)
