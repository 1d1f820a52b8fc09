"""Names of files, columns and labels that repaint a screen, forge a line or compute in a spreadsheet: all are text.

`said` asserts of every command that nothing it writes is a control character or turns the reading direction.
"""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import pytest
from tests.hostile.agreements import BASE, said, toml

ODD = [
    "\x1b[2J\x1b]0;owned\x07.dcm",
    "=cmd|' C calc'!A0.dcm",
    "line\n2026-01-01 INFO forged.dcm",
    "[red]markup[b].dcm",
    "gpj.\u202excod.dcm",
    "-\x9b2J.dcm",
    "\u2028.dcm",
    "@x;=1+1.dcm",
]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ODD:
        (folder / name).write_bytes(b"no image")
    return folder


def test_file_names_in_quarantine_are_text(home: Path, images: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.csv"
    labels.write_text("PatientID,finding\np,\x1b[2J\n")
    said("hospital", "ingest", home, images, "--labels", labels, "--workers", "1")
    raw = (home / "cohort" / "quarantine.csv").read_text()
    assert not {letter for letter in raw if ord(letter) < 32} - {"\n", "\r"}
    rows = list(csv.reader(raw.splitlines()))
    assert len(rows) == len(ODD) + 1
    for cells in rows:
        assert not any(cell.startswith(("=", "+", "-", "@")) or ";=" in cell for cell in cells)


@pytest.mark.parametrize("name", ODD)
def test_a_path_that_somebody_else_named_is_text_in_every_error(home: Path, images: Path, name: str) -> None:
    file, sheet = images / name, "--table"
    for command in (
        ("approve", home, file, "--yes"),
        ("join", home, file),
        ("ingest", home, file, "--labels", file),
        ("ingest", home, sheet, file, "--federation", file),
        ("adapt", home, "--task", file, "--model", file),
        ("withdraw", home, "--from", images / f"{name}.gone"),
        ("revoke", home, name),
        ("evaluate", home, "--adapted", name),
        ("predict", home, file, "--adapted", name),
        ("status", images / name),
        ("approve", home, name, name, name),
        (name,),
    ):
        assert said("hospital", *command).code != 0, command


@pytest.mark.parametrize("name", ODD)
def test_columns_and_cells_of_a_table_are_text(home: Path, tmp_path: Path, name: str) -> None:
    table, file = tmp_path / "table.csv", tmp_path / "federation.toml"
    file.write_text(toml(BASE))
    for header, cells in (([name, "y"], ["1", "no"]), (["a", "b", "y", name], ["1", "2", name, "3"])):
        with table.open("w", newline="") as out:
            csv.writer(out).writerows([header, cells])
        said("hospital", "ingest", home, "--table", table, "--federation", file)
        said("hospital", "approve", home, file, "--yes")


def test_the_status_of_a_hospital_whose_refusals_are_odd_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    from wardround_client.commands._status import print_status

    told = dict.fromkeys(("name", "coordinator", "link", "link_detail", "run", "last_error"), "".join(ODD))
    numbers = {"paused": False, "round": 1, "answered": 1, "epsilon_spent": 1.0, "epsilon_budget": 1.0, "delta": 0.1}
    print_status(told | numbers | {"approved": ODD}, as_json=False)
    print_status(told | numbers | {"approved": ODD}, as_json=True)
    out = capsys.readouterr().out
    assert not {letter for letter in out if ord(letter) < 32 or 127 <= ord(letter) < 160 or letter == "\u202e"} - {"\n"}
    assert json.loads(out.splitlines()[-1])["run"] == told["run"]  # a program gets it whole
    assert sys.stdout.isatty() is False
