"""Patients who withdraw: what is stored of them, and which rounds used their data; on the screen and as JSON."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from wardround.errors import WardroundError
from wardround.labels import LABEL_KINDS
from wardround.terminal import Table, emit, say, show
from wardround.text import counted

if TYPE_CHECKING:
    from wardround_client.cohort.records import Record
    from wardround_client.consent.withdrawal import Use
    from wardround_client.hospital import Hospital

SHOWN_DIGITS = 8
STORED = {
    "none": "nothing",
    "kept": "kept, never read",
    "erased": "erased (zeros)",
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


def looked_up(hospital: Hospital, numbered: dict[bytes, int], fresh: Collection[bytes]) -> list[Patient]:
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


def _asks(hospital: Hospital, digest: str) -> tuple[str, Collection[str] | None] | None:
    """Label column of an approved agreement, and the labels that it uses, None for all; None when its file is not there
    any more, or was changed.
    """
    try:
        task = hospital.approvals.federation(digest).task
    except WardroundError:
        return None
    exclusive = LABEL_KINDS[task.labels].exclusive and not task.dense
    return task.label_column, task.written if exclusive else None


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


def budget(hospital: Hospital) -> dict[str, Any]:
    return {
        "epsilon_spent": hospital.ledger.spent(hospital.config.delta),
        "epsilon_budget": hospital.config.budget.epsilon,
        "delta": hospital.config.delta,
    }


def print_patients(hospital: Hospital, patients: Sequence[Patient]) -> None:
    rows = [
        (
            str(patient.number),
            patient.pseudonym.hex()[:SHOWN_DIGITS],
            _short(patient.withdrawn) if patient.withdrawn else "no",
            _short(patient.record.since) if patient.record else "no",
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
    groups: dict[tuple[str, str], list[Use]] = {}
    for use in patient.rounds:
        how = "used the data, as of every patient" if use.certain else "may have used the data"
        how += "" if use.released else ", but no answer left"
        groups.setdefault((use.run, how), []).append(use)
    for (run, how), group in groups.items():
        say(f"  run {run}, {_ranges([use.round for use in group])}: {how}")
    if patient.other_rounds:
        say(f"  {counted(patient.other_rounds, 'more round')} asked for labels that this patient does not have")


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
    from wardround_client.cohort.records import records

    times = hospital.patients.register.read()
    held = records(hospital.home / "cohort", times)
    rows = []
    for pseudonym, at in times.items():
        patient = Patient(0, pseudonym, False, at, held.get(pseudonym), (), 0)
        rows.append((_short(at), pseudonym.hex()[:SHOWN_DIGITS], STORED[patient.stored]))
        if as_json:
            emit(event="withdrawn", pseudonym=pseudonym.hex(), withdrawn=at, stored=patient.stored)
    if as_json:
        emit(event="register", registered=len(times))
        return
    if rows:
        show(Table(("withdrawn (UTC)", "pseudonym", "stored"), rows))
    say(f"{len(times)} withdrawn.")


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
    ranges = ", ".join(f"{first} to {last}" if last > first else f"{first}" for first, last in spans)
    return f"round{'s' if len(numbers) > 1 else ''} {ranges}"
