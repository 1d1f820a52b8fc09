"""`wardround hospital withdraw`: take patients out of every federation, and name the rounds that used their data."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.given import LIST_BYTES, given_text
from wardround.terminal import emit, say
from wardround_client.commands._common import NewHome, checked

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
    from wardround_client.commands._withdrawn import list_register
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
    from wardround_client.commands._withdrawn import emit_patients, print_meaning, print_patients
    from wardround_client.office.withdrawals import withdraw as take_out

    def failing() -> None:
        _say(as_json, "They are withdrawn: the register is written. The next step failed.", event="registered")

    done = take_out(hospital, ids, erase=erase, only_look=only_look, failing=failing)
    (emit_patients if as_json else print_patients)(hospital, done.found)
    if done.models:
        names = ", ".join(done.models)
        _say(as_json, f"Deleted models that learned from them: {names}.", event="forgot", adapted=done.models)
    if done.predictions:
        names = ", ".join(done.predictions)
        _say(as_json, f"Deleted predictions that name them: {names}.", event="forgot", predictions=done.predictions)
    if done.suggestions:
        names = ", ".join(done.suggestions)
        _say(as_json, f"Deleted suggestions that name them: {names}.", event="forgot", suggestions=done.suggestions)
    if not only_look and not as_json:
        print_meaning(done.found, done.erased)
    done.check()


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
