"""`wardround hospital withdraw`: take patients out of every federation, and name the rounds that used their data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, DataError, WardroundError
from wardround.given import LIST_BYTES, given_text
from wardround.terminal import emit, say
from wardround_client.commands._common import NewHome, checked
from wardround_client.commands._withdrawn import (
    emit_patients,
    list_register,
    looked_up,
    print_meaning,
    print_patients,
)

if TYPE_CHECKING:
    from wardround_client.hospital import Hospital


def withdraw(
    home: NewHome,
    patients: Annotated[
        list[str] | None,
        typer.Argument(help="PatientIDs, as the DICOM files or the table write them.", metavar="[PATIENTID]..."),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option("--from", help="A text file with one PatientID a line; - reads them from standard input."),
    ] = None,
    erase: Annotated[
        bool, typer.Option("--erase", help="Overwrite their stored images now. Refused during an ingest.")
    ] = False,
    rounds_only: Annotated[
        bool, typer.Option("--rounds-only", help="Change nothing; show which rounds used their data.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Change nothing; show everybody who has withdrawn.")] = False,
    new_register: Annotated[
        bool,
        typer.Option("--new-register", help="Make an empty register, only if nobody has ever withdrawn."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Withdraw patients: leave them out of every round and ingest from now on, for good. A running daemon notices.

    Their images stay on the disk and are never read again, and models that were adapted to them are not used any more;
    --erase overwrites the images, and deletes the models, the folders of predictions/ and the lists of suggestions/
    that name them. A patient who is not in the cohort (yet) can be withdrawn too. The budget that was spent stays
    spent.

    No PatientID is stored or printed, only a keyed pseudonym. What you type here may stay in the shell's history; use
    --from to avoid that.
    """
    home = checked(home)
    from wardround_client.hospital import Hospital

    ids = _given(patients or [], from_file)
    _check_options(ids, erase=erase, rounds_only=rounds_only, listed=listed, new_register=new_register)
    hospital = Hospital.open(home)
    try:
        if new_register:
            hospital.patients.register.create()
            _say(as_json, "Made an empty opt-out register.", event="register", registered=0)
        elif listed:
            list_register(hospital, as_json)
        else:
            _withdraw(hospital, ids, erase=erase, only_look=rounds_only, as_json=as_json)
    finally:
        hospital.ledger.close()


def _given(typed: Sequence[str], file: Path | None) -> list[str]:
    """The PatientIDs that were given. Raises: ConfigError."""
    lines: list[str] = []
    if file is not None:
        do = "name an existing text file, UTF-8, one PatientID a line"
        try:
            text = sys.stdin.read(LIST_BYTES) if str(file) == "-" else given_text(file, LIST_BYTES, do=do)
        except UnicodeDecodeError:
            raise ConfigError("standard input is not UTF-8 text", do=do) from None
        lines = [line for line in text.splitlines() if line.strip()]
        if not lines:
            raise ConfigError(f"{file} holds no PatientID", allowed="one PatientID a line")
    if not all(patient.strip() for patient in typed):
        raise ConfigError("an empty PatientID", do="check the quotes")
    return [*typed, *lines]


def _check_options(ids: Sequence[str], *, erase: bool, rounds_only: bool, listed: bool, new_register: bool) -> None:
    """Raises: ConfigError, for options that do not go together."""
    if listed or new_register:
        if ids or erase or rounds_only or (listed and new_register):
            raise ConfigError("--list and --new-register take no other option", do="run two commands")
    elif not ids:
        raise ConfigError("no PatientID was given", allowed="PatientIDs, --from FILE, --list", do="see --help")
    elif erase and rounds_only:
        raise ConfigError("--erase with --rounds-only", do="take one: --rounds-only changes nothing")


def _withdraw(hospital: Hospital, ids: Sequence[str], *, erase: bool, only_look: bool, as_json: bool) -> None:
    """Register first: whatever fails after it, they have withdrawn."""
    from wardround_client.cohort.erasure import erase as erase_rows
    from wardround_client.cohort.records import named, records, rows_name_no_patient
    from wardround_client.intake.pseudonyms import Pseudonyms
    from wardround_client.personal.forget import forget_models, forget_predictions, forget_suggestions

    pseudonyms = Pseudonyms(hospital.patients.key)
    numbered: dict[bytes, int] = {}
    for number, patient in enumerate(ids, start=1):
        numbered.setdefault(pseudonyms.patient(patient), number)
    fresh = frozenset() if only_look else hospital.patients.register.add(numbered.keys())
    cohort = hospital.home / "cohort"
    try:
        held = named(cohort, numbered)  # whoever issued the PatientID
        if not only_look:
            fresh |= hospital.patients.register.add(held.keys() - numbered.keys())
        numbered = {pseudonym: numbered[bare] for pseudonym, bare in held.items()} | {
            bare: number for bare, number in numbered.items() if bare not in held.values()
        }
        found = looked_up(hospital, numbered, fresh)  # before their labels are erased
        erased = erase_rows(cohort, numbered.keys()) if erase else 0
        models = forget_models(hospital.home, numbered.keys()) if erase else []
        folders = forget_predictions(hospital.home, numbered.keys()) if erase else []
        lists = forget_suggestions(hospital.home, numbered.keys()) if erase else []
        if erased:
            left = records(cohort, numbered)
            found = [replace(patient, record=left.get(patient.pseudonym)) for patient in found]
        nameless = rows_name_no_patient(cohort)
    except WardroundError as error:
        if not only_look:
            _say(as_json, "They are withdrawn: the register is written. The next step failed.", event="registered")
        raise error
    (emit_patients if as_json else print_patients)(hospital, found)
    if models:
        _say(as_json, f"Deleted models that learned from them: {', '.join(models)}.", event="forgot", adapted=models)
    if folders:
        names = [folder.name for folder in folders]
        _say(as_json, f"Deleted predictions that name them: {', '.join(names)}.", event="forgot", predictions=names)
    if lists:
        names = [file.name for file in lists]
        _say(as_json, f"Deleted suggestions that name them: {', '.join(names)}.", event="forgot", suggestions=names)
    if not only_look and not as_json:
        print_meaning(found, erased)
    if nameless and not only_look:
        raise DataError(
            "the rows of this cohort name no patient, so their rows cannot be found; the register is written",
            do="delete their rows from the table, move the cohort folder away, and ingest again with --patient-column",
        )


def _say(as_json: bool, line: str, **fields: Any) -> None:
    if as_json:
        emit(**fields)
    else:
        say(line)


command = Command(
    withdraw,
    panel="Take part",
    place=6,
    examples=(
        "wardround hospital withdraw ~/st-anna --from patients.txt",
        "wardround hospital withdraw ~/st-anna 4711 4712 --erase",
        "wardround hospital withdraw ~/st-anna 4711 --rounds-only",
        "wardround hospital withdraw ~/st-anna --list",
    ),
)
