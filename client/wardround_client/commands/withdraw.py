"""`wardround hospital withdraw`: take patients out of every federation, and name the rounds that used their data."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError, DataError, WardroundError
from wardround.given import LIST_BYTES, given_text
from wardround.terminal import console, emit, say
from wardround_client.commands._common import NewHome, checked

if TYPE_CHECKING:
    from wardround_client.cohort.records import Record
    from wardround_client.consent.withdrawal import Use
    from wardround_client.hospital import Hospital

SHOWN_DIGITS = 8
STORED = {
    "none": "nothing stored",
    "kept": "on the disk, never read again",
    "erased": "overwritten with zeros",
    "in use": "in use",
}


@dataclass(frozen=True)
class Patient:
    """One line of the answer. number: the place among the PatientIDs that were given. new: registered by this call.

    withdrawn: when, or None. rounds: that used the data, or may have. other_rounds: that asked for other labels.
    """

    number: int
    pseudonym: bytes
    new: bool
    withdrawn: str | None
    record: Record | None
    rounds: tuple[Use, ...]
    other_rounds: int

    @property
    def stored(self) -> str:
        """A key of STORED."""
        if self.record is None:
            return "none"
        if self.record.erased:
            return "erased"
        return "kept" if self.withdrawn else "in use"


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
        bool, typer.Option("--erase", help="Overwrite what is stored of them, now; no ingest may be running.")
    ] = False,
    rounds_only: Annotated[
        bool, typer.Option("--rounds-only", help="Change nothing: say which rounds used their data.")
    ] = False,
    listed: Annotated[bool, typer.Option("--list", help="Change nothing: show the opt-out register.")] = False,
    new_register: Annotated[
        bool,
        typer.Option("--new-register", help="Make an empty register. Only where nobody has ever withdrawn."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Patients who opt out: left out from the next round on, at intake too, for good. A running daemon notices.

    Their images stay on the disk and are never read again, and models that were adapted to them are used no more; with
    --erase the images are overwritten, and the models and the folders of predictions/ that name them deleted. A patient
    whom the cohort does not hold (yet) can withdraw as well. Budget that was spent stays spent.

    No PatientID is stored or printed, only a keyed pseudonym. What is typed here may stay in the shell's history;
    --from does not.
    """
    home = checked(home)
    from wardround_client.hospital import Hospital

    ids = _given(patients or [], from_file)
    _check_options(ids, erase=erase, rounds_only=rounds_only, listed=listed, new_register=new_register)
    hospital = Hospital.open(home)
    try:
        if new_register:
            hospital.patients.register.create()
            _tell(as_json, "The opt-out register is made; nobody is in it.", event="register", registered=0)
        elif listed:
            _list(hospital, as_json)
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
    if not all(each.strip() for each in typed):
        raise ConfigError("an empty PatientID", do="check the quotes")
    return [*typed, *lines]


def _check_options(ids: Sequence[str], *, erase: bool, rounds_only: bool, listed: bool, new_register: bool) -> None:
    """Raises: ConfigError, for options that do not go together."""
    if listed or new_register:
        if ids or erase or rounds_only or (listed and new_register):
            raise ConfigError("--list and --new-register stand alone", do="run two commands")
    elif not ids:
        raise ConfigError("no PatientID was given", allowed="PatientIDs, --from FILE, --list", do="see --help")
    elif erase and rounds_only:
        raise ConfigError("--erase with --rounds-only", do="take one: --rounds-only changes nothing")


