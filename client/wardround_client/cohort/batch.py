"""What one transaction of a `CohortWriter` adds: instances, what is known of files, labels."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from numpy.typing import NDArray

from wardround_client.clock import now
from wardround_client.cohort.corrections import Corrections, correct, elsewhere, replace_rows
from wardround_client.cohort.index import ONE, STAYS, CohortLayout

_HOLDERS = f"""
SELECT p.id FROM patients p WHERE {STAYS} AND p.id IN (
SELECT patient FROM instances WHERE instance = :subject UNION SELECT patient FROM instances WHERE series = :subject
UNION SELECT patient FROM instances WHERE study = :subject
UNION SELECT patient FROM instances WHERE accession = :subject
UNION SELECT id FROM patients WHERE pseudonym = :subject OR bare = :subject
) AND (:owner = x'' OR p.pseudonym = :owner) AND EXISTS (SELECT 1 FROM instances WHERE patient = p.id)
"""

# Labels of this archive, or of an older version's, that the present CSV does not give.
_UNTOLD = f"""
column IN ({{columns}}) AND (root = :root OR (root = x'' AND EXISTS
(SELECT 1 FROM claimed JOIN patients p ON p.pseudonym = claimed.patient WHERE p.id = labels.patient)))
AND patient IN (SELECT p.id FROM patients p WHERE {STAYS}) AND NOT EXISTS (SELECT 1 FROM told t
WHERE t.patient = labels.patient AND t.subject = labels.subject AND t.column = labels.column)
"""
_LEVEL = """CASE {subject} WHEN i.instance THEN 0 WHEN i.series THEN 1 WHEN i.study THEN 2 WHEN i.accession THEN 3
WHEN p.pseudonym THEN 4 WHEN p.bare THEN 5 END"""
# A label that goes before one that the present CSV gives to the same image; without a level it is no label of it.
_HIDES = f"""
EXISTS (SELECT 1 FROM instances i JOIN patients p ON p.id = i.patient JOIN told t ON t.patient = i.patient
WHERE i.patient = labels.patient AND t.column = labels.column
AND {_LEVEL.format(subject="labels.subject")} < {_LEVEL.format(subject="t.subject")})
"""


@dataclass(frozen=True)
class Stored:
    """What a cohort keeps of one item beside its rows, all of it keyed hashes but for the last two.

    patient: of PatientID and issuer. bare: of the PatientID alone. instance, series, study, accession: b"" where the
    item names none, but for instance. manufacturer: as `normalised`. modality: "" where the item names none.
    """

    patient: bytes
    instance: bytes
    bare: bytes = b""
    study: bytes = b""
    series: bytes = b""
    accession: bytes = b""
    manufacturer: str = ""
    modality: str = ""

    @property
    def described(self) -> tuple[bytes, bytes, bytes, str, str]:
        """In the order of the index's columns."""
        return self.study, self.series, self.accession, self.manufacturer, self.modality


@dataclass(frozen=True)
class Labelled:
    """What the lines of a CSV did. matched, unmatched: keys that the cohort holds, and does not. unmatched_lines: the
    first of their lines. shared: keys that name several patients, each of whom got the labels. replaced: older labels
    that would have hidden those of this CSV. stale: older labels that it does not give, and that stay. removed: the
    same, but taken away because a person said so.
    """

    matched: int
    unmatched: int
    unmatched_lines: tuple[int, ...]
    shared: int
    replaced: int
    stale: int
    removed: int


