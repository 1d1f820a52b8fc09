"""`wardround hospital init | join | ingest`: everything before the daemon runs."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import MofNCompleteColumn

from wardround.errors import ConfigError, DataError, StorageError
from wardround.files import write_atomically
from wardround.given import TOML_BYTES, given_text
from wardround.text import is_plain, shown
from wardround.toml import parsed
from wardround_client.commands.common import (
    JsonOption,
    NewHome,
    app,
    checked,
    console,
    emit,
    example,
    progress_bar,
    say,
    show,
)
from wardround_client.commands.template import HOSPITAL_TOML, with_coordinator

if TYPE_CHECKING:
    from wardround_client.config import CoordinatorAddress
    from wardround_client.intake.ingest import IngestSummary

NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
CA_FILE = "coordinator-ca.pem"
_AUTHORITIES = 4


@app.command(epilog=example("wardround hospital init ~/st-anna --name st-anna --patients 400"))
def init(
    home: NewHome,
    name: Annotated[str, typer.Option(help="How the federation calls this hospital.", show_default=False)],
    patients: Annotated[
        int,
        typer.Option(help="A round PUBLIC number near the cohort's size, never the exact one.", min=1, max=10**9),
    ],
    as_json: JsonOption = False,
) -> None:
    """Make a hospital's home: hospital.toml, the key of the pseudonyms, the node's key, and its card join.json."""
    if not NAME.match(name):
        raise ConfigError(f"the name {name!r}", allowed="up to 63 letters, digits, dots, dashes and underscores")
    from wardround_client.hospital import Hospital
    from wardround_client.keys import create_node_key, write_card

    hospital = Hospital.create(home, HOSPITAL_TOML.format(name=name, patients=patients))
    hospital.ledger.close()
    card = write_card(home, name=name, declared_patients=patients, public_key=create_node_key(home))
    if as_json:
        emit(event="init", home=str(home.absolute()), name=name, declared_patients=patients, card=str(card))
        return
    say(f"The home of {name} is {home}. Only its owner can read it; keep a backup of secret.key.")
    console.print("Next:", style="bold")
    say(f"  1. read {home / 'hospital.toml'}: the budget and the policy are this hospital's alone")
    say(f"  2. wardround hospital ingest {home} DICOM_DIR --labels labels.csv")
    say(f"  3. give {card} to the coordinator; it holds no secret")
    say(f"  4. wardround hospital join {home} invitation.toml      (from the coordinator)")
    say(f"  5. wardround hospital approve {home} federation.toml   (from the coordinator)")
    say(f"  6. wardround hospital up {home}")


@app.command(
    epilog=example(
        "wardround hospital join ~/st-anna invitation.toml",
        "wardround hospital join ~/st-anna --address fl.example.org:9092 --ca ca.crt",
    )
)
def join(
    home: NewHome,
    invitation: Annotated[Path | None, typer.Argument(help="The coordinator's invitation.toml.")] = None,
    address: Annotated[str, typer.Option(help="host:port of the coordinator, instead of an invitation.")] = "",
    ca: Annotated[Path | None, typer.Option(help="The coordinator's CA certificate (PEM), with --address.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Write down where the coordinator is and by which certificate it is known. Nothing is connected yet."""
    home = checked(home)
    if invitation is not None and (address or ca):
        raise ConfigError("an invitation and --address or --ca", allowed="one of the two")
    endorsements: list[str] = []
    if invitation is not None:
        address, pem, endorsements = _invitation(invitation)
    elif address and ca:
        pem = _text(ca)
    else:
        raise ConfigError("neither an invitation nor --address and --ca", do="name the coordinator's invitation.toml")
    _check_address(address)
    _check_certificate(pem)
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


