"""Writing a cohort: rows first, then the index, a batch at a time; and erasing. See cohort.py for the files."""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError, StorageError
from wardround_client.clock import now
from wardround_client.cohort.store import (
    FORMAT,
    INDEX,
    INPUTS,
    SCHEMA,
    Layout,
    connect,
    count_rows,
    mapped,
    read_meta,
    storage,
)

_STAYS = "p.erased IS NULL AND p.pseudonym NOT IN (SELECT pseudonym FROM temp.withdrawn)"
_ONE = "instance = ? AND patient = (SELECT id FROM patients WHERE pseudonym = ?)"
_HOLDERS = f"""
SELECT p.id FROM patients p WHERE {_STAYS} AND p.id IN (
SELECT patient FROM instances WHERE instance = :subject UNION SELECT patient FROM instances WHERE study = :subject
UNION SELECT id FROM patients WHERE pseudonym = :subject)
"""


class CohortWriter:
    """Appends to a cohort. One at a time (a lock); every `batch` is all or nothing.

    Use as a context manager around the whole ingest; call `finish` when it is complete.
    """

    def __init__(self, path: Path, layout: Layout, key: bytes, *, withdrawn: Collection[bytes] = ()) -> None:
        """Open or create; cut off what an interrupted ingest left behind.

        Args:
            path: the cohort's folder.
            layout: of every row, for life.
            key: the hospital's pseudonym secret.
            withdrawn: pseudonyms of those who are neither labelled nor counted; whoever adds rows leaves them out.

        Raises:
            DataError: a cohort of another layout, recipe or key is there; or it is damaged.
            StorageError: no room, no permission, or another ingest is running.
        """
        self.path, self.layout, self.withdrawn = path, layout, frozenset(withdrawn)
        with storage(path):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _locked(path)
            try:
                self._open(hmac.digest(key, b"cohort", "sha256").hex())
            except BaseException:
                os.close(self._lock)
                raise

    def _open(self, key_check: str) -> None:
        # Private files from the first byte on, also the journal that SQLite makes beside the index.
        os.close(os.open(self.path / INDEX, os.O_RDWR | os.O_CREAT, 0o600))
        self._inputs = os.open(self.path / INPUTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._index = connect(self.path)
        try:
            self._prepare(key_check)
        except BaseException:
            self._index.close()
            os.close(self._inputs)
            raise

    def _prepare(self, key_check: str) -> None:
        if not self._index.execute("SELECT 1 FROM sqlite_master WHERE name = 'meta'").fetchone():
            wanted = [
                ("format", str(FORMAT)),
                ("layout", self.layout.dumps()),
                ("key", key_check),
                ("state", "ingesting"),
            ]
            self._index.execute("BEGIN IMMEDIATE")
            for statement in SCHEMA.split(";"):
                self._index.execute(statement)
            self._index.executemany("INSERT INTO meta VALUES (?, ?)", wanted)
            self._index.execute("COMMIT")
        stored, meta = read_meta(self.path, self._index)
        if stored != self.layout:
            raise DataError(
                f"{self.path}: asked for {_differences(self.layout, stored)}",
                allowed=_differences(stored, self.layout) + ", as this cohort was made",
                do=f"use the same settings, or move {self.path} away and ingest everything again",
            )
        if not hmac.compare_digest(meta["key"], key_check):
            raise DataError(
                f"{self.path}: this cohort was made with another pseudonym key",
                do=f"restore the hospital's secret.key, or move {self.path} away and ingest everything again",
            )
        _upgrade(self._index, meta)
        self.rows, self.added = count_rows(self._index), 0
        if os.fstat(self._inputs).st_size < self.rows * self.layout.row_bytes:
            mapped(self.path, self.layout, self.rows)  # raises
        os.ftruncate(self._inputs, self.rows * self.layout.row_bytes)
        self._index.execute("UPDATE meta SET value = 'ingesting' WHERE name = 'state'")
        # This run's knowledge; SQLite spills it to a nameless temporary file, so memory stays flat.
        self._index.execute(
            "CREATE TEMP TABLE claimed (patient, instance, PRIMARY KEY (patient, instance)) WITHOUT ROWID"
        )
        self._index.execute(
            "CREATE TEMP TABLE staged (subject BLOB PRIMARY KEY, line INTEGER, labels TEXT) WITHOUT ROWID"
        )
        self._index.execute("CREATE TEMP TABLE withdrawn (pseudonym BLOB PRIMARY KEY) WITHOUT ROWID")
        self._index.executemany("INSERT INTO withdrawn VALUES (?)", ((who,) for who in self.withdrawn))

    def __enter__(self) -> CohortWriter:
        """Open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files and let the lock go."""
        self._index.close()
        os.close(self._inputs)
        os.close(self._lock)

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """One transaction: on leaving, rows are synced to disk, then the index commits. Raises: StorageError."""
        with storage(self.path):
            self._index.execute("BEGIN IMMEDIATE")
            batch = Batch(self, self._index)
            try:
                yield batch
                self._append(batch.arrays)
                self._commit()
            except BaseException:
                if self._index.in_transaction:
                    self._index.execute("ROLLBACK")
                os.ftruncate(self._inputs, self.rows * self.layout.row_bytes)
                raise
            self.rows += batch.added
            self.added += batch.added

    def _append(self, arrays: Sequence[NDArray[Any]]) -> None:
        offset = self.rows * self.layout.row_bytes
        for array in arrays:
            block = memoryview(np.ascontiguousarray(array, self.layout.dtype).tobytes())
            while block:
                written = os.pwrite(self._inputs, block, offset)
                offset, block = offset + written, block[written:]
        if arrays:
            os.fsync(self._inputs)

    def _commit(self) -> None:
        self._index.execute("COMMIT")

    def stored(self, patient: bytes, instance: bytes) -> NDArray[Any] | None:
        """The rows of a patient's instance that earlier batches stored; None when there is none."""
        found = self._index.execute(
            f"SELECT first_row, rows FROM instances WHERE {_ONE}", (instance, patient)
        ).fetchone()
        if found is None or found[0] >= self.rows:
            return None
        block = os.pread(self._inputs, found[1] * self.layout.row_bytes, found[0] * self.layout.row_bytes)
        return np.frombuffer(block, self.layout.dtype).reshape(found[1], *self.layout.shape)

    def known(self, file: bytes) -> tuple[bytes, bytes] | None:
        """(patient's pseudonym, instance) of a file that, unchanged since, was ingested before; None for any other."""
        found = self._index.execute(
            "SELECT pseudonym, instance FROM files JOIN patients ON id = patient WHERE file = ?", (file,)
        ).fetchone()
        return (found[0], found[1]) if found else None

    def finish(self) -> None:
        """Declare the cohort complete. Raises: StorageError."""
        with storage(self.path):
            self._index.execute("UPDATE meta SET value = 'complete' WHERE name = 'state'")

    def totals(self) -> tuple[int, int]:
        """(patients, rows) of the whole cohort, without those who have withdrawn."""
        patients, rows = self._index.execute(
            f"""SELECT COUNT(DISTINCT p.id), COALESCE(SUM(i.rows), 0)
            FROM instances i JOIN patients p ON p.id = i.patient WHERE {_STAYS}"""
        ).fetchone()
        return int(patients), int(rows)

    def shared(self) -> int:
        """How many instances several patients have, each an image of its own: maybe one person under two PatientIDs."""
        found = self._index.execute(
            f"""SELECT COUNT(*) FROM (SELECT 1 FROM instances i JOIN patients p ON p.id = i.patient
            WHERE {_STAYS} GROUP BY instance HAVING COUNT(*) > 1)"""
        )
        return int(found.fetchone()[0])

    def unlabelled(self, columns: Sequence[str]) -> int:
        """How many rows have no label in any of these columns."""
        positions = [
            self._index.execute("SELECT position FROM label_columns WHERE name = ?", (c,)).fetchone() for c in columns
        ]
        marks = ",".join(str(int(position[0])) for position in positions if position)
        found = self._index.execute(
            f"""SELECT COALESCE(SUM(i.rows), 0) FROM instances i JOIN patients p ON p.id = i.patient
            WHERE {_STAYS} AND NOT EXISTS
            (SELECT 1 FROM labels WHERE patient = p.id AND subject IN (i.instance, i.study, p.pseudonym)
            AND column IN ({marks}))"""
        )
        return int(found.fetchone()[0])


class Batch:
    """What one transaction adds; made by `CohortWriter.batch`."""

    def __init__(self, writer: CohortWriter, index: sqlite3.Connection) -> None:
        self._writer, self._index = writer, index
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
        if not len(rows) or rows.shape[1:] != self._writer.layout.shape:
            raise ValueError(f"rows {rows.shape} do not fit {self._writer.layout.shape}")
        self._index.execute("INSERT OR IGNORE INTO patients (pseudonym, since) VALUES (?, ?)", (patient, now()))
        (owner,) = self._index.execute("SELECT id FROM patients WHERE pseudonym = ?", (patient,)).fetchone()
        first = self._writer.rows + self.added
        self._index.execute(
            "INSERT INTO instances VALUES (?, ?, ?, ?, ?, ?)", (instance, study, owner, first, len(rows), manufacturer)
        )
        self.arrays.append(rows)
        self.added += len(rows)

    def made_by(self, patient: bytes, instance: bytes, manufacturer: str) -> None:
        """Note who made the scanner of a stored instance. manufacturer: as `normalised`."""
        self._index.execute(f"UPDATE instances SET manufacturer = ? WHERE {_ONE}", (manufacturer, instance, patient))

    def holds(self, patient: bytes, instance: bytes) -> bool:
        """Whether this patient has the instance already, this batch included."""
        return bool(self._index.execute(f"SELECT 1 FROM instances WHERE {_ONE}", (instance, patient)).fetchone())

    def stage(self, subject: bytes, line: int, labels: Sequence[str | None]) -> int | None:
        """Note the labels of a CSV line. Where two lines contradict each other, their subject has none.

        Returns: the earlier line that says otherwise of the same subject, or None.
        """
        told = json.dumps(list(labels))
        added = self._index.execute("INSERT OR IGNORE INTO staged VALUES (?, ?, ?)", (subject, line, told)).rowcount
        if added:
            return None
        earlier, other = self._index.execute("SELECT line, labels FROM staged WHERE subject = ?", (subject,)).fetchone()
        if other == told:
            return None
        self._index.execute("UPDATE staged SET labels = NULL WHERE subject = ?", (subject,))
        return int(earlier)

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


def erase(path: Path, patients: Collection[bytes]) -> int:
    """Overwrite what a cohort holds of these patients: rows with zeros, identifiers with random bytes; no labels stay.

    A patient's pseudonym and the time of the first row stay, so that the rounds that used the data can be named. Run
    again after a crash, it finishes. What a backup, a solid-state disk or a copy-on-write file system keeps of older
    versions of a file is out of its reach.

    Returns:
        How many of the patients were erased by this call.

    Raises:
        DataError: the cohort is damaged or of another version.
        StorageError: an ingest is running, or the disk refused.
    """
    if not (path / INDEX).is_file():
        return 0
    with storage(path):
        lock = _locked(path)
        try:
            inputs = os.open(path / INPUTS, os.O_RDWR | os.O_CLOEXEC)
            try:
                with closing(connect(path)) as index:
                    return _erase(path, index, inputs, patients)
            finally:
                os.close(inputs)
        finally:
            os.close(lock)


def _erase(path: Path, index: sqlite3.Connection, inputs: int, patients: Collection[bytes]) -> int:
    # SQLite copies the old pages into its journal: that file is kept, to be overwritten as well.
    index.execute("PRAGMA journal_mode = PERSIST")
    layout, meta = read_meta(path, index)
    _upgrade(index, meta)
    known = index.execute("SELECT id, pseudonym FROM patients WHERE erased IS NULL").fetchall()
    wanted = [number for number, pseudonym in known if pseudonym in patients]
    # First the values, then the index: a crash in between leaves patients that are still to be erased.
    end = count_rows(index) * layout.row_bytes
    _zero(inputs, end, os.fstat(inputs).st_size)  # what an interrupted ingest appended may be anybody's
    os.ftruncate(inputs, end)
    for number in wanted:
        for first, rows in index.execute("SELECT first_row, rows FROM instances WHERE patient = ?", (number,)):
            _zero(inputs, first * layout.row_bytes, (first + rows) * layout.row_bytes)
    os.fsync(inputs)
    index.execute("BEGIN IMMEDIATE")
    for number in wanted:
        _forget(index, number)
    index.execute("COMMIT")
    old_pages = path / f"{INDEX}-journal"
    if old_pages.exists():
        with old_pages.open("r+b") as journal:
            _zero(journal.fileno(), 0, os.fstat(journal.fileno()).st_size)
            os.fsync(journal.fileno())
    index.execute("PRAGMA journal_mode = DELETE")
    return len(wanted)


def _forget(index: sqlite3.Connection, number: int) -> None:
    """Remove what the index says of a patient, but for the pseudonym, the time of the first row and where rows lie."""
    index.execute("DELETE FROM files WHERE patient = ?", (number,))
    index.execute("DELETE FROM labels WHERE patient = ?", (number,))
    for (first,) in index.execute("SELECT first_row FROM instances WHERE patient = ?", (number,)).fetchall():
        index.execute(
            "UPDATE instances SET instance = ?, study = x'', manufacturer = '' WHERE first_row = ?",
            (secrets.token_bytes(32), first),
        )
    index.execute("UPDATE patients SET erased = ? WHERE id = ?", (now(), number))


def _upgrade(index: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Write a cohort of an older format anew, as `read_meta` shows it."""
    if meta["format"] == str(FORMAT):
        return
    manufacturer = "''" if meta["format"] == "2" else "manufacturer"
    index.execute("BEGIN IMMEDIATE")
    index.execute("CREATE TEMP TABLE kept_labels AS SELECT patient, subject, column, value FROM temp.labels")
    index.execute(
        f"CREATE TEMP TABLE kept AS SELECT instance, study, patient, first_row, rows, {manufacturer} FROM instances"
    )
    index.execute("DROP VIEW temp.labels")
    # A file that is not known is opened again: so the next ingest finds what an older one took for a duplicate.
    for table in ("labels", "instances", "files"):
        index.execute(f"DROP TABLE {table}")
    for statement in SCHEMA.split(";"):
        index.execute(statement)
    index.execute("INSERT INTO instances SELECT * FROM temp.kept")
    index.execute("INSERT INTO labels SELECT * FROM temp.kept_labels")
    index.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(FORMAT),))
    index.execute("COMMIT")


def _zero(file: int, start: int, end: int) -> None:
    """Overwrite bytes start .. end with zeros."""
    zeros = memoryview(bytes(1 << 20))
    while start < end:
        start += os.pwrite(file, zeros[: end - start], start)


def _locked(path: Path) -> int:
    """The handle that keeps other writers out until it is closed. Raises: StorageError, OSError."""
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise StorageError(f"{path}: another ingest is running", do="wait until it has ended") from None
    return lock


def _differences(of: Layout, other: Layout) -> str:
    mine, theirs = asdict(of), asdict(other)
    names = [name for name in mine if mine[name] != theirs[name]]
    plain = [name for name in names if name != "recipe"] or names  # the recipe repeats what the others say
    return ", ".join(f"{name} {mine[name]!r}" for name in plain)
