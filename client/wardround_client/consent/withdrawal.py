"""Which rounds may have used the data of a patient who withdraws, by the ledger."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from wardround_client.cohort.records import Record
from wardround_client.privacy.ledger import Entry

UNDER_WAY = timedelta(minutes=1)
"""A round reserved so shortly after a withdrawal may have read the register before it."""


@dataclass(frozen=True)
class Use:
    """A round that used a patient's data, or may have.

    reserved, released: times; released is None when no answer left. sampling_rate: how likely a step drew the patient.
    """

    run: str
    round: int
    federation: str
    reserved: str
    released: str | None
    sampling_rate: float

    @property
    def certain(self) -> bool:
        """Every patient was asked, and the answer left.

        Below a rate of 1 nobody can tell: which patients a step drew is recorded nowhere. This says too much of a round
        whose daemon had been up since before the patient came in, and it is meant to.
        """
        return self.released is not None and self.sampling_rate >= 1


def rounds_of(entries: Iterable[Entry]) -> list[Use]:
    """The rounds of a ledger, whoever's data they used, from its entries, oldest first."""
    rounds: dict[tuple[str, int], Use] = {}
    for entry in entries:
        key = (entry.run, entry.round)
        if entry.kind == "reserved":
            rate = min(float(row[1]) for row in entry.body["rows"])
            rounds[key] = Use(*key, entry.body["federation"], entry.time, None, rate)
        elif entry.kind == "released":
            rounds[key] = replace(rounds[key], released=entry.time)
        else:  # adopted: another copy of the home asked the same patients
            rate = min(float(row[1]) for row in entry.body["rows"])
            rounds.setdefault(key, Use(*key, entry.body["federation"], entry.time, entry.time, rate))
    return list(rounds.values())


def uses(
    rounds: Iterable[Use],
    record: Record,
    *,
    withdrawn: str | None,
    asks: Callable[[str], tuple[str, Collection[str] | None] | None],
) -> tuple[list[Use], int]:
    """Every one of these rounds that may have used this patient's data, and how many others asked for other labels.

    A round counts from its release, because one that was reserved before the patient came in may be computed after;
    and up to a minute (UNDER_WAY) after the withdrawal, because it may have begun before.

    Args:
        rounds: of the ledger.
        record: of the patient.
        withdrawn: when; None: not yet.
        asks: digest of an agreement -> its label column, and the labels that it uses, None for all; None when it is
            not known any more.
    """
    end = None if withdrawn is None else datetime.fromisoformat(withdrawn) + UNDER_WAY
    since = datetime.fromisoformat(record.since)
    during = [
        use
        for use in rounds
        if datetime.fromisoformat(use.released or use.reserved) >= since
        and (end is None or datetime.fromisoformat(use.reserved) <= end)
    ]
    fitting = [use for use in during if _fits(record, asks(use.federation))]
    return fitting, len(during) - len(fitting)


def _fits(record: Record, asked: tuple[str, Collection[str] | None] | None) -> bool:
    """Whether a task can use a patient with these labels; whoever's labels or images are gone counts as if it could."""
    if asked is None or record.erased or not record.rows:
        return True
    column, used = asked
    labels = record.labels.get(column, frozenset())
    return bool(labels) if used is None else not labels.isdisjoint(used)
