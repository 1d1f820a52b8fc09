"""The index of a cohort on disk, and everything that reader, writer and eraser share: layout, schema, lock, errors."""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError, StorageError, WardroundError
from wardround.files import locked, remedy

FORMAT = 5
OLDER = (2, 3, 4)
"""Formats that are read too, until what writes next brings them up to date. In 2 every manufacturer is unknown, in all
of them every modality."""

INPUTS, INDEX, QUARANTINE = "inputs.bin", "index.sqlite", "quarantine.csv"

# Whatever a UID names, it names within one patient: files of two patients that share one are two things.
SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS patients (
    id INTEGER PRIMARY KEY, pseudonym BLOB NOT NULL UNIQUE,
    bare BLOB NOT NULL,   -- the pseudonym of the PatientID alone, whoever issued it
    since TEXT NOT NULL,  -- when the first row came in, UTC
    erased TEXT           -- when the values were overwritten, UTC, or NULL
);
CREATE TABLE IF NOT EXISTS instances (
    instance BLOB, study BLOB NOT NULL, patient INTEGER REFERENCES patients,
    first_row INTEGER NOT NULL UNIQUE, rows INTEGER NOT NULL,
    manufacturer TEXT NOT NULL,  -- as `normalised`, '' when the file names none
    modality TEXT NOT NULL,      -- '' when the file names none
    series BLOB NOT NULL, accession BLOB NOT NULL,  -- x'' when the file names none
    PRIMARY KEY (instance, patient)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS instances_of_patient ON instances (patient);
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study);
CREATE INDEX IF NOT EXISTS instances_of_series ON instances (series);
CREATE INDEX IF NOT EXISTS instances_of_accession ON instances (accession);
-- file is the keyed hash of a fingerprint, place of the path alone, which the next version of the file has too.
CREATE TABLE IF NOT EXISTS files (
    file BLOB PRIMARY KEY, place BLOB NOT NULL, instance BLOB NOT NULL, patient INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS files_of_place ON files (place);
CREATE INDEX IF NOT EXISTS files_of_instance ON files (instance, patient);
-- Through which archive an instance came in, and a label: an ingest of that archive may take it away again.
CREATE TABLE IF NOT EXISTS origins (
    instance BLOB, patient INTEGER, root BLOB,
    met INTEGER NOT NULL,  -- 1 once an ingest that met it came to its end
    PRIMARY KEY (instance, patient, root)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS label_columns (position INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS labels (
    patient INTEGER, subject BLOB, column INTEGER, value TEXT NOT NULL, root BLOB NOT NULL,
    PRIMARY KEY (patient, subject, column)
) WITHOUT ROWID;
"""

# The tables of a cohort of an older format, as those of this one.
_OLDER = {
    "patients": "SELECT id, pseudonym, pseudonym AS bare, since, erased FROM main.patients",
    "instances": """SELECT instance, study, patient, first_row, rows, {manufacturer} AS manufacturer, '' AS modality,
        x'' AS series, x'' AS accession FROM main.instances""",
    "labels": "SELECT patient, subject, column, value, x'' AS root FROM ({labels})",
}
_OLDER_LABELS = """
SELECT held.patient, told.subject, told.column, told.value FROM main.labels told JOIN (
SELECT patient, instance AS subject FROM main.instances UNION SELECT patient, study FROM main.instances
UNION SELECT id, pseudonym FROM main.patients) held ON held.subject = told.subject
"""

STAYS = (
    "p.erased IS NULL AND p.pseudonym NOT IN (SELECT pseudonym FROM temp.withdrawn) "
    "AND p.bare NOT IN (SELECT pseudonym FROM temp.withdrawn)"
)
ONE = "instance = ? AND patient = (SELECT id FROM patients WHERE pseudonym = ?)"

# The label of the image itself goes before that of its series, and so on: study, order (accession number), patient.
LABEL = "COALESCE(own.value, series.value, study.value, accession.value, patient.value, person.value)"
LABELLED = """
FROM instances i JOIN patients p ON p.id = i.patient JOIN label_columns c
LEFT JOIN labels own ON own.patient = p.id AND own.subject = i.instance AND own.column = c.position
LEFT JOIN labels series ON series.patient = p.id AND series.subject = i.series AND series.column = c.position
LEFT JOIN labels study ON study.patient = p.id AND study.subject = i.study AND study.column = c.position
LEFT JOIN labels accession
    ON accession.patient = p.id AND accession.subject = i.accession AND accession.column = c.position
LEFT JOIN labels patient ON patient.patient = p.id AND patient.subject = p.pseudonym AND patient.column = c.position
LEFT JOIN labels person ON person.patient = p.id AND person.subject = p.bare AND person.column = c.position
"""


@dataclass(frozen=True)
class CohortLayout:
    """What one row of a cohort is.

    kind "image": uint16 [channels, S, S]; "volume": uint16 [channels, depth, S, S]; "table": float32 [features];
    "inputs": float32 [numbers], NaN where an input is missing.
    marks: of images, the classes of one plane more, behind the channels (`wardround.planes`); () where there is none.
    measured: what the grey values of images are, in words; "" where they are as a viewer shows them.
    recipe: every setting that decides a row's values; a cohort keeps one for life.
    """

    kind: Literal["image", "volume", "table", "inputs"]
    image_size_px: int = 0
    channels: int = 0
    features: tuple[str, ...] = ()
    recipe: str = ""
    depth: int = 0
    marks: tuple[str, ...] = ()
    numbers: int = 0
    measured: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row."""
        if self.kind == "table":
            return (len(self.features),)
        if self.kind == "inputs":
            return (self.numbers,)
        side = self.image_size_px
        return (self.channels, self.depth, side, side) if self.depth else (self.channels + bool(self.marks), side, side)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Little-endian on every machine."""
        return np.dtype("<f4" if self.kind in ("table", "inputs") else "<u2")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row in inputs.bin."""
        return int(np.prod(self.shape)) * self.dtype.itemsize

    def dumps(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def loads(cls, text: str) -> CohortLayout:
        """From `dumps`."""
        layout = cls(**json.loads(text))
        return replace(layout, features=tuple(layout.features), marks=tuple(layout.marks))


# What SQLite says, and what the disk would say.
_SQLITE = {
    "database or disk is full": errno.ENOSPC,
    "attempt to write a readonly database": errno.EROFS,
    "unable to open database file": errno.EACCES,
}


@contextmanager
def storage(path: Path) -> Iterator[None]:
    """Turn what the disk and SQLite raise into errors that a user can act on."""
    try:
        yield
    except WardroundError:
        raise
    except (OSError, sqlite3.OperationalError) as error:
        os_error = error if isinstance(error, OSError) else OSError(_SQLITE.get(str(error).split(":")[0]), str(error))
        raise StorageError(
            f"{path}: cannot be read or written ({os_error.strerror or error})",
            do=f"{remedy(os_error)}, then run the same command again; nothing that was stored is lost",
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


def copied(path: Path) -> sqlite3.Connection:
    """A copy of the index in memory; an empty one where there is no cohort."""
    copy = sqlite3.connect(":memory:", isolation_level=None)
    if (path / INDEX).is_file():
        with closing(connect(path, must_exist=True)) as index:
            index.backup(copy)
    return copy


def read_meta(path: Path, index: sqlite3.Connection) -> tuple[CohortLayout, dict[str, str]]:
    """The layout, and everything that stands beside it. Raises: DataError."""
    try:
        meta = dict(index.execute("SELECT name, value FROM meta"))
        if meta["format"] not in map(str, (FORMAT, *OLDER)):
            raise DataError(
                f"{path}: cohort format {meta['format']}",
                allowed=f"{min(OLDER)} to {FORMAT}",
                do="install the newer wardround that wrote it again; nothing was changed"
                if meta["format"].isdecimal() and int(meta["format"]) > FORMAT
                else f"move {path} away and ingest again",
            )
        for name, view in _older_views(meta["format"]).items():
            index.execute(f"CREATE TEMP VIEW IF NOT EXISTS {name} AS {view}")
        return CohortLayout.loads(meta["layout"]), meta
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path, error) from None
    except sqlite3.OperationalError as error:
        raise (damaged(path, error) if "no such" in str(error) else error) from None


def count_rows(index: sqlite3.Connection) -> int:
    """Rows that the index knows."""
    return int(index.execute("SELECT COALESCE(SUM(rows), 0) FROM instances").fetchone()[0])


def mapped(path: Path, layout: CohortLayout, count: int) -> NDArray[Any]:
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


def upgrade(index: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    """Write a cohort of an older format anew, as `read_meta` shows it."""
    if meta["format"] == str(FORMAT):
        return
    index.execute("BEGIN IMMEDIATE")
    for table in _OLDER:
        index.execute(f"CREATE TEMP TABLE kept_{table} AS SELECT * FROM temp.{table}")
        index.execute(f"DROP VIEW temp.{table}")
    # A file that is not known is opened again: so the next ingest finds what an older version did not keep.
    for table in ("labels", "instances", "files", "patients"):
        index.execute(f"DROP TABLE {table}")
    for statement in SCHEMA.split(";"):
        index.execute(statement)
    for table in _OLDER:
        index.execute(f"INSERT INTO {table} SELECT * FROM temp.kept_{table}")
        index.execute(f"DROP TABLE temp.kept_{table}")
    index.execute("INSERT INTO origins SELECT instance, patient, x'', 1 FROM instances")  # from nobody knows where
    index.execute("UPDATE meta SET value = ? WHERE name = 'format'", (str(FORMAT),))
    index.execute("COMMIT")


def _older_views(stored: str) -> Mapping[str, str]:
    """By table of a cohort of that format, how it is read as of this one."""
    if stored == str(FORMAT):
        return {}
    manufacturer = "''" if stored == "2" else "manufacturer"
    labels = "SELECT * FROM main.labels" if stored == "4" else _OLDER_LABELS
    return {name: view.format(manufacturer=manufacturer, labels=labels) for name, view in _OLDER.items()}


def alone(path: Path) -> AbstractContextManager[None]:
    """Keep other writers out. Raises: StorageError."""
    return locked(path / "lock", busy=StorageError(f"{path}: another ingest is running", do="wait until it has ended"))
