"""`wardround coordinator init`: a home folder with all that it needs."""

from __future__ import annotations

from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import COORDINATOR_TOML, FEDERATION_TOML, Home
from wardround_server.network import tls


def init(
    home: HomeArgument,
    host: Annotated[
        str,
        typer.Option(help="Host name or IP address that hospitals dial; default: as it is, or 127.0.0.1."),
    ] = "",
    port: Annotated[int, typer.Option(help="Port that hospitals dial; 0: any free one.", min=0, max=65535)] = 9092,
    listen: Annotated[
        str, typer.Option(help="Address to listen on; default: --host if it is loopback, else all.")
    ] = "",
    admin_port: Annotated[int, typer.Option(help="Loopback port for these commands.", min=0, max=65535)] = 9093,
    health_port: Annotated[int, typer.Option(help="Loopback port for health checks.", min=0, max=65535)] = 9094,
    as_json: JsonOption = False,
) -> None:
    """Make a home: certificates, coordinator.toml, an example federation.toml and the hospitals' invitation.toml.

    Run it again to renew a certificate that no longer fits; everything else is kept. Another --host is written into
    coordinator.toml and the invitation, and the certificate then covers the old name and the new one.
    """
    coordinator = Home(home)
    if not coordinator.config_file.exists():
        host = host or "127.0.0.1"
        loopback, six = host in ("localhost", "127.0.0.1", "::1"), ":" in host
        tls.create(coordinator.tls.folder, [host])
        text = COORDINATOR_TOML.format(
            address=host,
            host=listen or (("::1" if six else "127.0.0.1") if loopback else "::" if six else "0.0.0.0"),
            port=port,
            admin_port=admin_port,
            health_port=health_port,
        )
        coordinator.write("coordinator.toml", text)
    config = coordinator.config()
    if host and host != config.address:
        tls.create(coordinator.tls.folder, [host])  # what is no host ends here
        config = coordinator.move_to(host)
    tls.create(coordinator.tls.folder, [config.address])
    if not (home / "federation.toml").exists():
        coordinator.write("federation.toml", FEDERATION_TOML)
    invitation = coordinator.invite(config, config.listen.port)
    if as_json:
        emit(event="init", home=str(home.absolute()), invitation=str(invitation))
        return
    say(f"The coordinator's home is {home}.")
    say(f"Give {invitation} to each hospital; it answers with a join.json for `coordinator register`.")


command = Command(
    init,
    panel="Set up",
    place=1,
    examples=("wardround coordinator init ~/coordinator --host fl.example.org --port 9092",),
)