def _withdraw(hospital: Hospital, ids: Sequence[str], *, erase: bool, only_look: bool, as_json: bool) -> None:
    """Register first: whatever fails after it, they have withdrawn."""
    from wardround_client.cohort.erasure import erase as erase_rows
    from wardround_client.cohort.records import records, rows_name_no_patient
    from wardround_client.intake.pseudonyms import Pseudonyms
    from wardround_client.personal import adapted_model as adapted
    from wardround_client.personal import predictions

    pseudonyms = Pseudonyms(hospital.patients.key)
    numbered: dict[bytes, int] = {}
    for number, patient in enumerate(ids, start=1):
        numbered.setdefault(pseudonyms.patient(patient), number)
    fresh = frozenset() if only_look else hospital.patients.register.add(numbered.keys())
    cohort = hospital.home / "cohort"
    try:
        found = _looked_up(hospital, numbered, fresh)  # before their labels are erased
        erased = erase_rows(cohort, numbered.keys()) if erase else 0
        models = adapted.forget(hospital.home, numbered.keys()) if erase else []
        folders = predictions.forget(hospital.home, numbered.keys()) if erase else []
        if erased:
            left = records(cohort, numbered)
            found = [replace(patient, record=left.get(patient.pseudonym)) for patient in found]
        nameless = rows_name_no_patient(cohort)
    except WardroundError as error:
        if not only_look:
            _tell(as_json, "They have withdrawn: the register is written. The rest did not work.", event="registered")
        raise error
    (_emit_patients if as_json else _print_patients)(hospital, found)
    if models:
        _tell(as_json, f"Deleted, for they were learned from: {', '.join(models)}.", event="forgot", adapted=models)
    if folders:
        names = [folder.name for folder in folders]
        _tell(as_json, f"Deleted, for they name them: {', '.join(names)}.", event="forgot", predictions=names)
    if not only_look and not as_json:
        _print_meaning(found, erased)
    if nameless and not only_look:
        raise DataError(
            "the rows of this cohort name no patient, so that nobody's rows could be found; the register is written",
            do="delete their rows from the table, move the cohort away and ingest again with --patient-column",
        )


def _looked_up(hospital: Hospital, numbered: dict[bytes, int], fresh: Collection[bytes]) -> list[Patient]:
    from wardround_client.cohort.records import records
    from wardround_client.consent.withdrawal import rounds_of, uses

    held = records(hospital.home / "cohort", numbered)
    times, asked = hospital.patients.register.read(), rounds_of(hospital.ledger.entries())
    asks = cache(partial(_asks, hospital))  # a file each, and a ledger names the same few again and again
    patients = []
    for pseudonym, number in numbered.items():
        at, record = times.get(pseudonym), held.get(pseudonym)
        rounds: list[Use] = []
        others = 0
        if record is not None:
            before = None if pseudonym in fresh else at
            rounds, others = uses(asked, record, withdrawn=before, asks=asks)
        patients.append(Patient(number, pseudonym, pseudonym in fresh, at, record, tuple(rounds), others))
    return patients


def _asks(hospital: Hospital, digest: str) -> tuple[str, Collection[str]] | None:
    """Label column and classes of an approved agreement; None when its file is not there any more, or was changed."""
    try:
        task = hospital.approvals.federation(digest).task
    except WardroundError:
        return None
    return task.label_column, task.classes


def _emit_patients(hospital: Hospital, patients: Sequence[Patient]) -> None:
    for patient in patients:
        record = patient.record
        emit(
            event="patient",
            number=patient.number,
            pseudonym=patient.pseudonym.hex(),
            withdrawn=patient.withdrawn,
            new=patient.new,
            in_cohort=record is not None,
            since=record.since if record else None,
            rows=record.rows if record else 0,
            stored=patient.stored,
            erased=record.erased if record else None,
            rounds=[asdict(use) | {"certain": use.certain} for use in patient.rounds],
            other_rounds=patient.other_rounds,
        )
    emit(event="withdraw", registered=len(hospital.patients.register.read()), **_budget(hospital))


def _budget(hospital: Hospital) -> dict[str, Any]:
    return {
        "epsilon_spent": hospital.ledger.spent(hospital.config.delta),
        "epsilon_budget": hospital.config.budget.epsilon,
        "delta": hospital.config.delta,
    }


