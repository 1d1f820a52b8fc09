"""`wardround hospital ledger` as a privacy officer uses it: verify, write the head down, open it in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.client.privacy.ledgers import reserve

from wardround.accountant import Answers
from wardround_client.office.receipts import CSV_COLUMNS
from wardround_client.privacy.ledger import Budget, Ledger

LAYOUT = "head.weight 4x32, head.bias 4"


def answer(home: Path, round: int, *, run: str = "spring", coordinator: str = "coordinator:9092") -> None:
    """One whole round in the home's ledger."""
    rows, budget = (Answers(20.0, 1.0, 10), Answers(50.0, 1.0, 1)), Budget(epsilon=10.0, delta=1e-3)
    with closing(Ledger(home / "ledger.sqlite")) as ledger:
        reserved = reserve(ledger, round, run=run, coordinator=coordinator, rows=rows, budget=budget)
        ledger.release(reserved, b"noise", norm=1.5, layout=LAYOUT)


def head(capsys: pytest.CaptureFixture[str], home: Path) -> str:
    """The digest that --verify prints for a person."""
    code, out, _ = wardround(capsys, "ledger", home, "--verify")
    assert code == 0
    assert "as it was written" in out
    return out.rstrip().rsplit(" ", 1)[1]


def test_a_csv_has_one_line_an_entry_and_every_field_of_the_receipt(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P35: "each delta that leaves has a receipt: time, run, round, coordinator, bundle hash, ..."."""
    answer(home, 3)
    code, out, err = wardround(capsys, "ledger", home, "--csv")
    assert (code, err) == (0, "")
    reserved, released = csv.DictReader(io.StringIO(out))
    assert list(reserved) == list(CSV_COLUMNS)
    assert (reserved["kind"], reserved["question"], reserved["request_sha256"]) == ("reserved", "gradient", "a" * 64)
    assert (released["run"], released["round"], released["coordinator"]) == ("spring", "3", "coordinator:9092")
    assert (released["bundle_sha256"], released["layout"]) == ("b" * 64, LAYOUT)
    assert (released["norm"], released["bytes"], len(released["reply_sha256"])) == ("1.5", "5", 64)
    assert released["price"] == "10 answers, noise 20.0, sampling rate 1.0; 1 answer, noise 50.0, sampling rate 1.0"
    assert released["time_utc"].endswith("+00:00")
    assert float(released["epsilon_after"]) > 0
    assert released["entry_sha256"] == head(capsys, home)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", " =1", '=HYPERLINK("http://x","y")'])
def test_a_name_that_is_a_formula_stays_a_name_in_the_csv(
    home: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    answer(home, 0, run=name, coordinator=name)
    _, out, _ = wardround(capsys, "ledger", home, "--csv")
    for row in csv.DictReader(io.StringIO(out)):
        assert row["run"] == row["coordinator"] == "'" + name
        assert not any(cell.lstrip().startswith(("=", "+", "-", "@")) for cell in row.values())


def test_what_is_said_beside_a_csv_goes_to_stderr(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(home, 0)
    code, out, err = wardround(capsys, "ledger", home, "--csv", "--verify")
    assert code == 0
    assert len(list(csv.reader(io.StringIO(out)))) == 3
    assert head(capsys, home) in err


def test_an_older_copy_of_the_file_does_not_hold_the_head_that_was_written_down(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer(home, 0)
    early = head(capsys, home)
    shutil.copy(home / "ledger.sqlite", tmp_path / "backup")
    answer(home, 1)
    late = head(capsys, home)
    for digest in (early, late, late.upper()):
        code, out, _ = wardround(capsys, "ledger", home, "--contains", digest)
        assert code == 0
        assert "nothing before it was lost" in out
    shutil.copy(tmp_path / "backup", home / "ledger.sqlite")
    answer(home, 1, run="autumn")  # the forger goes on, so that the lengths are equal
    assert wardround(capsys, "ledger", home, "--verify")[0] == 0, (
        "an older copy is a valid ledger: that is why heads are written down"
    )
    assert wardround(capsys, "ledger", home, "--contains", early)[0] == 0
    code, _, err = wardround(capsys, "ledger", home, "--contains", late)
    assert code == 7
    assert "older copy" in err and "privacy officer" in err
    (home / "ledger.sqlite").unlink()
    assert wardround(capsys, "ledger", home, "--contains", early)[0] == 7


@pytest.mark.parametrize("digest", ["5e41", "z" * 64, "-", "a" * 65])
def test_what_is_no_digest_is_said(home: Path, capsys: pytest.CaptureFixture[str], digest: str) -> None:
    code, _, err = wardround(capsys, "ledger", home, "--contains", digest)
    assert code == 2
    assert "64 hex digits" in err


def test_csv_and_json_exclude_each_other(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(capsys, "ledger", home, "--csv", "--json")[0] == 2


def test_json_holds_every_entry_the_head_and_the_verdicts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(home, 0)
    digest = head(capsys, home)
    _, out, _ = wardround(capsys, "ledger", home, "--json", "--verify", "--contains", digest)
    *entries, summary = map(json.loads, out.splitlines())
    assert [entry["kind"] for entry in entries] == ["reserved", "released"]
    assert entries[1]["rows"] == [[20.0, 1.0, 10], [50.0, 1.0, 1]]
    assert (summary["head"], summary["verified"], summary["found_at"]) == (digest, True, 2)
    assert entries[1]["digest"] == digest


def test_an_exchanged_reply_is_exit_code_7_with_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answer(home, 0)
    with sqlite3.connect(home / "ledger.sqlite") as db:
        db.execute("DROP TRIGGER replies_stay")
        db.execute("UPDATE replies SET reply = x'00'")
    db.close()
    code, out, err = wardround(capsys, "ledger", home, "--verify")
    assert code == 7
    assert "broken at entry 2" in err and "privacy officer" in err
    assert "as it was written" not in out
