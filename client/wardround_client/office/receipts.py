"""The ledger for a person: what each entry cost, as CSV, and whether the file is what it was."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TextIO

from wardround.errors import ConfigError, StorageError
from wardround_client.intake.spreadsheet import harmless

if TYPE_CHECKING:
    from wardround_client.privacy.ledger import Entry

# The columns of --csv, in their order; their names are a promise to whoever reads them with a program. What an entry
# does not have is an empty cell. Times are UTC in ISO 8601.
CSV_COLUMNS: dict[str, Callable[[Entry], object]] = {
    "entry": lambda entry: entry.seq,
    "time_utc": lambda entry: entry.time,
    "kind": lambda entry: entry.kind,
    "run": lambda entry: entry.run,
    "round": lambda entry: entry.round,
    "question": lambda entry: entry.body.get("question", ""),
    "coordinator": lambda entry: entry.body["coordinator"],
    "federation_sha256": lambda entry: entry.body["federation"],
    "bundle_sha256": lambda entry: entry.body.get("bundle_sha256", ""),
    "request_sha256": lambda entry: entry.body.get("request_sha256", ""),
    "price": lambda entry: price(entry),
    "delta": lambda entry: entry.body.get("delta", ""),
    "epsilon_after": lambda entry: entry.body["epsilon_after"],
    "layout": lambda entry: entry.body.get("layout", ""),
    "norm": lambda entry: entry.body.get("norm", ""),
    "bytes": lambda entry: entry.body.get("bytes", ""),
    "reply_sha256": lambda entry: entry.body.get("sha256", ""),
    "entry_sha256": lambda entry: entry.digest,
}


def head_from(written: str) -> str:
    """A head of a ledger, as somebody wrote it down, with blanks or without. Raises: ConfigError."""
    head = "".join(written.split()).lower()
    if not re.fullmatch("[0-9a-f]{64}", head):
        raise ConfigError(
            f"{written[:80]!r} is not a head of a ledger",
            allowed="the 64 hex digits that `wardround hospital ledger --verify` printed",
        )
    return head


def judge(broken: int | None, contains: str, found: int | None) -> None:
    """Raises: StorageError, when the file is not what it was."""
    from wardround_client.privacy.chain import OFFICER

    if broken is not None:
        raise StorageError(f"the ledger is broken at entry {broken}", do=OFFICER)
    if contains and found is None:
        raise StorageError(
            f"no entry of this ledger has the digest {contains}: an older copy was put back, or another ledger",
            allowed="a head of this very ledger, all 64 digits of it",
            do=f"compare what was written down; if it is right, {OFFICER}",
        )


def price(entry: Entry) -> str:
    """What an entry's answers cost, readable: "10 answers, noise 1.43, sampling rate 0.064"."""
    return "; ".join(
        f"{count} {'answer' if count == 1 else 'answers'}, noise {noise!r}, sampling rate {rate!r}"
        for noise, rate, count in entry.body.get("rows", ())
    )


def write_csv(entries: Iterable[Entry], out: TextIO) -> None:
    """All entries, one line each, under the names of CSV_COLUMNS."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    writer.writerows([harmless(value(entry)) for value in CSV_COLUMNS.values()] for entry in entries)
