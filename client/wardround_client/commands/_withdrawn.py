"""Patients who withdraw: what is stored of them, and which rounds used their data; on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from wardround.terminal import Table, emit, say, show
from wardround.text import counted
from wardround_client.office.withdrawals import STORED, Patient, budget, registered, short

if TYPE_CHECKING:
    from wardround_client.hospital import Hospital

SHOWN_DIGITS = 8


def emit_patients(hospital: Hospital, patients: Sequence[Patient]) -> None:
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
    emit(event="withdraw", registered=len(hospital.patients.register.read()), **budget(hospital))


def print_patients(hospital: Hospital, patients: Sequence[Patient]) -> None:
    rows = [
        (
            str(patient.number),
            patient.pseudonym.hex()[:SHOWN_DIGITS],
            short(patient.withdrawn) if patient.withdrawn else "no",
            short(patient.record.since) if patient.record else "no",
            str(patient.record.rows) if patient.record else "0",
            STORED[patient.stored],
            str(len(patient.rounds)),
        )
        for patient in patients
    ]
    columns = (">no.", "pseudonym", "withdrawn (UTC)", "in the cohort since", ">rows", "stored", ">rounds")
    show(Table(columns, rows))
    for patient in patients:
        if patient.rounds or patient.other_rounds:
            _print_rounds(patient)
    if any(use.sampling_rate < 1 for patient in patients for use in patient.rounds):
        say('"May have": a step samples patients at random, and which ones is recorded nowhere, by design.')
    spent = budget(hospital)
    say(
        f"The budget that was spent stays spent: epsilon {spent['epsilon_spent']:.4g} of {spent['epsilon_budget']:g} "
        f"at delta {spent['delta']:.3g}. It bounds what those rounds reveal about any one patient, these included."
    )


def _print_rounds(patient: Patient) -> None:
    say(f"No. {patient.number}:")
    for line in patient.used_by():
        say(f"  {line}")


def print_meaning(patients: Sequence[Patient], erased: int) -> None:
    say(
        "They are left out of every round from the next one on, and of every ingest. A running daemon needs no restart;"
    )
    say("a round that it is answering now may still use them.")
    if any(patient.stored == "kept" for patient in patients):
        say("Their stored images stay on the disk and are never read again. Overwrite them with --erase.")
    if any(patient.stored == "erased" for patient in patients):
        say(
            f"Stored values are overwritten with zeros and labels removed ({counted(erased, 'patient')} now). "
            "Backups are yours."
        )
    absent = [str(patient.number) for patient in patients if patient.record is None]
    if absent:
        say(
            f"Not in the cohort: no. {', '.join(absent)}. An ingest will leave them out. If you expected them there, "
            "compare the PatientID with the files, letter by letter."
        )


def list_register(hospital: Hospital, as_json: bool) -> None:
    found = registered(hospital)
    for patient in found if as_json else ():
        emit(
            event="withdrawn",
            pseudonym=patient.pseudonym.hex(),
            withdrawn=patient.withdrawn,
            stored=patient.stored,
        )
    if as_json:
        emit(event="register", registered=len(found))
        return
    rows = [
        (short(patient.withdrawn or ""), patient.pseudonym.hex()[:SHOWN_DIGITS], STORED[patient.stored])
        for patient in found
    ]
    if rows:
        show(Table(("withdrawn (UTC)", "pseudonym", "stored"), rows))
    say(f"{len(found)} withdrawn.")
