"""The labels CSV: which label an image, a series, a study, an order or a patient has. What enters is checked here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydicom.datadict import tag_for_keyword

from wardround.errors import DataError
from wardround.text import shown
from wardround_client.cohort.store import MANUFACTURER
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.pseudonyms import LOST
from wardround_client.intake.source import LabelLine

KEY_COLUMNS = ("PatientID", "AccessionNumber", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
"""A labels CSV is keyed by exactly one of these columns. Where several CSVs speak of an image, the most particular one
is believed: its own, of its series, of its study, of its order (accession number), of its patient."""

FILE = "file"
"""The key of a CSV whose lines name files of a folder."""

ISSUER = "IssuerOfPatientID"
"""Beside PatientID: whose number it is, where an archive holds patients of several issuers."""

NOTE = "#"
"""A column whose name begins so is for people: it is no label, whatever stands in it."""

MISSING = ("", "?")
"""How a CSV writes an unknown value; `?` is what the UCI data sets use."""


@dataclass(frozen=True)
class LabelsCsv:
    """A labels CSV whose header was checked. key: one of KEY_COLUMNS, or FILE. columns: the label columns, in order.
    own_issuer: who issues the PatientIDs of the hospital's own patients.
    """

    file: CsvFile
    key: str
    columns: tuple[str, ...]
    own_issuer: str = ""

    @classmethod
    def open(
        cls,
        path: Path,
        columns: Sequence[str] | None = None,
        *,
        keys: Sequence[str] = KEY_COLUMNS,
        own_issuer: str = "",
    ) -> LabelsCsv:
        """Check the file.

        Args:
            path: the file.
            columns: the columns to keep; None keeps every column but the key and notes. A column `manufacturer` is
                always kept.
            keys: what it may be keyed by.
            own_issuer: as the attribute.

        Raises:
            DataError: unreadable; no key column or several; no label column; a column that holds an attribute of
                the patient (PatientName, PatientBirthDate ...) and was not asked for by name.
        """
        file = CsvFile.open(path)
        found = [column for column in file.columns if column in keys]
        if len(found) != 1:
            meant = [f"write {key} instead of {shown(c)!r}" for c in file.columns if (key := _meant(c, keys))]
            raise DataError(
                f"{path}: the header holds {' and '.join(found) or ', '.join(map(shown, file.columns))}",
                allowed=f"exactly one key column of {', '.join(keys)}",
                do="keep one key column" if found else ", ".join(meant) or "name the key column in the first line",
            )
        issuer = [ISSUER] if ISSUER in file.columns and found == ["PatientID"] else []
        return cls(file, found[0], label_columns(file, found + issuer, columns), own_issuer.strip())

    def lines(self) -> Iterator[LabelLine]:
        """The lines, one at a time."""
        for row in self.file.rows():
            if row.cells is None or not row.cells[self.key]:
                yield LabelLine(row.line, "", ())
            else:
                issuer = row.cells.get(ISSUER, "") if self.key == "PatientID" else ""
                labels = labels_of(row.cells, self.columns)
                yield LabelLine(row.line, row.cells[self.key], labels, "" if issuer == self.own_issuer else issuer)


def _meant(column: str, keys: Sequence[str]) -> str:
    """The key that a column's name is but for case, blanks and marks: "Accession Number", "PATIENT_ID"; or ""."""
    plain = {"".join(filter(str.isalnum, key)).casefold(): key for key in keys}
    return plain.get("".join(filter(str.isalnum, column)).casefold(), "")


def label_columns(file: CsvFile, others: Collection[str], columns: Sequence[str] | None) -> tuple[str, ...]:
    """The label columns of a CSV.

    Args:
        file: the CSV.
        others: its columns that are no labels.
        columns: those that were asked for; None: all but `others` and notes. A column `manufacturer` is always kept.

    Raises:
        DataError: none; one that is not there; one that describes the patient and was not asked for by name.
    """
    if columns is None:
        columns = [column for column in file.columns if column not in others and not column.startswith(NOTE)]
        for column in columns:
            # Group 0010 is the patient: a name or a birth date has no business in a cohort.
            if (tag_for_keyword(column) or 0) >> 16 == 0x0010:
                raise DataError(
                    f"{file.path}: column {column} describes the patient",
                    do="remove it, or name the label columns to keep",
                )
        if not columns:
            raise DataError(
                f"{file.path}: no label column",
                allowed=f"at least one column besides {', '.join(others)}",
                do="add one",
            )
    file.check(columns, "label column")
    more = (MANUFACTURER,) if MANUFACTURER in file.columns and MANUFACTURER not in columns else ()
    return (*columns, *more)


def is_nobody(patient: str) -> bool:
    """Whether a cell that should name a patient names none, or one of whom a letter was lost: another's may be too."""
    return patient in MISSING or LOST in patient


def labels_of(cells: dict[str, str], columns: Sequence[str]) -> tuple[str | None, ...]:
    """The labels of a row; None for one that is missing."""
    return tuple(None if cells[column] in MISSING else cells[column] for column in columns)
