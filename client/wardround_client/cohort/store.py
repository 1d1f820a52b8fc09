"""A hospital's cohort on disk: small images or table rows, pseudonymous patients, labels, scanners' makers. No more.

    inputs.bin      the rows, uint16 [n, channels, S, S] or float32 [n, F], little-endian, append only; memory-mapped
    index.sqlite    which rows belong to which pseudonymous patient, the labels, and who made the scanner
    quarantine.csv  the files that could not be used and why (their paths: this file stays at home)

Rows are appended and synced first, then the index commits. So after a crash the index never points at a row that is
not there; rows that no index knows are cut off when the next ingest opens the cohort.

Whoever opens a cohort says who has withdrawn (withdrawn.py). Rows of these patients are not there for any reader.
"""

from __future__ import annotations

import difflib
import json
import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError, StorageError, WardroundError

FORMAT = 4
OLDER = (2, 3)
"""Formats that are read too, until what writes next brings them up to date. In 2 every manufacturer is unknown."""

MANUFACTURER = "manufacturer"
"""The column of a CSV that says who made the scanner, for rows whose file does not."""

UNKNOWN = "unknown"
"""The manufacturer of a row about which neither its file nor the CSV says anything."""

INPUTS, INDEX, QUARANTINE = "inputs.bin", "index.sqlite", "quarantine.csv"

