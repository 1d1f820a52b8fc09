"""Writing a cohort: rows first, then the index, a batch at a time. See store.py for the files."""

from __future__ import annotations

import hmac
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError
from wardround.task import joined
from wardround_client.cohort.batch import Batch
from wardround_client.cohort.corrections import leaving_rows, overwritten
from wardround_client.cohort.erasure import zero
from wardround_client.cohort.features import forget_features
from wardround_client.cohort.index import (
    FORMAT,
    INDEX,
    INPUTS,
    LABEL,
    LABELLED,
    ONE,
    SCHEMA,
    STAYS,
    CohortLayout,
    alone,
    connect,
    copied,
    count_rows,
    mapped,
    read_meta,
    storage,
    upgrade,
)

# A run's knowledge; SQLite spills it to a nameless temporary file, so memory stays flat. claimed: what was met, once.
# staged: lines of the CSV, by what they name. told: the labels that follow. met: what stands in a place now. withheld:
# what is of a patient who has withdrawn.
_OF_THIS_RUN = """
CREATE TEMP TABLE claimed (patient, instance, PRIMARY KEY (patient, instance)) WITHOUT ROWID;
CREATE TEMP TABLE staged (subject BLOB, patient BLOB, line INTEGER, labels TEXT, PRIMARY KEY (subject, patient))
WITHOUT ROWID;
CREATE TEMP TABLE told (patient, subject, column, value, PRIMARY KEY (patient, subject, column)) WITHOUT ROWID;
CREATE TEMP TABLE met (place BLOB PRIMARY KEY, file BLOB, certain INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE withheld (instance, patient, PRIMARY KEY (instance, patient)) WITHOUT ROWID;
CREATE TEMP TABLE withdrawn (pseudonym BLOB PRIMARY KEY) WITHOUT ROWID;
"""


