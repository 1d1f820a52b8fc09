"""Erasing patients: their rows become zeros, their identifiers random bytes, and no label stays."""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from wardround_client.clock import now
from wardround_client.cohort.features import forget_features
from wardround_client.cohort.index import INDEX, INPUTS, alone, connect, count_rows, read_meta, storage, upgrade


def erase(path: Path, patients: Collection[bytes]) -> int:
    """Overwrite what a cohort holds of these patients: rows with zeros, identifiers with random bytes; no labels stay.
    Cached features of everybody go with them.

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
        forget_features(path)
    with storage(path), alone(path), (path / INPUTS).open("r+b") as inputs, closing(connect(path)) as index:
        return _erase(path, index, inputs.fileno(), patients)


def _erase(path: Path, index: sqlite3.Connection, inputs: int, patients: Collection[bytes]) -> int:
    # SQLite copies the old pages into its journal: that file is kept, to be overwritten as well.
    index.execute("PRAGMA journal_mode = PERSIST")
    layout, meta = read_meta(path, index)
    upgrade(index, meta)
    known = index.execute("SELECT id, pseudonym, bare FROM patients WHERE erased IS NULL").fetchall()
    wanted = [number for number, pseudonym, bare in known if pseudonym in patients or bare in patients]
    # First the values, then the index: a crash in between leaves patients that are still to be erased.
    end = count_rows(index) * layout.row_bytes
    zero(inputs, end, os.fstat(inputs).st_size)  # what an interrupted ingest appended may be anybody's
    os.ftruncate(inputs, end)
    for number in wanted:
        for first, rows in index.execute("SELECT first_row, rows FROM instances WHERE patient = ?", (number,)):
            zero(inputs, first * layout.row_bytes, (first + rows) * layout.row_bytes)
    os.fsync(inputs)
    index.execute("BEGIN IMMEDIATE")
    for number in wanted:
        _forget(index, number)
    index.execute("COMMIT")
    old_pages = path / f"{INDEX}-journal"
    if old_pages.exists():
        with old_pages.open("r+b") as journal:
            zero(journal.fileno(), 0, os.fstat(journal.fileno()).st_size)
            os.fsync(journal.fileno())
    index.execute("PRAGMA journal_mode = DELETE")
    return len(wanted)


def _forget(index: sqlite3.Connection, number: int) -> None:
    """Remove what the index says of a patient, but for the pseudonym, the time of the first row and where rows lie."""
    for table in ("files", "labels", "origins"):
        index.execute(f"DELETE FROM {table} WHERE patient = ?", (number,))
    for (first,) in index.execute("SELECT first_row FROM instances WHERE patient = ?", (number,)).fetchall():
        index.execute(
            """UPDATE instances SET instance = ?, study = x'', manufacturer = '', modality = '', series = x'',
            accession = x'' WHERE first_row = ?""",
            (secrets.token_bytes(32), first),
        )
    index.execute("UPDATE patients SET erased = ? WHERE id = ?", (now(), number))


def zero(file: int, start: int, end: int) -> None:
    """Overwrite bytes start .. end with zeros."""
    zeros = memoryview(bytes(1 << 20))
    while start < end:
        start += os.pwrite(file, zeros[: end - start], start)