# Whatever a UID names, it names within one patient: files of two patients that share one are two things.
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS patients (
    id INTEGER PRIMARY KEY, pseudonym BLOB NOT NULL UNIQUE,
    since TEXT NOT NULL,  -- when the first row came in, UTC
    erased TEXT           -- when the values were overwritten, UTC, or NULL
);
CREATE TABLE IF NOT EXISTS instances (
    instance BLOB, study BLOB NOT NULL, patient INTEGER REFERENCES patients,
    first_row INTEGER NOT NULL UNIQUE, rows INTEGER NOT NULL,
    manufacturer TEXT NOT NULL DEFAULT '',  -- as `normalised`, '' when the file names none
    PRIMARY KEY (instance, patient)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_of_patient ON instances (patient);
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study);
CREATE TABLE IF NOT EXISTS files (file BLOB PRIMARY KEY, instance BLOB NOT NULL, patient INTEGER) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS label_columns (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS labels (
    patient INTEGER, subject BLOB, column INTEGER, value TEXT NOT NULL, PRIMARY KEY (patient, subject, column)
) WITHOUT ROWID;
"""

# The labels of a cohort of an older format, read as those of this one.
_OLDER_LABELS = """
CREATE TEMP VIEW labels AS SELECT held.patient, told.subject, told.column, told.value FROM main.labels told JOIN (
SELECT patient, instance AS subject FROM main.instances UNION SELECT patient, study FROM main.instances
UNION SELECT id, pseudonym FROM main.patients) held ON held.subject = told.subject
"""

# The label of the image itself goes before that of its study, and that before the patient's.
LABELS = """
SELECT i.rows, COALESCE(own.value, study.value, patient.value) FROM instances i JOIN patients p ON p.id = i.patient
LEFT JOIN labels own ON own.patient = p.id AND own.subject = i.instance AND own.column = :column
LEFT JOIN labels study ON study.patient = p.id AND study.subject = i.study AND study.column = :column
LEFT JOIN labels patient ON patient.patient = p.id AND patient.subject = p.pseudonym AND patient.column = :column
ORDER BY i.first_row
"""


@dataclass(frozen=True)
class Layout:
    """What one row of a cohort is. kind "image": [channels, S, S] uint16; kind "table": [features] float32.

    recipe: every setting that decides a row's values; a cohort keeps one for life.
    """

    kind: Literal["image", "table"]
    image_size_px: int = 0
    channels: int = 0
    features: tuple[str, ...] = ()
    recipe: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        if self.kind == "table":
            return (len(self.features),)
        return (self.channels, self.image_size_px, self.image_size_px)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian on every machine."""
        return np.dtype("<f4" if self.kind == "table" else "<u2")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in inputs.bin."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> Layout:
        """From `dumps`."""
        layout = cls(**json.loads(text))
        return replace(layout, features=tuple(layout.features))


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a file, read when they are asked for.

    mapped: all rows of the file, read-only. kept: int64 [n], which of them are here, ascending.
    """

    mapped: NDArray[Any]
    kept: NDArray[np.int64]

    @property
    def shape(self) -> tuple[int, ...]:
        """[n, ...]."""
        return (len(self.kept), *self.mapped.shape[1:])

    @property
    def dtype(self) -> np.dtype[Any]:
        """As in the file."""
        return self.mapped.dtype

    def __len__(self) -> int:
        return len(self.kept)

    def __getitem__(self, rows: int | slice | NDArray[np.int64]) -> NDArray[Any]:
        """A copy of these rows."""
        return np.array(self.mapped[self.kept[rows]])

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        """A copy of all of them, whatever their size."""
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class CohortStore:
    """A finished cohort, opened for reading, without the patients who have withdrawn.

    Attributes:
        path: its folder.
        layout: what a row is.
        inputs: memory-mapped, read-only; uint16 [n, channels, S, S] (scale 1/65535), or float32 [n, features].
        patients: int64 [n], index of each row's patient in `pseudonyms`.
        pseudonyms: keyed hash of each patient, bytes [32]; never leaves the hospital.
        label_columns: names, in order of first sight.
    """

    path: Path
    layout: Layout
    inputs: Rows
    patients: NDArray[np.int64]
    pseudonyms: tuple[bytes, ...]
    label_columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, *, withdrawn: Collection[bytes]) -> CohortStore:
        """Open a cohort that an ingest finished. It may hold no row: whether it does depends on patients.

        Args:
            path: its folder.
            withdrawn: pseudonyms of the patients whose rows no reader may see.

        Raises:
            DataError: absent, damaged, of another version, or left unfinished by an interrupted ingest.
            StorageError: it cannot be read.
        """
        if not (path / INDEX).is_file():
            raise DataError(f"{path} holds no cohort", do="make one with `wardround hospital ingest`")
        with storage(path), closing(connect(path, must_exist=True)) as index:
            layout, meta = read_meta(path, index)
            if meta["state"] != "complete":
                raise DataError(
                    f"{path}: the ingest of this cohort did not finish",
                    do="run `wardround hospital ingest` again with the same files; it continues where it stopped",
                )
            owned = np.array(
                index.execute("SELECT patient, rows FROM instances ORDER BY first_row").fetchall(), np.int64
            ).reshape(-1, 2)
            owners = np.repeat(owned[:, 0], owned[:, 1])  # of every row of the file
            mapping = mapped(path, layout, len(owners))
            known = index.execute("SELECT id, pseudonym FROM patients WHERE erased IS NULL")
            left = {patient: pseudonym for patient, pseudonym in known if pseudonym not in withdrawn}
            columns = tuple(name for (name,) in index.execute("SELECT name FROM label_columns ORDER BY position"))
        kept = np.flatnonzero(np.isin(owners, list(left)))
        ids, patients = np.unique(owners[kept], return_inverse=True)
        patients = patients.astype(np.int64)
        patients.flags.writeable = False
        return cls(path, layout, Rows(mapping, kept), patients, tuple(left[i] for i in ids.tolist()), columns)

    def __len__(self) -> int:
        """Rows: images, or rows of the table."""
        return len(self.patients)

    @property
    def kind(self) -> Literal["image", "table"]:
        """What the rows are."""
        return self.layout.kind

    @property
    def image_size_px(self) -> int:
        """Side of an image; 0 for a table."""
        return self.layout.image_size_px

    @property
    def channels(self) -> int:
        """1 or 3; 0 for a table."""
        return self.layout.channels

    @property
    def features(self) -> tuple[str, ...]:
        """Names of a table's columns; () for images."""
        return self.layout.features

    def labels(self, column: str) -> list[str | None]:
        """The label of each row, [n]; None where there is none. Raises: DataError, for an unknown column."""
        if column not in self.label_columns:
            near = difflib.get_close_matches(column, self.label_columns, n=1)
            raise DataError(
                f"{self.path}: no label column {column!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
                allowed=", ".join(self.label_columns) or "none, no labels were ingested",
                do="correct task.label_column, or ingest a CSV that holds it",
            )
        with storage(self.path), closing(connect(self.path, must_exist=True)) as index:
            read_meta(self.path, index)
            (position,) = index.execute("SELECT position FROM label_columns WHERE name = ?", (column,)).fetchone()
            result: list[str | None] = []
            for rows, value in index.execute(LABELS, {"column": position}):
                result.extend([value] * rows)
        return [result[row] for row in self.inputs.kept.tolist()]

    @cached_property
    def manufacturers(self) -> tuple[str, ...]:
        """Who made the scanner of each row, [n], as `normalised`: the file's word, else the CSV's, else UNKNOWN.

        For a look at one's own data: it never leaves the hospital.

        Raises: DataError, StorageError: the index is damaged or cannot be read.
        """
        with storage(self.path), closing(connect(self.path, must_exist=True)) as index:
            _, meta = read_meta(self.path, index)
            column = "''" if meta["format"] == "2" else "manufacturer"
            of_file: list[str] = []
            for rows, name in index.execute(f"SELECT rows, {column} FROM instances ORDER BY first_row"):
                of_file.extend([name] * rows)
        of_csv = self.labels(MANUFACTURER) if MANUFACTURER in self.label_columns else [None] * len(self)
        kept = (of_file[row] for row in self.inputs.kept.tolist())
        return tuple(own or normalised(told or "") or UNKNOWN for own, told in zip(kept, of_csv, strict=True))


def normalised(manufacturer: str) -> str:
    """A manufacturer as it is grouped: printable, single spaces, case-folded, at most 64 characters; "" for nothing.

    64 is what Manufacturer (0008,0070) may hold (PS3.5 6.2, LO): whatever a damaged file says, no more is kept.
    """
    printable = "".join(c if c.isprintable() else " " for c in manufacturer)
    return " ".join(printable.casefold().split())[:64].rstrip()


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the disk and SQLite raise into errors that a user can act on."""
    try:
        yield
    except WardroundError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise StorageError(
            f"{path}: cannot be read or written ({why})",
            do="make room or correct the permissions, then run the same command again; nothing that was stored is lost",
        ) from None
    except sqlite3.DatabaseError as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> DataError:
    """The error for an index that is not what we wrote."""
    return DataError(
        f"{path}: the cohort is damaged ({type(error).__name__})",
        do="move the folder away and ingest again; the DICOM files are untouched",
    )


def connect(path: Path, *, must_exist: bool = False) -> sqlite3.Connection:
    """Open the index; every commit is synced."""
    mode = "ro" if must_exist else "rwc"
    index = sqlite3.connect(
        f"{(path / INDEX).absolute().as_uri()}?mode={mode}", uri=True, timeout=30, isolation_level=None
    )
    index.execute("PRAGMA synchronous = FULL")
    index.execute("PRAGMA secure_delete = ON")  # what is deleted leaves no copy in a free page
    return index


def read_meta(path: Path, index: sqlite3.Connection) -> tuple[Layout, dict[str, str]]:
    """The layout, and everything that stands beside it. Raises: DataError."""
    try:
        meta = dict(index.execute("SELECT name, value FROM meta"))
        if meta["format"] not in map(str, (FORMAT, *OLDER)):
            raise DataError(
                f"{path}: cohort format {meta['format']}",
                allowed=f"{min(OLDER)} to {FORMAT}",
                do=f"move {path} away and ingest again",
            )
        if meta["format"] != str(FORMAT):
            index.execute(_OLDER_LABELS)
        return Layout.loads(meta["layout"]), meta
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    except sqlite3.OperationalError as error:
        raise (damaged(path, error) if "no such" in str(error) else error) from None


def count_rows(index: sqlite3.Connection) -> int:
    """Rows that the index knows."""
    return int(index.execute("SELECT COALESCE(SUM(rows), 0) FROM instances").fetchone()[0])


def mapped(path: Path, layout: Layout, count: int) -> NDArray[Any]:
    """The first `count` rows, read-only. Raises: DataError, when there are fewer."""
    size = (path / INPUTS).stat().st_size
    if size < count * layout.row_bytes:
        raise DataError(
            f"{path}: {INPUTS} holds {size // layout.row_bytes} rows, the index knows {count}",
            do="move the folder away and ingest again; the DICOM files are untouched",
        )
    if not count:  # an empty file cannot be mapped
        return np.zeros((0, *layout.shape), layout.dtype)
    return np.memmap(path / INPUTS, layout.dtype, mode="r", shape=(count, *layout.shape))
