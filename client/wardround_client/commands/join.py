"""`wardround hospital join`: which coordinator a hospital dials."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.files import cannot_write, write_atomically
from wardround.given import TOML_BYTES, given_text
from wardround.terminal import emit, say
from wardround.text import is_plain, shown
from wardround.toml import parsed
from wardround_client.commands._common import NewHome, checked
from wardround_client.commands._template import with_coordinator

if TYPE_CHECKING:
    from wardround_client.config import CoordinatorAddress

CA_FILE = "coordinator-ca.pem"
_AUTHORITIES = 4


def join(
    home: NewHome,
    invitation: Annotated[Path | None, typer.Argument(help="The coordinator's invitation.toml.")] = None,
    address: Annotated[str, typer.Option(help="host:port of the coordinator, instead of an invitation.")] = "",
    ca: Annotated[Path | None, typer.Option(help="The coordinator's CA certificate (PEM), with --address.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Set the coordinator: its address and the certificate authority to trust. Nothing is connected yet."""
    home = checked(home)
    if invitation is not None and (address or ca):
        raise ConfigError("an invitation and --address or --ca", allowed="one of the two")
    endorsements: list[str] = []
    if invitation is not None:
        address, pem, endorsements = invited(_text(invitation), str(invitation))
    elif address and ca:
        pem = _text(ca)
    else:
        raise ConfigError("neither an invitation nor --address and --ca", do="name the coordinator's invitation.toml")
    check_coordinator(address, pem)
    file = home / "hospital.toml"
    before = _text(file)
    from wardround.toml import loads
    from wardround_client.config import HospitalConfig
    from wardround_client.keys import create_node_key, write_card

    joined = loads(before, HospitalConfig, name=str(file)).coordinator
    same = _is_the_same(home, joined, pem, endorsements)
    digest = hashlib.sha256(pem.encode()).hexdigest()
    after = with_coordinator(before, address, CA_FILE, digest, joined.identity if same else "")
    config = loads(after, HospitalConfig, name=str(file))
    _replace(home / CA_FILE, pem)
    _replace(file, after)
    if config.budget.delta:
        hospital, key = config.hospital, create_node_key(home)
        write_card(
            home,
            name=hospital.name,
            declared_patients=hospital.declared_patients,
            public_key=key,
            delta=config.budget.delta,
        )
    if as_json:
        emit(event="join", hospital=config.hospital.name, address=address, ca_file=CA_FILE, same_coordinator=same)
        return
    if joined.address:
        which = "the same coordinator: approvals stay" if same else "ANOTHER coordinator: it needs approvals of its own"
        say(f"This is {which}.")
    say(f"{config.hospital.name} will connect to {address}, and believe only its CA ({home / CA_FILE}).")
    if config.budget.delta:
        say(f"{home / 'join.json'} now names its delta of {config.budget.delta:g}: give it to the coordinator again.")


def _is_the_same(home: Path, joined: CoordinatorAddress, pem: str, endorsements: list[str]) -> bool:
    """Whether this CA file is that of the coordinator that was joined before, or of one that it endorsed."""
    from wardround.certificates import continues

    try:
        before = (home / joined.ca_file).read_bytes()
        return bool(joined.ca_sha256) and joined.is_pinned_to(before) and continues(before, pem.encode(), endorsements)
    except (OSError, ValueError):
        return False


def invited(text: str, path: str) -> tuple[str, str, list[str]]:
    """(address, CA in PEM, endorsements of the CA) of an invitation.toml's text. Raises: ConfigError."""
    try:
        given = parsed(text, name=path)
        address, pem = given["address"], given["ca_pem"]
    except KeyError as error:
        raise ConfigError(
            f"{path} is not an invitation ({error} is missing)",
            allowed="address and ca_pem",
            do="ask the coordinator for it again",
        ) from None
    if not (isinstance(address, str) and isinstance(pem, str)):
        raise ConfigError(f"{path} is not an invitation", allowed="address and ca_pem, both text")
    endorsements = given.get("endorsements", [])
    if not (
        isinstance(endorsements, list) and len(endorsements) <= 8 and all(isinstance(e, str) for e in endorsements)
    ):
        raise ConfigError(f"{path} is not an invitation", allowed="endorsements, a list of at most 8 texts")
    return address, pem, endorsements


def check_coordinator(address: str, pem: str) -> None:
    """That these can be an address and a CA. Raises: ConfigError."""
    _check_address(address)
    _check_certificate(pem)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    named = host and len(host) <= 255 and is_plain(host) and not set(host) & set(" /")
    if not (named and port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 65535):
        raise ConfigError(
            f"coordinator.address = {shown(address)!r}", allowed="host:port, for example fl.example.org:9092"
        )


def _check_certificate(pem: str) -> None:
    from cryptography import x509

    try:
        count = len(x509.load_pem_x509_certificates(pem.encode("ascii")))
    except ValueError:
        count = 0
    if not 1 <= count <= _AUTHORITIES:
        raise ConfigError(
            "the coordinator's CA is not a PEM certificate"
            if count == 0
            else f"{count} certificates of the coordinator",
            allowed=f"1 to {_AUTHORITIES}, while a CA is replaced",
            do="ask the coordinator for it again",
        )


def _text(path: Path) -> str:
    return given_text(path, TOML_BYTES, do="name the right file")


def _replace(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise cannot_write(path, error) from None


command = Command(
    join,
    panel="Set up",
    place=2,
    examples=(
        "wardround hospital join ~/st-anna invitation.toml",
        "wardround hospital join ~/st-anna --address fl.example.org:9092 --ca ca.crt",
    ),
)
