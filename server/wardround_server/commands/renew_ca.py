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
        bool, typer.Option("--switch", help="Sign with the new CA from now on, and drop the old one.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Replace the certificate authority without a day on which nobody connects.

    1. Without --switch: make a new CA beside the old one. invitation.toml then holds both; each hospital joins again
    with it, whenever it likes, keeps its approvals, and trusts both. 2. When all have done so, or shortly before the
    old one ends: stop the coordinator, run this command with --switch, and start the coordinator again.
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
        say(f"The new CA signs now. A hospital that has not joined with it yet needs {invitation}.")
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
