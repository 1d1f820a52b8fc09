"""`wardround hospital certificate`: what was spent, as a file that a stranger can check; and the check of one."""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, PrivacyError, StorageError
from wardround.terminal import Fields, emit, say, show
from wardround.text import counted, shown
from wardround_client.commands._common import HERE, HomeArgument, checked

if TYPE_CHECKING:
    from wardround_client.privacy.certificate import Checked

FILE = "certificate.json"


def certificate(
    home: HomeArgument = HERE,
    to: Annotated[Path | None, typer.Option(help="Where to write it.", show_default=f"HOME/{FILE}")] = None,
    check: Annotated[
        Path | None, typer.Option(help="Check this certificate; no HOME is needed.", show_default=False)
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="With --check: the hospital's public key (its node.pub or join.json).", show_default=False),
    ] = None,
    knows: Annotated[
        list[str] | None,
        typer.Option(
            help="With --check: a digest that must be in it, of a reply that was received or of a head.",
            metavar="DIGEST",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write an epsilon certificate: a file from which anyone can see, offline, what this hospital has spent.

    It holds all entries of the ledger, which are public numbers, the epsilon and delta that are claimed for them, and
    the signature of the hospital's node key. It names the coordinator's address, the runs, and when each was answered.

    --check reads one, and ends with 4 when it does not hold. What a stranger needs for that, without wardround, is
    docs/how-to/verify_certificate.py and dp-accounting. It cannot show that there is no second ledger: so a coordinator
    gives the digests of the replies that it received to --knows.
    """
    if check is None:
        if key is not None or knows:
            raise ConfigError("--key and --knows are for --check", do="name the certificate: --check FILE")
        _make(checked(home), to, as_json)
    elif to is not None:
        raise ConfigError("--to and --check were both given", do="take one")
    else:
        _check(check, key, knows or [], as_json)


def _make(home: Path, to: Path | None, as_json: bool) -> None:
    from wardround.files import cannot_write, write_atomically
    from wardround_client.config import load_hospital_config
    from wardround_client.privacy import certificate as certificates
    from wardround_client.privacy.chain import OFFICER
    from wardround_client.privacy.ledger import Ledger

    config, to = load_hospital_config(home / "hospital.toml"), to or home / FILE
    with closing(Ledger.of(home)) as ledger:
        broken = ledger.verify()
        if broken is not None:
            raise StorageError(f"the ledger is broken at entry {broken}", do=OFFICER)
        data = certificates.make(ledger, config, certificates.key_of(home))
    try:
        write_atomically(to, data)
    except OSError as error:
        raise cannot_write(to, error) from None
    _told(certificates.check(data), to, as_json)


def _check(file: Path, key: Path | None, knows: list[str], as_json: bool) -> None:
    from wardround.given import CARD_BYTES, CERTIFICATE_BYTES, given_bytes, given_text
    from wardround_client.privacy import certificate as certificates

    found = certificates.check(given_bytes(file, CERTIFICATE_BYTES, do="name the certificate"))
    if key is not None:
        text = given_text(key, CARD_BYTES, do="name the hospital's node.pub or join.json")
        ours = re.search(r"ecdsa-sha2-nistp384 ([A-Za-z0-9+/=]+)", text)
        if ours is None:
            raise ConfigError(f"{key}: no public key on P-384 in it", do="name the hospital's node.pub or join.json")
        if found.certificate.public_key.split()[1:2] != [ours[1]]:
            raise PrivacyError(
                f"the certificate does not hold: it is not signed by the key of {key}",
                do="ask the hospital which key is its own",
            )
    for digest in knows:
        if digest.strip().lower() not in found.digests:
            raise PrivacyError(
                f"the certificate does not hold: {shown(digest, 64)} is not in it, so it is not of the whole ledger",
                do="ask the hospital what became of that reply",
            )
    _told(found, file, as_json)


def _told(found: Checked, file: Path, as_json: bool) -> None:
    said = found.certificate
    if as_json:
        emit(
            event="certificate",
            file=str(file),
            hospital=said.hospital,
            epsilon=said.epsilon,
            delta=said.delta,
            recomputed=found.recomputed,
            entries=len(said.entries),
            runs=len(found.runs),
            head=said.head,
            signed_by=found.fingerprint,
        )
        return
    show(
        Fields(
            {
                "hospital": f"{shown(said.hospital)}, declared patients: {said.declared_patients:,}",
                "claimed": f"epsilon {said.epsilon:.4g} at delta {said.delta:.3g}, {shown(said.time)}",
                "recomputed here": f"epsilon {found.recomputed:.4g}",
                "ledger": f"{counted(len(said.entries), 'entry', 'entries')}, {counted(len(found.runs), 'run')}",
                "head": said.head,
                "signed by": found.fingerprint or "NOBODY: anyone can have written it",
            },
            title="Epsilon certificate",
        )
    )
    say(f"Chain, prices and claim of {file} fit together.")


command = Command(
    certificate,
    panel="Look",
    place=4,
    examples=(
        "wardround hospital certificate ~/st-anna",
        "wardround hospital certificate ~/st-anna --to st-anna.json",
        "wardround hospital certificate --check st-anna.json --key node.pub",
        "wardround hospital certificate --check st-anna.json --knows 5e41…c07a",
    ),
)
