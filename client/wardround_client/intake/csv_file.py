"""CSV files as hospitals have them: commas, semicolons or tabs; UTF-8, UTF-16 or Windows-1252; any line ends.

What a file is follows from its header and from which bytes occur at all, so no patient's line decides how another's is
read: where some lines are UTF-8 and others are not, the file is refused.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from wardround.errors import DataError
from wardround.files import open_regular
from wardround.given import TABLE_BYTES
from wardround.text import listed

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
UTF8, LEGACY = "utf-8-sig", "cp1252"
_NAMES = {LEGACY: "Windows-1252 (Latin-1)", "utf-16": "UTF-16"}
_WORKBOOK = b"PK\x03\x04"
_LONGEST_HEADER = 1 << 20  # characters


@dataclass(frozen=True)
class Row:
    """One line of a CSV. line: where it stands, for messages. cells: by column, stripped; None: too few or too many."""

    line: int
    cells: dict[str, str] | None


@dataclass(frozen=True)
class CsvFile:
    """A CSV that can be read as a whole. columns: names of all columns. headed: its first line holds them."""

    path: Path
    encoding: str
    separator: str
    columns: tuple[str, ...]
    headed: bool = True

    @classmethod
    def open(cls, path: Path, columns: Sequence[str] | None = None) -> CsvFile:
        """Read the whole file once: a quote that is left open swallows the lines of others.

        Args:
            path: the file.
            columns: names of the columns of a file without a header, separated by commas; None: the first line's.

        Raises:
            DataError: absent, empty, not text, not CSV, without rows; a column named twice or not at all.
        """
        with _in_words(path):
            encoding = _encoding(path)
            separator = "," if columns is not None else _separator(path, encoding)
        file = cls(path, encoding, separator, tuple(columns or ()), columns is None)
        if columns is None:
            _, header = next(file._lines(), (0, []))
            file = replace(file, columns=tuple(cell.strip() for cell in header))
        if not file.columns:
            raise DataError(f"{path}: is empty", do="write a header line and one row for each key")
        if "" in file.columns or len(set(file.columns)) != len(file.columns):
            raise DataError(f"{path}: a column has no name, or two have the same", do="give each column its own name")
        if not sum(1 for _ in file.rows()):
            raise DataError(f"{path}: holds no rows", do="write a header line and one row for each key or example")
        return file

    def rows(self) -> Iterator[Row]:
        """The rows, one at a time; empty lines are no rows. Raises: DataError."""
        lines = self._lines()
        if self.headed:
            next(lines, None)
        for number, cells in lines:
            if any(cell.strip() for cell in cells):
                fits = len(cells) == len(self.columns)
                named = zip(self.columns, map(str.strip, cells), strict=True) if fits else None
                yield Row(number, dict(named) if named else None)

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """(number, cells) of every line. Raises: DataError."""
        with _in_words(self.path), self._opened() as text:
            reader = csv.reader(text, delimiter=self.separator, skipinitialspace=True, strict=True)
            try:
                for cells in reader:
                    if reader.line_num == 1 and [cell.strip().casefold() for cell in cells] == ["sep=", ""]:
                        continue  # a word to Excel, of what cuts the lines
                    yield reader.line_num, cells
            except csv.Error as error:
                open_quote = "unexpected end" in str(error)
                raise DataError(
                    f"{self.path}: is not CSV, line {reader.line_num}: "
                    + ("a quotation mark is opened and never closed" if open_quote else str(error)),
                    do="correct that line" + (", or one before it" if open_quote else ""),
                ) from None

    @property
    def note(self) -> str:
        """How the file was read, where that is not the usual way; else ""."""
        how = [f"separated by {SEPARATORS[self.separator]}"] if self.separator != "," else []
        how += [f"in {_NAMES[self.encoding]}"] if self.encoding != UTF8 else []
        return f"{self.path.name} was read as a CSV {' and '.join(how)}" if how else ""

    def check(self, wanted: Sequence[str], what: str) -> None:
        """Raises: DataError, when a wanted column is absent. what: of what kind it is, for the message."""
        there = set(self.columns)
        absent = [column for column in wanted if column not in there]
        if absent:
            raise DataError(
                f"{self.path}: no {what} {listed([*map(repr, absent)])}",
                allowed=f"the columns of the file: {listed(self.columns)}",
                do="correct the name, or add the column",
            )

    def _opened(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(open_regular(self.path, TABLE_BYTES), self.encoding, newline="")


@contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})", do="name an existing CSV file") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text in a known encoding", do="save it as CSV UTF-8") from None


def _encoding(path: Path) -> str:
    """Raises: DataError, OSError, UnicodeDecodeError."""
    found: dict[str, int] = {}
    with open_regular(path, TABLE_BYTES) as file:
        head = file.read(4)
        if head == _WORKBOOK:
            raise DataError(f"{path}: is an Excel workbook, not a CSV", do="save it as CSV UTF-8")
        if head[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            return "utf-16"
        file.seek(0)
        for number, line in enumerate(file, start=1):
            if line.isascii():
                continue
            try:
                line.decode(UTF8)
                found.setdefault(UTF8, number)
            except UnicodeDecodeError:
                line.decode(LEGACY)
                found.setdefault(LEGACY, number)
    if len(found) > 1:
        raise DataError(
            f"{path}: line {found[UTF8]} is UTF-8, line {found[LEGACY]} is not",
            do="save the whole file as CSV UTF-8",
        )
    return next(iter(found), UTF8)


def _separator(path: Path, encoding: str) -> str:
    """The one that cuts the header into most columns; commas go before semicolons, and those before tabs."""
    with io.TextIOWrapper(open_regular(path, TABLE_BYTES), encoding, newline="") as text:
        header = text.readline(_LONGEST_HEADER)
    try:
        return max(
            SEPARATORS,
            key=lambda separator: len(next(csv.reader([header], delimiter=separator, skipinitialspace=True), [])),
        )
    except csv.Error:
        return ","