@app.command(
    epilog=example(
        "wardround hospital ingest ~/st-anna /data/dicom --labels labels.csv --federation federation.toml",
        "wardround hospital ingest ~/st-anna /data/dicom --labels labels.csv --size 64 --channels 1",
        "wardround hospital ingest ~/st-anna --table heart.csv --federation federation.toml --patient-column id",
    )
)
def ingest(
    home: NewHome,
    dicom_dir: Annotated[Path | None, typer.Argument(help="Folder of DICOM files, with its sub-folders.")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(
            help="CSV: PatientID, StudyInstanceUID or SOPInstanceUID, and label columns. A column `manufacturer` says "
            "who made the scanner where a file does not."
        ),
    ] = None,
    federation: Annotated[Path | None, typer.Option(help="Take size or features from this agreement.")] = None,
    size: Annotated[int, typer.Option(help="Side of the stored images in pixels.", min=8, max=1024)] = 64,
    channels: Annotated[int, typer.Option(help="1 (grey) or 3 (RGB).", min=1, max=3)] = 1,
    table: Annotated[Path | None, typer.Option(help="A CSV of measurements instead of DICOM files.")] = None,
    patient_column: Annotated[
        str, typer.Option(help="With --table: whose row it is; empty: each row is another patient.")
    ] = "",
    workers: Annotated[int, typer.Option(help="Processes; 0: one for each core.", min=0)] = 0,
    allow_burned_in: Annotated[
        bool, typer.Option("--allow-burned-in", help="Use files marked with Burned In Annotation YES.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Turn DICOM files and labels, or a table, into the cohort. Run again, it adds what is new and loses nothing.

    Of a file's header only the scanner's manufacturer is kept: no name of a person, date or UID. Files that cannot be
    used are listed in cohort/quarantine.csv, each with its reason.
    """
    home = checked(home)
    from wardround.config import load_federation
    from wardround_client.hospital import Hospital
    from wardround_client.intake import ingest as intake

    hospital = Hospital.open(home)
    cohort = home / "cohort"
    task = load_federation(federation).task if federation else None
    try:
        if table is not None:
            if task is None or task.kind != "table":
                raise ConfigError("--table without the agreement of a table", do="add --federation FEDERATION.toml")
            summary = intake.ingest_table(
                table,
                cohort,
                key=hospital.patients.key,
                features=task.features,
                patient_column=patient_column or None,
                label_columns=(task.label_column,),
                withdrawn=hospital.patients.register.read(),
            )
        else:
            if dicom_dir is None or labels is None:
                raise ConfigError("a folder of DICOM files and --labels are needed", do="or name a --table")
            if channels == 2:
                raise ConfigError("--channels 2", allowed="1 or 3")
            if not dicom_dir.is_dir():
                raise DataError(f"{dicom_dir} is no folder", do="name the folder that holds the DICOM files")
            with progress_bar(MofNCompleteColumn(), quiet=as_json) as progress:
                bar = progress.add_task("reading DICOM", total=None)
                summary = intake.ingest(
                    dicom_dir,
                    labels,
                    cohort,
                    key=hospital.patients.key,
                    image_size_px=task.image_size_px if task else size,
                    channels=task.channels if task else channels,
                    workers=workers or None,
                    progress=lambda done, total: progress.update(bar, completed=done, total=total),
                    allow_burned_in=allow_burned_in,
                    withdrawn=hospital.patients.register.read(),
                )
    finally:
        hospital.ledger.close()
    _print_summary(summary, cohort, as_json)


def _print_summary(summary: IngestSummary, cohort: Path, as_json: bool) -> None:
    if as_json:
        emit(event="ingest", **asdict(summary), quarantine=str(cohort / "quarantine.csv"))
        return
    rows = {
        "read": str(summary.read),
        "used": f"{summary.used} ({summary.already} were there before)",
        "quarantined": str(summary.quarantined),
    }
    rows |= {f"  {reason}": str(count) for reason, count in summary.reasons.items()}
    rows |= {"cohort": f"{summary.patients} patients, {summary.images} images"}
    rows |= {"without a label": str(summary.unlabelled), "CSV rows without an image": str(summary.unmatched)}
    if summary.unusable:
        rows |= {"CSV lines without effect": str(summary.unusable)}
    show(rows, title="Ingest")
    if summary.quarantined:
        say(f"Each quarantined file and its reason: {cohort / 'quarantine.csv'}")
    if summary.unusable:
        lines = ", ".join(map(str, summary.unusable_lines))
        say(
            f"Without a key, with a cell too few or too many, or against an earlier line of the same key: line {lines}."
        )
        say("A key that two lines contradict has no label. Correct the CSV and ingest again.")
    if summary.shared:
        say(f"{summary.shared} SOP Instance UIDs are in files of several patients; each patient keeps the own image.")
        say("If they are one person under two PatientIDs, that person counts twice: give both files one PatientID.")


def _is_the_same(home: Path, joined: CoordinatorAddress, pem: str, endorsements: list[str]) -> bool:
    """Whether this CA file is that of the coordinator that was joined before, or of one that it endorsed."""
    from wardround.certificates import continues

    try:
        before = (home / joined.ca_file).read_bytes()
        return bool(joined.ca_sha256) and joined.is_pinned_to(before) and continues(before, pem.encode(), endorsements)
    except (OSError, ValueError):
        return False


def _invitation(path: Path) -> tuple[str, str, list[str]]:
    """(address, CA in PEM, endorsements of the CA) of an invitation.toml. Raises: ConfigError."""
    try:
        given = parsed(_text(path), name=str(path))
        address, pem = given["address"], given["ca_pem"]
    except KeyError as error:
        raise ConfigError(
            f"{path} is no invitation ({error} is missing)",
            allowed="address and ca_pem",
            do="ask the coordinator for it again",
        ) from None
    if not (isinstance(address, str) and isinstance(pem, str)):
        raise ConfigError(f"{path} is no invitation", allowed="address and ca_pem, both text")
    endorsements = given.get("endorsements", [])
    if not (
        isinstance(endorsements, list) and len(endorsements) <= 8 and all(isinstance(e, str) for e in endorsements)
    ):
        raise ConfigError(f"{path} is no invitation", allowed="endorsements, a list of at most 8 texts")
    return address, pem, endorsements


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
            "the coordinator's CA is no PEM certificate" if count == 0 else f"{count} certificates of the coordinator",
            allowed=f"1 to {_AUTHORITIES}, while a CA is replaced",
            do="ask the coordinator for it again",
        )


def _text(path: Path) -> str:
    return given_text(path, TOML_BYTES, do="name the right file")


def _replace(path: Path, text: str) -> None:
    try:
        write_atomically(path, text.encode())
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})", do="check the disk") from None
