"""A CSV of measurements: a row is an example, with its labels."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wardround.errors import ConfigError, DataError
from wardround.task import EVERY
from wardround.toml import Section
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.labels_csv import MISSING, is_nobody, label_columns, labels_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import TableRecipe
from wardround_client.intake.source import Asked, Instance, Labels, Rejection, Source

DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+([eE][+-]?\d+)?")
THOUSANDS = re.compile(r"[+-]?\d{1,3},\d{3}")

GREATEST = float(np.finfo(np.float32).max)


class TableSettings(Section):
    """patient_column: whose row it is; empty promises that each row is a patient of its own.

    columns: names of all columns of a file without a header, with commas between.
    """

    patient_column: str = ""
    columns: str = ""


@dataclass(frozen=True)
class Line:
    """One row. cells: of the features, in order; None: the row has too few cells or too many. patient: as it is named,
    None where a row is a patient. number: of the rows up to this one, those that say the same.
    """

    name: str
    line: int
    cells: tuple[str, ...] | None
    patient: str | None
    number: int
    labels: Labels
    commas: bool = False

    def fingerprint(self) -> str:
        """A row is read each time."""
        return ""

    def read(self, recipe: TableRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Check the cells."""
        if self.cells is None:
            return Rejection("another number of cells than there are columns")
        values = self._numbers(recipe)
        if isinstance(values, Rejection):
            return values
        if self.patient is not None and is_nobody(self.patient):
            return Rejection("no patient is named")
        content = pseudonyms.exact("row", _content(self.cells, self.patient))
        instance = pseudonyms.exact("row", f"{content.hex()} {self.number}")
        patient = instance if self.patient is None else pseudonyms.patient(self.patient)
        return Instance(patient, b"", instance, np.array([values], np.float32))

    def _numbers(self, recipe: TableRecipe) -> Sequence[float] | Rejection:
        assert self.cells is not None
        with suppress(ValueError):
            values = [*map(float, self.cells)]
            # Numbers all, as of most rows of twenty thousand: NaN fails the comparison too.
            if all(-GREATEST <= value <= GREATEST for value in values):
                return values
        values = []
        for feature, cell in zip(recipe.features, self.cells, strict=True):
            if cell in MISSING:
                known = feature if feature in recipe.constants else EVERY
                if known not in recipe.constants:
                    return Rejection(f"column {feature} is missing", "task.may_miss says which may be")
                constant = recipe.constants[known]
                values.append(math.nan if constant is None else constant)
                continue
            try:
                values.append(float(cell.replace(",", ".") if self.commas and DECIMAL_COMMA.fullmatch(cell) else cell))
            except ValueError:
                return Rejection(f"column {feature} is not a number", cell)
            if not math.isfinite(values[-1]) or abs(values[-1]) > GREATEST:
                return Rejection(f"column {feature} is not a finite number", cell)
        return values


class Table(Source):
    """A CSV whose features and labels are those of a task. Rows that say the same are told apart by their number."""

    Settings = TableSettings
    kind = "table"
    identity = "row"
    isolated = False

    def __init__(self, asked: Asked, settings: TableSettings) -> None:
        """Check the columns, and how numbers are written. Raises: ConfigError, DataError."""
        if asked.task is None or asked.task.kind != "table":
            raise ConfigError("a table without the agreement of a table", do="add --federation FEDERATION.toml")
        columns = [name.strip() for name in settings.columns.split(",")] if settings.columns else None
        self.name, self._features, self._patient = asked.where, asked.task.features, settings.patient_column
        self._file = CsvFile.open(Path(asked.where), columns)
        self._file.check(self._features, "feature column")
        self._file.check([self._patient] if self._patient else [], "patient column")
        self._commas = self._reads_commas()
        columns_kept = asked.task.label_columns if asked.columns is None else asked.columns
        self.label_columns = label_columns(self._file, (), columns_kept) if columns_kept else ()
        self.notes = tuple(filter(None, [self._file.note, "its numbers have decimal commas" if self._commas else ""]))

    def _reads_commas(self) -> bool:
        """Whether 1,5 is one and a half, in the whole file alike. Raises: DataError, where that cannot be told."""
        if self._file.separator == ",":
            return False
        commas = points = telling = 0  # lines
        for row in self._file.rows():
            for cell in (row.cells[feature] for feature in self._features) if row.cells else ():
                if DECIMAL_COMMA.fullmatch(cell):
                    commas = commas or row.line
                    telling = telling or row.line * (not THOUSANDS.fullmatch(cell))
                elif "." in cell and cell.replace(".", "", 1).strip("+-").isdecimal():
                    points = points or row.line
        if commas and (points or not telling):
            raise DataError(
                f"{self._file.path}: line {commas} writes a number with a comma"
                + (f", line {points} one with a point" if points else ", which may mean thousands"),
                allowed="decimal commas everywhere, or decimal points",
                do="export the table again with decimal points and without marks between thousands",
            )
        return bool(commas)

    def items(self) -> Iterator[Line]:
        """The rows, in the order of the file."""
        seen: Counter[bytes] = Counter()
        for row in self._file.rows():
            name = f"{self.name}, line {row.line}"
            if row.cells is None:
                yield Line(name, row.line, None, None, 0, (None,) * len(self.label_columns))
                continue
            cells = tuple(map(row.cells.__getitem__, self._features))
            patient = row.cells[self._patient] if self._patient else None
            content = hashlib.sha256(_content(cells, patient).encode()).digest()
            seen[content] += 1
            yield Line(
                name, row.line, cells, patient, seen[content], labels_of(row.cells, self.label_columns), self._commas
            )


def _content(cells: tuple[str, ...], patient: str | None) -> str:
    return "\0".join(cells if patient is None else (*cells, patient))


source = Table
