"""CSV files as hospitals have them are read, and what cannot be read is refused for the right reason."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import DataError
from wardround_client.intake.csv_file import CsvFile

HEADER = ("PatientID", "finding", "remark")
CELLS = st.text(st.characters(codec="cp1252", exclude_categories=["Cc", "Cf"]), max_size=8).map(str.strip)


def written(path: Path, rows: list[tuple[str, ...]], separator: str, encoding: str, ends: str) -> CsvFile:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=ends).writerows([HEADER, *rows])
    path.write_bytes(text.getvalue().encode(encoding))
    return CsvFile.open(path)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS, CELLS), min_size=1, max_size=5),
    separator=st.sampled_from(",;\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"]),
    ends=st.sampled_from(["\n", "\r\n"]),
)
def test_every_usual_dialect_says_the_same(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[str, ...]],
    separator: str,
    encoding: str,
    ends: str,
) -> None:
    rows = [("id", *row[1:]) for row in rows]
    path = tmp_path_factory.getbasetemp() / "one.csv"
    if encoding == "cp1252":  # a word that is no UTF-8 by chance
        rows = [(key, f"Größe{finding}", remark) for key, finding, remark in rows]
    file = written(path, rows, separator, encoding, ends)
    assert [tuple(row.cells.values()) for row in file.rows() if row.cells] == rows
    assert ("semicolons" in file.note) == (separator == ";")
    assert ("Latin-1" in file.note) == (encoding == "cp1252")


def test_how_a_file_was_read_is_one_line(tmp_path: Path) -> None:
    usual = written(tmp_path / "a.csv", [("1", "é", "")], ",", "utf-8", "\n")
    odd = written(tmp_path / "b.csv", [("1", "é", "")], ";", "cp1252", "\r\n")
    assert usual.note == ""
    assert odd.note == "b.csv was read as a CSV separated by semicolons and in Windows-1252 (Latin-1)"


def test_a_line_in_another_encoding_changes_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("PatientID,finding\nA,é\n".encode() + "B,é\n".encode("cp1252"))
    with pytest.raises(DataError, match="line 2 is UTF-8, line 3 is not"):
        CsvFile.open(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 ...", "is an Excel workbook.*save it as CSV UTF-8"),
        (b"a,b\n1,\x81\n", "is not text in a known encoding"),
        (b'a,b\n1,"2\n3,4\n', "line 3: a quotation mark is opened and never closed.*or one before it"),
        (b'a,b\n1,"2"3\n', "is not CSV, line 2"),
        (b"a,,b\n1,2,3\n", "a column has no name"),
        (b"a;b\n", "holds no rows"),
        (b"", "is empty"),
    ],
)
def test_what_cannot_be_read_is_refused_for_the_right_reason(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message):
        CsvFile.open(path)


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_word_to_excel_is_no_header(separator: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(f"sep={separator}\nPatientID{separator}finding\n1{separator}x\n")
    file = CsvFile.open(tmp_path / "a.csv")
    assert [(row.line, row.cells) for row in file.rows()] == [(3, {"PatientID": "1", "finding": "x"})]


def test_a_blank_before_a_quotation_mark_does_not_make_it_a_letter(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('PatientID, "finding, first"\n "1", "x, y"\n')
    (row,) = CsvFile.open(tmp_path / "a.csv").rows()
    assert row.cells == {"PatientID": "1", "finding, first": "x, y"}


def test_an_absent_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    file = written(tmp_path / "a.csv", [("1", "x", "")], "\t", "utf-8", "\n")
    with pytest.raises(DataError, match=r"no label column 'findings'.*PatientID, finding, remark"):
        file.check(["findings"], "label column")
