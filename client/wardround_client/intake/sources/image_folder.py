"""A folder of files that are not DICOM (PNG, JPEG, TIFF ..., NIfTI), and a CSV that says whose each is.

The CSV has the columns `file` (relative to the folder), `PatientID`, and labels. A file that it does not name is not
read: nobody could say whose it is. Where the task wants masks, its label column names the mask's file; where it wants
places, it holds them (`wardround_client.intake.marks`). Where it wants several inputs of a patient, a line is a
patient's, with a column for each input's file, and a column for each feature of a table.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wardround.errors import ConfigError, DataError
from wardround.task import Task
from wardround.toml import Section
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.labels_csv import FILE, MISSING, is_nobody, label_columns, labels_of
from wardround_client.intake.marks import MARKED, joined
from wardround_client.intake.pictures import inputs_of, rows_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, InputsRecipe
from wardround_client.intake.source import Asked, Instance, Labels, Rejection, Source
from wardround_client.intake.sources.dicom_folder import fingerprint

PATIENT = "PatientID"


@dataclass(frozen=True)
class Picture:
    """One line of the CSV. file: as it stands there. patient: None where the line has too few or too many cells.

    mark: of a task about places, the mask's file or the places; inputs: of a task of several inputs, the cells of each.
    burned_in: what the hospital chose about text in pixels, to be read again when it changes.
    """

    path: Path
    file: str
    patient: str | None
    line: int
    labels: Labels
    mark: str | None = None
    inputs: tuple[tuple[str, ...], ...] = ()
    root: Path | None = None
    burned_in: str = ""

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Of the files, and whose they are."""
        if not self.patient:
            return ""
        files = [self.path] if not self.inputs else []
        if self.root is not None:
            files += [self.root / each[0] for each in self.inputs if len(each) == 1 and each[0]]
            files += [self.root / self.mark] if self.mark and (self.root / self.mark).is_file() else []
        known = [fingerprint(file) for file in files]
        return (
            "\0".join([*known, self.mark or "", str(self.inputs or ""), self.patient, self.burned_in])
            if all(known)
            else ""
        )

    def read(self, recipe: ImageRecipe | InputsRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Decode and render."""
        if self.patient is None:
            return Rejection("another number of cells than there are columns", f"line {self.line}")
        if is_nobody(self.patient) or not (self.file or self.inputs):
            return Rejection("the CSV names no file, or no PatientID", f"line {self.line}")
        if isinstance(recipe, ImageRecipe) and recipe.marks and self.mark in (None, *MISSING):
            return Rejection("no mask" if not recipe.places else "nothing is said of where findings are")
        try:
            rows: NDArray[Any] = (
                inputs_of(self.inputs, self.root or Path(), recipe)
                if isinstance(recipe, InputsRecipe)
                else rows_of(self.path, recipe, self.mark or "", self.root)
            )
        except UnusableError as error:
            return error.rejection
        return Instance(
            patient=pseudonyms.patient(self.patient),
            study=b"",
            instance=pseudonyms.exact("picture", self.file or f"line {self.inputs}"),
            rows=rows,
        )


class ImageFolder(Source):
    """Files below a folder, as a CSV lists them."""

    kind = "image"
    identity = "file name"

    def __init__(self, asked: Asked, settings: Section) -> None:
        """Check the folder and the CSV. Raises: ConfigError, DataError."""
        if asked.labels is None:
            raise ConfigError("a folder of pictures without --labels", do="add a CSV with file, PatientID and labels")
        self.name, self._root = asked.where, Path(asked.where).absolute()
        if not self._root.is_dir():
            raise DataError(f"{asked.where} is not a folder", do="name the folder that holds the pictures")
        self._file, self._task = CsvFile.open(asked.labels), asked.task
        self._burned_in = asked.rules.burned_in.model_dump_json()
        self._columns = _columns(asked.task)
        others = (PATIENT, *(column for each in self._columns for column in each))
        self._file.check(others, "column")
        self.label_columns = label_columns(self._file, others, asked.columns)
        self.notes = tuple(filter(None, [self._file.note]))

    def items(self) -> Iterator[Picture]:
        """The lines of the CSV, in its order."""
        none: Labels = (None,) * len(self.label_columns)
        dense = self._task is not None and self._task.dense
        told = self._told() if dense else {}
        for row in self._file.rows():
            if row.cells is None:
                yield Picture(self._root, "", None, row.line, none)
                continue
            labels, mark = labels_of(row.cells, self.label_columns), None
            if dense:
                if (said := told.pop((row.cells[PATIENT], row.cells[FILE]), None)) is None:
                    continue  # a line before it was of the same file
                mark, labels = self._marked(labels)
                mark = said or mark
            cells = tuple(tuple(row.cells[column] for column in each) for each in self._columns)
            if self._task is not None and self._task.inputs:
                cells = tuple(tuple("" if cell in MISSING else cell for cell in each) for each in cells)
                name = self._root / f"line {row.line}"
                yield Picture(name, "", row.cells[PATIENT], row.line, labels, None, cells, self._root, self._burned_in)
            else:
                file = posixpath.normpath(cells[0][0].replace("\\", "/")) if cells[0][0] else ""
                yield Picture(
                    self._root / file, file, row.cells[PATIENT], row.line, labels, mark, (), self._root, self._burned_in
                )

    def _told(self) -> dict[tuple[str, str], str]:
        """What all lines say of each patient's file; "" where none says anything."""
        told: dict[tuple[str, str], str] = {}
        for cells in (row.cells for row in self._file.rows() if row.cells is not None):
            said = self._marked(labels_of(cells, self.label_columns))[0] or ""
            before = told.get((cells[PATIENT], cells[FILE]), said)
            told[cells[PATIENT], cells[FILE]] = joined(before, said) if before and said else before or said
        return told

    def _marked(self, labels: Labels) -> tuple[str | None, Labels]:
        """The cell that says where findings are, and the labels without it: what it says stands in the plane."""
        column = self._task.label_column if self._task else ""
        if column not in self.label_columns:
            return None, labels
        place = self.label_columns.index(column)
        mark = labels[place]
        return mark, (*labels[:place], mark and MARKED, *labels[place + 1 :])


def _columns(task: Task | None) -> tuple[tuple[str, ...], ...]:
    """The columns of the CSV that hold what is read, input by input."""
    if task is None or not task.inputs:
        return ((FILE,),)
    return tuple(each.features if each.kind == "table" else (each.name,) for each in task.inputs)


source = ImageFolder
