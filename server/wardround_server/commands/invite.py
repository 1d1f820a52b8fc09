"""`wardround coordinator invite`: a startup kit for a hospital."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.files import cannot_write, write_atomically
from wardround.terminal import emit, say
from wardround_server.commands._common import HomeArgument
from wardround_server.home import CoordinatorConfig, Home
from wardround_server.office.names import checked_hospital_name


def invite(
    home: HomeArgument,
    name: Annotated[str, typer.Argument(help="How the federation will call the hospital.", show_default=False)],
    federation: Annotated[
        Path | None, typer.Option(help="The agreement; default: federation.toml in the home.", show_default=False)
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The kit's file; default: kits/NAME.zip in the home.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a startup kit: one zip with all that a hospital needs to set itself up, and no secret.

    It holds the coordinator's address and certificate authority, the agreement, the encoder file where the agreement
    pins one, and instructions. The hospital types `wardround hospital setup KIT HOME`. The same files always make the
    same bytes, so read the digest out to the hospital over the telephone: who compares it knows that nobody changed the
    kit on its way. A new CA, address or agreement is a new kit.
    """
    coordinator = Home(home)
    config, name = coordinator.config(), checked_hospital_name(name)
    from wardround.config import Federation, agreement_text
    from wardround.given import ENCODER_BYTES, given_bytes
    from wardround.kit import AGREEMENT, Kit, digest, spoken
    from wardround.toml import loads

    file = federation or home / AGREEMENT
    text = agreement_text(file)
    encoder = loads(text, Federation, name=str(file)).model.encoder
    weights = None
    if encoder != "builtin":
        weights = given_bytes(file.parent / encoder, ENCODER_BYTES, do="put the encoder beside the federation.toml")
    invitation = coordinator.invite(config, _port(coordinator, config)).read_bytes()
    kit = Kit.of(name, invitation, text.encode(), weights)
    data, out = kit.build(), out or home / "kits" / f"{name}.zip"
    try:
        out.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_atomically(out, data)
    except OSError as error:
        raise cannot_write(out, error) from None
    if as_json:
        emit(event="invite", hospital=name, kit=str(out), sha256=digest(data), agreement=kit.federation.digest)
        return
    say(f"The kit of {name} is {out} ({len(data):,} bytes, no secret). Send it by any road; this is its digest:")
    say(f"  {spoken(digest(data))}", "bold")
    say("Read it out to the hospital over the telephone, all of it. There: wardround hospital setup KIT HOME")
    say("The hospital answers with a join.json for `coordinator register`.")


def _port(coordinator: Home, config: CoordinatorConfig) -> int:
    """What hospitals dial. Raises: ConfigError; Unreachable, when any free port is taken and none is yet."""
    return config.listen.port or int(coordinator.running()["fleet"])


command = Command(
    invite,
    panel="Set up",
    place=3,
    examples=(
        "wardround coordinator invite ~/coordinator st-anna",
        "wardround coordinator invite ~/coordinator st-anna --federation spring.toml --out st-anna.zip",
    ),
)
