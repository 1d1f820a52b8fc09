"""Where a cohort comes from: a folder of DICOM files, a labels CSV, a CSV of a table. What enters is validated here."""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import tag_for_keyword

from wardround.errors import DataError
from wardround.given import open_table
from wardround_client.cohort.store import MANUFACTURER

KEY_COLUMNS = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")
"""A labels CSV is keyed by exactly one of these columns."""

MISSING = ("", "?")
"""How a CSV writes an unknown value; `?` is what the UCI data sets use."""


@dataclass(frozen=True)
class Listed:
    """One entry of a folder. path: absolute. unreadable: why it cannot even be opened, or ""."""

    path: Path
    unreadable: str = ""

    def fingerprint(self) -> str:
        """Changes whenever the file might have: path, size, times of change. "" when nobody can tell."""
        try:
            stat = self.path.stat()
        except OSError:
            return ""
        return f"{self.path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def dicom_folder(source_dir: Path, *, leave_out: Sequence[Path] = ()) -> Iterator[Listed]:
    """Every file below a folder, in an order that depends on the names only; nothing is left out silently.

    A sub-folder that cannot be opened is listed as one unreadable entry. Links to folders are not followed.

    Args:
        source_dir: the folder.
        leave_out: files and folders that are not data (the cohort itself, the labels CSV).

    Raises:
        DataError: the folder is absent or is not a folder.
    """
    root = source_dir.absolute()
    if not root.is_dir():
        raise DataError(f"{source_dir} is not a folder", do="name the folder that holds the DICOM files")
    skipped = {os.path.realpath(path) for path in leave_out}
    unreadable: list[Listed] = []

    def note(error: OSError) -> None:
        unreadable.append(Listed(Path(error.filename or root), f"folder cannot be read: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=note):
        here = Path(folder)
        yield from _drain(unreadable)
        links = [name for name in folders if (here / name).is_symlink()]
        folders[:] = sorted(n for n in folders if n not in links and os.path.realpath(here / n) not in skipped)
        for name in sorted(names):
            if os.path.realpath(here / name) not in skipped:  # Path.resolve fails at a link to itself
                yield Listed(here / name)
        for name in sorted(links):
            yield Listed(here / name, "link to a folder, not followed")
    yield from _drain(unreadable)


def _drain(entries: list[Listed]) -> Iterator[Listed]:
    while entries:
        yield entries.pop(0)


@dataclass(frozen=True)
class Row:
    """One line of a CSV. line: where it stands, for messages. cells: by column, stripped; None: too few or too many."""

    line: int
    cells: dict[str, str] | None


def rows(path: Path, *, columns: Sequence[str] | None = None) -> Iterator[Row]:
    """The rows of a CSV (RFC 4180, UTF-8), one at a time.

    Args:
        path: the file.
        columns: the names of the columns of a file without a header; None when its first line is the header.

    Raises:
        DataError: absent, empty, not UTF-8, not CSV, a column named twice or not at all.
    """
    try:
        with open_table(path) as file:
            reader = csv.reader(file, strict=True)
            header = [cell.strip() for cell in (columns if columns is not None else next(reader, []))]
            _check_header(path, header)
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                fits = len(cells) == len(header)
                told = dict(zip(header, (cell.strip() for cell in cells), strict=True)) if fits else None
                yield Row(reader.line_num, told)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", do="name an existing CSV file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text", do="save it as CSV UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}: is not CSV ({error})", do="save it as CSV UTF-8, comma-separated") from None


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: is empty", do="write a header line and one row for each key")
    if "" in header or len(set(header)) != len(header):
        raise DataError(f"{path}: a column has no name, or two have the same", do="give each column its own name")


@dataclass(frozen=True)
class LabelsCsv:
    """A labels CSV whose header was checked. key: one of KEY_COLUMNS. columns: the label columns, in order."""

    path: Path
    key: str
    columns: tuple[str, ...]

    @classmethod
    def open(cls, path: Path, columns: Sequence[str] | None = None) -> LabelsCsv:
        """Check the header.

        Args:
            path: the file.
            columns: the columns to keep; None keeps every column but the key. A column `manufacturer` is always kept.

        Raises:
            DataError: unreadable; no key column or several; no label column; a column that holds an attribute of
                the patient (PatientName, PatientBirthDate ...) and was not asked for by name.
        """
        header = checked_header(path)
        keys = [column for column in header if column in KEY_COLUMNS]
        if len(keys) != 1:
            found = " and ".join(keys) or "none of them"
            hint = "; columns are separated by commas" if len(header) == 1 else ""
            raise DataError(
                f"{path}: the header holds {found}",
                allowed=f"exactly one key column of {', '.join(KEY_COLUMNS)}{hint}",
                do="keep one key column" if keys else "name the key column in the first line",
            )
        if columns is None:
            columns = [column for column in header if column != keys[0]]
            for column in columns:
                # Group 0010 is the patient: a name or a birth date has no business in a cohort.
                if (tag_for_keyword(column) or 0) >> 16 == 0x0010:
                    raise DataError(
                        f"{path}: column {column} describes the patient",
                        do="remove it, or name the label columns to keep",
                    )
        absent = [column for column in columns if column not in header]
        if absent or not columns:
            raise DataError(
                f"{path}: no label column {', '.join(absent)}".rstrip(),
                allowed=", ".join(c for c in header if c not in KEY_COLUMNS) or "at least one column besides the key",
                do="add the column, or name another",
            )
        return cls(path, keys[0], with_manufacturer(columns, header))

    def rows(self) -> Iterator[tuple[int, str, tuple[str | None, ...]]]:
        """(line, key, labels); a missing label is None; a line without a key, or with too few cells, has the key ""."""
        for row in rows(self.path):
            if row.cells is None or not row.cells[self.key]:
                yield row.line, "", ()
            else:
                yield row.line, row.cells[self.key], tuple(label(row.cells[column]) for column in self.columns)


def with_manufacturer(columns: Sequence[str], header: Collection[str]) -> tuple[str, ...]:
    """The columns of labels, and the one that says who made the scanner where the CSV has it."""
    return (*columns, MANUFACTURER) if MANUFACTURER in header and MANUFACTURER not in columns else tuple(columns)


def label(cell: str) -> str | None:
    """A cell as a label; None when it is missing."""
    return None if cell in MISSING else cell


def checked_header(path: Path, columns: Sequence[str] | None = None) -> list[str]:
    """The names of all columns. It reads the whole file: a quote left open swallows the lines of others.

    Raises: DataError, for what `rows` does not read, and for a file without rows.
    """
    if not sum(1 for _ in rows(path, columns=columns)):
        raise DataError(f"{path}: holds no rows", do="write a header line and one row for each key or example")
    if columns is not None:
        return list(columns)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [cell.strip() for cell in next(csv.reader(file, strict=True))]