class Batch:
    """What one transaction adds; made by `CohortWriter.batch`."""

    def __init__(self, index: sqlite3.Connection, layout: CohortLayout, first_row: int, root: bytes) -> None:
        self._index, self._layout, self._first_row, self._root = index, layout, first_row, root
        self.arrays: list[NDArray[Any]] = []
        self.added = 0

    def claim(self, patient: bytes, instance: bytes) -> bool:
        """True the first time in this ingest that an instance of this patient is met."""
        return self._index.execute("INSERT OR IGNORE INTO claimed VALUES (?, ?)", (patient, instance)).rowcount == 1

    def meet(self, place: bytes, file: bytes, *, certain: bool) -> None:
        """Note what stands in a place now. certain: not when the item could not be read for a reason that may pass."""
        self._index.execute("INSERT OR REPLACE INTO met VALUES (?, ?, ?)", (place, file, certain))

    def remember(self, file: bytes, place: bytes, patient: bytes, instance: bytes) -> None:
        """Know this file next time without opening it."""
        self._index.execute(
            "INSERT OR REPLACE INTO files SELECT ?, ?, ?, id FROM patients WHERE pseudonym = ?",
            (file, place, instance, patient),
        )

    def add(self, item: Stored, rows: NDArray[Any]) -> None:
        """Append the rows of a new instance. rows: [k, ...] of the cohort's layout."""
        if not len(rows) or rows.shape[1:] != self._layout.shape:
            raise ValueError(f"rows {rows.shape} do not fit {self._layout.shape}")
        self._index.execute(
            "INSERT OR IGNORE INTO patients (pseudonym, bare, since) VALUES (?, ?, ?)",
            (item.patient, item.bare or item.patient, now()),
        )
        (owner,) = self._index.execute("SELECT id FROM patients WHERE pseudonym = ?", (item.patient,)).fetchone()
        study, series, accession, manufacturer, modality = item.described
        self._index.execute(
            "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                item.instance, study, owner, self._first_row + self.added, len(rows), manufacturer, modality, series,
                accession,
            ),
        )  # fmt: skip
        self._index.execute("INSERT INTO origins VALUES (?, ?, ?, 0)", (item.instance, owner, self._root))
        self.arrays.append(rows)
        self.added += len(rows)

    def replace(self, item: Stored, rows: NDArray[Any]) -> bool:
        """Give a stored instance the rows that it has now -> False where another archive brought it too."""
        if elsewhere(self._index, item.patient, item.instance, self._root):
            return False
        replace_rows(self._index, item.patient, item.instance, self._first_row + self.added, len(rows))
        self.describe(item)
        self.arrays.append(rows)
        self.added += len(rows)
        return True

    def withhold(self, patient: bytes, instance: bytes) -> None:
        """Note that an instance is of a patient who has withdrawn: whoever had it before has it no more."""
        self._index.execute("INSERT OR IGNORE INTO withheld VALUES (?, ?)", (instance, patient))

    def correct(self, most: int, *, whole: bool) -> Corrections:
        """Take out what the archive does not hold any more: see `corrections.py`."""
        return correct(self._index, self._root, most, whole=whole)

    def describe(self, item: Stored) -> None:
        """Note what an item that is stored already says of itself now."""
        self._index.execute(
            f"""UPDATE instances SET study = ?, series = ?, accession = ?, manufacturer = ?, modality = ?
            WHERE {ONE}""",
            (*item.described, item.instance, item.patient),
        )

    def stage(self, subject: bytes, line: int, labels: Sequence[str | None], patient: bytes = b"") -> bool:
        """Note the labels of a CSV line -> False where an earlier line contradicts: then their subject has none.

        patient: whose item brings the labels itself; nobody else's with the same UID gets them. b"": a line of a CSV.
        """
        values, of = json.dumps(list(labels)), (subject, patient)
        inserted = self._index.execute("INSERT OR IGNORE INTO staged VALUES (?, ?, ?, ?)", (*of, line, values))
        if inserted.rowcount:
            return True
        said = "FROM staged WHERE subject = ? AND patient = ?"
        (earlier,) = self._index.execute(f"SELECT labels {said}", of).fetchone()
        if earlier == values:
            return True
        self._index.execute("UPDATE staged SET labels = NULL WHERE subject = ? AND patient = ?", of)
        return False

    def know_columns(self, columns: Sequence[str]) -> None:
        """Have these label columns, whether anybody has a label in them or not."""
        for column in columns:
            self._index.execute("INSERT OR IGNORE INTO label_columns (name) VALUES (?)", (column,))

    def label(self, columns: Sequence[str], named_lines: int, most: int = 0, *, whole: bool = True) -> Labelled:
        """Give the staged labels to each patient who has the subject; an empty cell takes a label away.

        What an earlier CSV of this archive said in these columns gives way where it is more particular than what this
        one says of the same image. Elsewhere it stays. most: so many of those labels are taken away; where there are
        more, none is. whole: the CSV is about all of the archive; otherwise what it does not give is not missed.
        """
        self.know_columns(columns)
        known = dict(self._index.execute("SELECT name, position FROM label_columns"))
        self._index.execute("DELETE FROM told")
        matched = unmatched = shared = 0
        lines: list[int] = []
        staged = self._index.execute(
            "SELECT subject, patient, line, labels FROM staged ORDER BY line, subject, patient"
        )
        for subject, owner, line, told in staged:
            holders = self._index.execute(_HOLDERS, {"subject": subject, "owner": owner}).fetchall()
            if not holders:
                unmatched += 1
                if len(lines) < named_lines:
                    lines.append(int(line))
                continue
            matched += 1
            shared += len(holders) > 1
            values = json.loads(told) if told else [None] * len(columns)
            for (patient,), (column, value) in product(holders, zip(columns, values, strict=True)):
                at = (patient, subject, known[column])
                self._index.execute("INSERT OR IGNORE INTO told VALUES (?, ?, ?, ?)", (*at, value))
        columns_asked = ",".join(str(known[column]) for column in columns)
        untold = _UNTOLD.format(columns=columns_asked or "NULL")
        asked = {"root": self._root}
        replaced = self._index.execute(f"DELETE FROM labels WHERE {untold} AND {_HIDES}", asked).rowcount
        (stale,) = (
            self._index.execute(f"SELECT COUNT(*) FROM labels WHERE {untold}", asked).fetchone() if whole else (0,)
        )
        removed = stale if stale <= most else 0
        if removed:
            self._index.execute(f"DELETE FROM labels WHERE {untold}", asked)
        self._index.execute(
            """DELETE FROM labels WHERE EXISTS (SELECT 1 FROM told t WHERE t.patient = labels.patient
            AND t.subject = labels.subject AND t.column = labels.column AND t.value IS NULL)"""
        )
        self._index.execute(
            "INSERT OR REPLACE INTO labels SELECT patient, subject, column, value, ? FROM told WHERE value IS NOT NULL",
            (self._root,),
        )
        return Labelled(matched, unmatched, tuple(lines), shared, replaced, stale - removed, removed)
