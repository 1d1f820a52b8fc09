"""`wardround coordinator init`: a home folder with all that it needs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.experience.command import EpsilonOption, ExperienceOption, PatientsOption, known_rows
from wardround.terminal import emit, say
from wardround.toml import loads
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
    like: Annotated[
        Path | None,
        typer.Option(
            metavar="TASK.toml",
            help="Write the federation.toml that `wardround recommend` recommends for this task; needs --patients.",
        ),
    ] = None,
    patients: PatientsOption = "",
    epsilon: EpsilonOption = None,
    experience: ExperienceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a home: certificates, coordinator.toml, an example federation.toml and the hospitals' invitation.toml.

    Run it again to renew a certificate that no longer fits; everything else is kept. Another --host is written into
    coordinator.toml and the invitation, and the certificate then covers the old name and the new one.
    """
    coordinator = Home(home)
    agreement = _recommended(home, like, patients, epsilon, experience or [])
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
        coordinator.write("federation.toml", agreement)
    invitation = coordinator.invite(config, config.listen.port)
    if as_json:
        emit(event="init", home=str(home.absolute()), invitation=str(invitation))
        return
    say(f"The coordinator's home is {home}.")
    if like is not None:
        say(f"{home / 'federation.toml'} holds what is recommended for the task of {like}; read it before you agree.")
    say(f"Give {invitation} to each hospital; it answers with a join.json for `coordinator register`.")


def _recommended(home: Path, like: Path | None, patients: str, epsilon: float | None, experience: list[Path]) -> str:
    """The text of federation.toml. Raises: ConfigError."""
    if like is None:
        if patients or epsilon is not None or experience:
            raise ConfigError(
                "--patients, --epsilon or --experience without --like", do="name a task: --like TASK.toml"
            )
        return FEDERATION_TOML
    if (home / "federation.toml").exists():
        raise ConfigError(
            f"{home / 'federation.toml'} is there already, and is not written over",
            do="move it away, or see `wardround recommend`",
        )
    from wardround.config import Federation
    from wardround.experience.advice import Learned, advise
    from wardround.experience.asked import asked, described
    from wardround.experience.written import federation_toml

    found, text = asked(like)
    task = described(found, patients, epsilon)
    advice = advise(task, known_rows(experience, tell=True), Learned.ours())
    written = federation_toml(found, text, task, advice)
    loads(written, Federation, name=f"what is recommended for {like}")
    return written


command = Command(
    init,
    panel="Set up",
    place=1,
    examples=(
        "wardround coordinator init ~/coordinator --host fl.example.org --port 9092",
        "wardround coordinator init ~/coordinator --like task.toml --patients 200,150,90",
    ),
)
