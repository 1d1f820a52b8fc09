"""What one transaction of a `CohortWriter` adds: instances, what is known of files, labels."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from itertools import product
from typing import Any

from numpy.typing import NDArray

from wardround_client.clock import now
from wardround_client.cohort.index import CohortLayout

STAYS = "p.erased IS NULL AND p.pseudonym NOT IN (SELECT pseudonym FROM temp.withdrawn)"
ONE = "instance = ? AND patient = (SELECT id FROM patients WHERE pseudonym = ?)"
_HOLDERS = f"""
SELECT p.id FROM patients p WHERE {STAYS} AND p.id IN (
SELECT patient FROM instances WHERE instance = :subject UNION SELECT patient FROM instances WHERE study = :subject
UNION SELECT id FROM patients WHERE pseudonym = :subject)
"""


class Batch:
    """What one transaction adds; made by `CohortWriter.batch`."""

    def __init__(self, index: sqlite3.Connection, layout: CohortLayout, first_row: int) -> None:
        self._index, self._layout, self._first_row = index, layout, first_row
        self.arrays: list[NDArray[Any]] = []
        self.added = 0

    def claim(self, patient: bytes, instance: bytes) -> bool:
        """True the first time in this ingest that an instance of this patient is met."""
        return self._index.execute("INSERT OR IGNORE INTO claimed VALUES (?, ?)", (patient, instance)).rowcount == 1

    def remember(self, file: bytes, patient: bytes, instance: bytes) -> None:
        """Know this file next time without opening it."""
        self._index.execute(
            "INSERT OR REPLACE INTO files SELECT ?, ?, id FROM patients WHERE pseudonym = ?", (file, instance, patient)
        )

    def add(self, *, patient: bytes, study: bytes, instance: bytes, rows: NDArray[Any], manufacturer: str = "") -> None:
        """Append the rows of a new instance. rows: [k, ...] of the cohort's layout. manufacturer: as `normalised`."""
        if not len(rows) or rows.shape[1:] != self._layout.shape:
            raise ValueError(f"rows {rows.shape} do not fit {self._layout.shape}")
        self._index.execute("INSERT OR IGNORE INTO patients (pseudonym, since) VALUES (?, ?)", (patient, now()))
        (owner,) = self._index.execute("SELECT id FROM patients WHERE pseudonym = ?", (patient,)).fetchone()
        first = self._first_row + self.added
        self._index.execute(
            "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", (instance, study, owner, first, len(rows), manufacturer)
        )
        self.arrays.append(rows)
        self.added += len(rows)

    def made_by(self, patient: bytes, instance: bytes, manufacturer: str) -> None:
        """Note who made the scanner of a stored instance. manufacturer: as `normalised`."""
        self._index.execute(f"UPDATE instances SET manufacturer = ? WHERE {ONE}", (manufacturer, instance, patient))

    def stage(self, subject: bytes, line: int, labels: Sequence[str | None]) -> bool:
        """Note the labels of a CSV line -> False where an earlier line contradicts: then their subject has none."""
        values = json.dumps(list(labels))
        if self._index.execute("INSERT OR IGNORE INTO staged VALUES (?, ?, ?)", (subject, line, values)).rowcount:
            return True
        (earlier,) = self._index.execute("SELECT labels FROM staged WHERE subject = ?", (subject,)).fetchone()
        if earlier == values:
            return True
        self._index.execute("UPDATE staged SET labels = NULL WHERE subject = ?", (subject,))
        return False

    def label(self, columns: Sequence[str], named_lines: int) -> tuple[int, int, tuple[int, ...]]:
        """Give the staged labels to each patient who has the subject; an empty cell takes a label away.

        Returns: how many CSV keys the cohort holds, how many it does not, and the first lines of the latter.
        """
        for column in columns:
            self._index.execute("INSERT OR IGNORE INTO label_columns (name) VALUES (?)", (column,))
        known = dict(self._index.execute("SELECT name, position FROM label_columns"))
        matched = unmatched = 0
        lines: list[int] = []
        for subject, line, told in self._index.execute("SELECT subject, line, labels FROM staged ORDER BY line"):
            holders = self._index.execute(_HOLDERS, {"subject": subject}).fetchall()
            if not holders:
                unmatched += 1
                if len(lines) < named_lines:
                    lines.append(int(line))
                continue
            matched += 1
            values = json.loads(told) if told else [None] * len(columns)
            for (patient,), (column, value) in product(holders, zip(columns, values, strict=True)):
                at = (patient, subject, known[column])
                self._index.execute("DELETE FROM labels WHERE patient = ? AND subject = ? AND column = ?", at)
                if value is not None:
                    self._index.execute("INSERT INTO labels VALUES (?, ?, ?, ?)", (*at, value))
        return matched, unmatched, tuple(lines)
