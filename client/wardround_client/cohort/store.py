"""A hospital's cohort on disk: small images or table rows, pseudonymous patients, labels, scanners' makers. No more.

    inputs.bin      the rows, uint16 [n, channels, S, S] or float32 [n, F], little-endian, append only; memory-mapped
    index.sqlite    which rows belong to which pseudonymous patient, the labels, and who made the scanner
    quarantine.csv  the files that could not be used and why (their paths: this file stays at home)

Rows are appended and synced first, then the index commits. So after a crash the index never points at a row that is
not there; rows that no index knows are cut off when the next ingest opens the cohort.

A cohort is opened with the pseudonyms of those who have withdrawn (optout.py). No reader sees their rows.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError
from wardround_client.cohort.index import INDEX, LABEL, LABELLED, CohortLayout, connect, mapped, read_meta, storage

MANUFACTURER = "manufacturer"
"""The column of a CSV that says who made the scanner, for rows whose file does not."""

UNKNOWN = "unknown"
"""The manufacturer of a row about which neither its file nor the CSV says anything."""


class Subjects(NamedTuple):
    """Keyed hashes of what a label may be of, the most particular first; b"" where an image names none."""

    instance: bytes
    series: bytes
    study: bytes
    accession: bytes
    patient: bytes
    bare: bytes


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
    layout: CohortLayout
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
            known = index.execute("SELECT id, pseudonym, bare FROM patients WHERE erased IS NULL")
            left = {
                patient: pseudonym
                for patient, pseudonym, bare in known
                if pseudonym not in withdrawn and bare not in withdrawn
            }
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
    def kind(self) -> Literal["image", "volume", "table", "inputs"]:
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
    def measured(self) -> str:
        """What grey values are, in words; "" for a table, and where they are as a viewer shows them."""
        return self.layout.measured

    @property
    def marks(self) -> tuple[str, ...]:
        """Classes of the plane behind an image's channels; () where there is none."""
        return self.layout.marks

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
            asked = f"SELECT i.rows, {LABEL} {LABELLED} WHERE c.name = ? ORDER BY i.first_row"
            result: list[str | None] = []
            for rows, value in index.execute(asked, (column,)):
                result.extend([value] * rows)
        return [result[row] for row in self.inputs.kept.tolist()]

    @cached_property
    def subjects(self) -> tuple[Subjects, ...]:
        """What a label of each row may be of, [n]. Raises: DataError, StorageError: as of `manufacturers`."""
        with storage(self.path), closing(connect(self.path, must_exist=True)) as index:
            read_meta(self.path, index)
            asked = """SELECT rows, instance, series, study, accession, pseudonym, bare
            FROM instances JOIN patients ON id = patient ORDER BY first_row"""
            found = [named for rows, *of in index.execute(asked) for named in [Subjects(*of)] * rows]
        return tuple(found[row] for row in self.inputs.kept.tolist())

    def files(self) -> dict[bytes, tuple[bytes, bytes]]:
        """Of each file that was taken in, by the keyed hash of its fingerprint: patient and instance.

        Raises: DataError, StorageError: as of `manufacturers`.
        """
        with storage(self.path), closing(connect(self.path, must_exist=True)) as index:
            read_meta(self.path, index)
            found = index.execute("SELECT file, pseudonym, instance FROM files JOIN patients ON id = patient")
            return {file: (patient, instance) for file, patient, instance in found}

    @cached_property
    def manufacturers(self) -> tuple[str, ...]:
        """Who made the scanner of each row, [n], as `normalised`: the file's word, else the CSV's, else UNKNOWN.

        For a look at one's own data: it never leaves the hospital.

        Raises: DataError, StorageError: the index is damaged or cannot be read.
        """
        of_file = self._said("manufacturer")
        of_csv = self.labels(MANUFACTURER) if MANUFACTURER in self.label_columns else [None] * len(self)
        return tuple(own or normalised(told or "") or UNKNOWN for own, told in zip(of_file, of_csv, strict=True))

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """The modality of each row, [n], as its file says it (0008,0060); "" where it says none.

        Raises: DataError, StorageError: the index is damaged or cannot be read.
        """
        return tuple(self._said("modality"))

    def _said(self, column: Literal["manufacturer", "modality"]) -> list[str]:
        """What the file of each row said of itself."""
        with storage(self.path), closing(connect(self.path, must_exist=True)) as index:
            read_meta(self.path, index)
            said: list[str] = []
            for rows, name in index.execute(f"SELECT rows, {column} FROM instances ORDER BY first_row"):
                said.extend([name] * rows)
        return [said[row] for row in self.inputs.kept.tolist()]


def normalised(manufacturer: str) -> str:
    """A manufacturer as it is grouped: printable, single spaces, case-folded, at most 64 characters; "" for nothing.

    64 is what Manufacturer (0008,0070) may hold (PS3.5 6.2, LO): whatever a damaged file says, no more is kept.
    """
    printable = "".join(c if c.isprintable() else " " for c in manufacturer)
    return " ".join(printable.casefold().split())[:64].rstrip()
