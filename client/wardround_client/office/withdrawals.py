"""Patients who withdraw: the register first, then what is stored of them, and which rounds used their data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

from wardround.errors import DataError, WardroundError
from wardround.labels import LABEL_KINDS
from wardround.text import counted
from wardround_client.cohort.erasure import erase as erase_rows
from wardround_client.cohort.records import Record, named, records, rows_name_no_patient
from wardround_client.consent.withdrawal import Use, rounds_of, uses
from wardround_client.hospital import Hospital
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.personal.forget import forget_models, forget_predictions, forget_suggestions

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

    def used_by(self) -> list[str]:
        """Which rounds used the data, or may have, a line a run."""
        lines = []
        groups: dict[tuple[str, str], list[Use]] = {}
        for use in self.rounds:
            how = "used the data, as of every patient" if use.certain else "may have used the data"
            how += "" if use.released else ", but no answer left"
            groups.setdefault((use.run, how), []).append(use)
        for (run, how), group in groups.items():
            lines.append(f"run {run}, {_ranges([use.round for use in group])}: {how}")
        if self.other_rounds:
            asked = counted(self.other_rounds, "more round")
            lines.append(f"{asked} asked for labels that this patient does not have")
        return lines


def looked_up(hospital: Hospital, numbered: dict[bytes, int], fresh: Collection[bytes]) -> list[Patient]:
    """What is known of patients, by pseudonym with their numbers; fresh: registered just now."""
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


@dataclass(frozen=True)
class Withdrawal:
    """What became of it. found: the patients, by number. erased: how many were overwritten now. models, predictions,
    suggestions: names of what was deleted. nameless: the rows of this cohort name no patient, so nobody finds theirs.
    """

    found: list[Patient]
    erased: int
    models: list[str]
    predictions: list[str]
    suggestions: list[str]
    nameless: bool

    def check(self) -> None:
        """Raises: DataError, when the register is written and the rows could not be found."""
        if self.nameless:
            raise DataError(
                "the rows of this cohort name no patient, so their rows cannot be found; the register is written",
                do="delete their rows from the table, move the cohort folder away, and ingest again with "
                "--patient-column",
            )


def withdraw(
    hospital: Hospital, ids: Sequence[str], *, erase: bool, only_look: bool, failing: Callable[[], None]
) -> Withdrawal:
    """Register first: whatever fails after it, they have withdrawn.

    Args:
        hospital: whose patients.
        ids: PatientIDs; none is kept.
        erase: overwrite what is stored of them, and delete what names them.
        only_look: change nothing.
        failing: called when the register is written and a later step raises.
    """
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
        nameless = rows_name_no_patient(cohort) and not only_look
    except WardroundError:
        if not only_look:
            failing()
        raise
    files = [[each.name for each in paths] for paths in (folders, lists)]
    return Withdrawal(found, erased, models, files[0], files[1], nameless)


def registered(hospital: Hospital) -> list[Patient]:
    """Everybody who has withdrawn, with what is stored of them."""
    times = hospital.patients.register.read()
    held = records(hospital.home / "cohort", times)
    return [Patient(0, pseudonym, False, at, held.get(pseudonym), (), 0) for pseudonym, at in times.items()]


def budget(hospital: Hospital) -> dict[str, Any]:
    """What was spent, of how much."""
    return {
        "epsilon_spent": hospital.ledger.spent(hospital.config.delta),
        "epsilon_budget": hospital.config.budget.epsilon,
        "delta": hospital.config.delta,
    }


def short(time: str) -> str:
    """2026-03-01T12:30:00Z -> 2026-03-01 12:30."""
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