class CohortWriter:
    """Appends to a cohort. One at a time (a lock); every `batch` is all or nothing.

    Use as a context manager around the whole ingest; call `finish` when it is complete.
    """

    def __init__(
        self,
        path: Path,
        layout: CohortLayout,
        key: bytes,
        *,
        root: bytes = b"",
        withdrawn: Collection[bytes] = (),
        dry_run: bool = False,
    ) -> None:
        """Open or create; cut off what an interrupted ingest left behind.

        Args:
            path: the cohort's folder.
            layout: of every row, for life.
            key: the hospital's pseudonym secret.
            root: keyed hash of the archive that is taken in; b"": nobody knows which.
            withdrawn: pseudonyms of those who are neither labelled nor counted; their rows are not to be added.
            dry_run: nothing is written: the index is a copy in memory, and rows go nowhere.

        Raises:
            DataError: a cohort of another layout, recipe or key is there; or it is damaged.
            StorageError: no room, no permission, or another ingest is running.
        """
        self.path, self.layout, self.withdrawn, self._dry = path, layout, frozenset(withdrawn), dry_run
        self._root = root
        with storage(path), ExitStack() as opened:
            if dry_run:
                self._inputs = os.open(path / INPUTS if (path / INPUTS).exists() else os.devnull, os.O_RDONLY)
                self._index = opened.enter_context(closing(copied(path)))
            else:
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                opened.enter_context(alone(path))
                # Private files from the first byte on, also the journal that SQLite makes beside the index.
                os.close(os.open(path / INDEX, os.O_RDWR | os.O_CREAT, 0o600))
                self._inputs = os.open(path / INPUTS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                self._index = opened.enter_context(closing(connect(path)))
            opened.callback(os.close, self._inputs)
            self._prepare(hmac.digest(key, b"cohort", "sha256").hex())
            self._opened = opened.pop_all()

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
        if stored != self.layout and not count_rows(self._index):  # an ingest of which nothing could be used
            self._index.execute("UPDATE meta SET value = ? WHERE name = 'layout'", (self.layout.dumps(),))
        elif stored != self.layout:
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
        upgrade(self._index, meta)
        self._complete = meta["state"] == "complete"
        self.rows, self.added = count_rows(self._index), 0
        if os.fstat(self._inputs).st_size < self.rows * self.layout.row_bytes:
            mapped(self.path, self.layout, self.rows)  # raises
        self._cut()
        self._overwrite()
        for statement in _OF_THIS_RUN.split(";"):
            self._index.execute(statement)
        self._index.executemany("INSERT INTO withdrawn VALUES (?)", ((pseudonym,) for pseudonym in self.withdrawn))

    def __enter__(self) -> CohortWriter:
        """Open already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the files and let the lock go."""
        self._opened.close()

    @contextmanager
    def batch(self) -> Iterator[Batch]:
        """One transaction: on leaving, rows are synced to disk, then the index commits. Raises: StorageError."""
        with storage(self.path):
            self._index.execute("BEGIN IMMEDIATE")
            batch = Batch(self._index, self.layout, self.rows, self._root)
            try:
                yield batch
                self._append(batch.arrays)
                if batch.arrays and self._complete:
                    self._say("ingesting")
                self._commit()
            except BaseException:
                if self._index.in_transaction:  # otherwise it was committed, and Ctrl-C came right after
                    self._index.execute("ROLLBACK")
                    self._cut()
                raise
            self._complete = self._complete and not batch.arrays
            self.rows += batch.added
            self.added += batch.added

    def _append(self, arrays: Sequence[NDArray[Any]]) -> None:
        if self._dry:
            return
        offset = self.rows * self.layout.row_bytes
        for array in arrays:
            block = memoryview(np.ascontiguousarray(array, self.layout.dtype).tobytes())
            while block:
                written = os.pwrite(self._inputs, block, offset)
                offset, block = offset + written, block[written:]
        if arrays:
            os.fsync(self._inputs)

    def _cut(self) -> None:
        """Cut off the rows that the index does not know."""
        if not self._dry:
            os.ftruncate(self._inputs, self.rows * self.layout.row_bytes)

    def _commit(self) -> None:
        self._index.execute("COMMIT")

    def stored(self, patient: bytes, instance: bytes) -> NDArray[Any] | None:
        """The rows of a patient's instance that earlier batches stored; None when there is none."""
        found = self._index.execute(
            f"SELECT first_row, rows FROM instances WHERE {ONE}", (instance, patient)
        ).fetchone()
        if found is None or found[0] >= self.rows:
            return None
        block = os.pread(self._inputs, found[1] * self.layout.row_bytes, found[0] * self.layout.row_bytes)
        return np.frombuffer(block, self.layout.dtype).reshape(found[1], *self.layout.shape)

    def is_withdrawn(self, patient: bytes) -> bool:
        """Whether a patient of the cohort has withdrawn, also by the PatientID alone."""
        if not self.withdrawn:
            return False
        found = self._index.execute("SELECT bare FROM patients WHERE pseudonym = ?", (patient,)).fetchone()
        return patient in self.withdrawn or (found is not None and found[0] in self.withdrawn)

    def known(self, file: bytes) -> tuple[bytes, bytes] | None:
        """(patient's pseudonym, instance) of a file that, unchanged since, was ingested before; None for any other."""
        found = self._index.execute(
            "SELECT pseudonym, instance FROM files JOIN patients ON id = patient WHERE file = ?", (file,)
        ).fetchone()
        return (found[0], found[1]) if found else None

    def finish(self) -> None:
        """Declare the cohort complete, where it is not, and overwrite what was taken out. Raises: StorageError."""
        with storage(self.path):
            if not self._complete:
                self._say("complete")
                self._complete = True
            self._overwrite()

    def _say(self, state: str) -> None:
        self._index.execute("UPDATE meta SET value = ? WHERE name = 'state'", (state,))

    def _overwrite(self) -> None:
        """Fill with zeros the rows that were taken out; also those that a crash left as they were."""
        leaving = leaving_rows(self._index)
        if self._dry or not leaving:
            return
        forget_features(self.path)  # of images that are not there any more
        for first, rows in leaving:
            zero(self._inputs, first * self.layout.row_bytes, (first + rows) * self.layout.row_bytes)
        os.fsync(self._inputs)
        forget_features(self.path)
        overwritten(self._index)

    def totals(self) -> tuple[int, int]:
        """(patients, rows) of the whole cohort, without those who have withdrawn."""
        patients, rows = self._index.execute(
            f"""SELECT COUNT(DISTINCT p.id), COALESCE(SUM(i.rows), 0)
            FROM instances i JOIN patients p ON p.id = i.patient WHERE {STAYS}"""
        ).fetchone()
        return int(patients), int(rows)

    def shared(self) -> int:
        """How many instances several patients have, each an image of its own: maybe one person under two PatientIDs."""
        found = self._index.execute(
            f"""SELECT COUNT(*) FROM (SELECT 1 FROM instances i JOIN patients p ON p.id = i.patient
            WHERE {STAYS} GROUP BY instance HAVING COUNT(*) > 1)"""
        )
        return int(found.fetchone()[0])

    def labels(self, *columns: str) -> list[tuple[str, int]]:
        """Each label of a column with each patient who has a row of it; of several columns, `task.joined`."""
        asked = f"SELECT {LABEL}, p.id {LABELLED} WHERE c.name = ? AND {STAYS} ORDER BY i.first_row"
        each = [self._index.execute(asked, (column,)).fetchall() for column in columns]
        found = ((joined([cell for cell, _ in rows]), rows[0][1]) for rows in zip(*each, strict=False))
        return list(dict.fromkeys((label, patient) for label, patient in found if label is not None))

    def modalities(self) -> dict[str, int]:
        """How many images there are of each modality, the most frequent first; "" for those that name none."""
        found = self._index.execute(
            f"""SELECT modality, SUM(i.rows) AS n FROM instances i JOIN patients p ON p.id = i.patient WHERE {STAYS}
            GROUP BY modality ORDER BY n DESC, modality"""
        )
        return {name: int(count) for name, count in found}

    def issuers(self) -> int:
        """How many PatientIDs stand for several patients, by who issued them."""
        found = self._index.execute(
            f"""SELECT COUNT(*) FROM (SELECT 1 FROM patients p WHERE {STAYS} AND EXISTS
            (SELECT 1 FROM instances WHERE patient = p.id) GROUP BY bare HAVING COUNT(*) > 1)"""
        )
        return int(found.fetchone()[0])

    def halved(self) -> int:
        """How many of them files name with an issuer and without: maybe one person, who is two patients here."""
        found = self._index.execute(
            f"""SELECT COUNT(*) FROM patients p WHERE {STAYS} AND p.pseudonym = p.bare
            AND EXISTS (SELECT 1 FROM instances WHERE patient = p.id) AND EXISTS (SELECT 1 FROM patients q
            WHERE q.bare = p.bare AND q.id != p.id AND EXISTS (SELECT 1 FROM instances WHERE patient = q.id))"""
        )
        return int(found.fetchone()[0])

    def other_columns(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Label columns that an earlier CSV of this archive brought, and this one does not have."""
        found = self._index.execute(
            """SELECT name FROM label_columns WHERE position IN (SELECT column FROM labels WHERE root = ?)
            ORDER BY position""",
            (self._root,),
        )
        return tuple(name for (name,) in found if name not in columns)

    def unlabelled(self, columns: Sequence[str]) -> int:
        """How many rows have no label in any of these columns."""
        positions = [
            self._index.execute("SELECT position FROM label_columns WHERE name = ?", (c,)).fetchone() for c in columns
        ]
        marks = ",".join(str(int(position[0])) for position in positions if position)
        found = self._index.execute(
            f"""SELECT COALESCE(SUM(i.rows), 0) FROM instances i JOIN patients p ON p.id = i.patient
            WHERE {STAYS} AND NOT EXISTS
            (SELECT 1 FROM labels WHERE patient = p.id
            AND subject IN (i.instance, i.series, i.study, i.accession, p.pseudonym, p.bare)
            AND column IN ({marks}))"""
        )
        return int(found.fetchone()[0])


def _differences(of: CohortLayout, other: CohortLayout) -> str:
    mine, theirs = asdict(of), asdict(other)
    names = [name for name in mine if mine[name] != theirs[name]]
    plain = [name for name in names if name != "recipe"] or names  # the recipe repeats what the others say
    return ", ".join(f"{name} {mine[name]!r}" for name in plain)