def _print_patients(hospital: Hospital, patients: Sequence[Patient]) -> None:
    pseudonyms = Column("pseudonym", no_wrap=True)
    table = Table("no.", pseudonyms, "withdrawn (UTC)", "in the cohort since", "rows", "values", "rounds")
    for patient in patients:
        record = patient.record
        table.add_row(
            str(patient.number),
            patient.pseudonym.hex()[:SHOWN_DIGITS],
            _short(patient.withdrawn) if patient.withdrawn else "no",
            _short(record.since) if record else "not in it",
            str(record.rows) if record else "0",
            STORED[patient.stored],
            str(len(patient.rounds)),
        )
    console.print(table)
    for patient in patients:
        if patient.rounds or patient.other_rounds:
            _print_rounds(patient)
    if any(use.sampling_rate < 1 for patient in patients for use in patient.rounds):
        say("Whom a step drew is recorded nowhere, by design: where it draws at random, nobody can say more than may.")
    spent = _budget(hospital)
    say(
        f"What was spent stays spent: epsilon {spent['epsilon_spent']:.4g} of {spent['epsilon_budget']:g} "
        f"at delta {spent['delta']:.3g}. It bounds what those rounds told about any one patient, these included."
    )


def _print_rounds(patient: Patient) -> None:
    say(f"No. {patient.number}:")
    groups: dict[tuple[str, str], list[Use]] = {}
    for use in patient.rounds:
        said = "used the data, as of every patient" if use.certain else "may have used the data"
        said += "" if use.released else ", but nothing left"
        groups.setdefault((use.run, said), []).append(use)
    for (run, said), together in groups.items():
        say(f"  run {run}, {_ranges([use.round for use in together])}: {said}")
    if patient.other_rounds:
        say(f"  {patient.other_rounds} more asked for labels that this patient does not have")


def _print_meaning(patients: Sequence[Patient], erased: int) -> None:
    say("From the next round on they are left out, and at intake too. A daemon that is running needs no restart;")
    say("a round that it is answering at this moment may still use them.")
    if any(patient.stored == "kept" for patient in patients):
        say("What is stored of them stays on the disk and is never read again; --erase overwrites it.")
    if any(patient.stored == "erased" for patient in patients):
        say(f"Stored values are overwritten with zeros and labels removed ({erased} patients now). Backups are yours.")
    absent = [str(patient.number) for patient in patients if patient.record is None]
    if absent:
        say(
            f"Not in the cohort: no. {', '.join(absent)}. If that is a surprise, compare the PatientID with the files, "
            "letter by letter. The intake will leave them out."
        )


def _list(hospital: Hospital, as_json: bool) -> None:
    from wardround_client.cohort.records import records

    times = hospital.patients.register.read()
    held = records(hospital.home / "cohort", times)
    table = Table("withdrawn (UTC)", "pseudonym", "values")
    for pseudonym, at in times.items():
        patient = Patient(0, pseudonym, False, at, held.get(pseudonym), (), 0)
        if as_json:
            emit(event="withdrawn", pseudonym=pseudonym.hex(), withdrawn=at, stored=patient.stored)
        table.add_row(_short(at), pseudonym.hex()[:SHOWN_DIGITS], STORED[patient.stored])
    if as_json:
        emit(event="register", registered=len(times))
        return
    console.print(table)
    say(f"{len(times)} have withdrawn.")


def _tell(as_json: bool, line: str, **fields: Any) -> None:
    if as_json:
        emit(**fields)
    else:
        say(line)


def _short(time: str) -> str:
    return time[:16].replace("T", " ")


def _ranges(numbers: Sequence[int]) -> str:
    """[0, 1, 2, 5] -> "rounds 0 to 2, 5"."""
    spans: list[list[int]] = []
    for number in sorted(numbers):
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    said = ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in spans)
    return f"round{'s' if len(numbers) > 1 else ''} {said}"


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
