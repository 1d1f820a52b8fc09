"""A patient opts out, as the hospital's privacy officer types it, while the hospital goes on answering rounds."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.rounds import read, request

from wardround.cli import run
from wardround.errors import DataError
from wardround.questions import Cohort
from wardround_client.cohort.examples import Examples
from wardround_client.cohort.optout import REGISTER
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import answer

FEDERATION = """
name = "hearts"
[task]
label_column = "y"
classes = ["no", "yes"]
kind = "table"
features = ["a"]
[model]
family = "logistic"
[privacy]
patients_per_step = 20
[rounds]
rounds = 3
evaluate_every = 1
"""


@dataclass
class Daemon:
    """A hospital that is open all the time, as its daemon is, and the rows that every round was given."""

    hospital: Hospital
    agreement: Agreement
    opened: list[set[int]] = field(default_factory=list)

    @property
    def seen(self) -> list[set[int]]:
        """Of each round, what came after the question about nobody."""
        assert not any(self.opened[::2])
        return self.opened[1::2]

    def round(self, number: int) -> bytes:
        return answer(self.hospital, request(self.agreement, number), self._open)

    def refusal(self, blob: bytes, number: int) -> str:
        refused = read(self.agreement, blob, number).header.refusal
        return refused.error if refused else ""

    def _open(self, examples: Examples, **more: Any) -> Cohort:
        self.opened.append({round(value) for value in examples.z[:, 0].tolist()})
        return PrivateCohort(examples, **more)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert run(["hospital", "init", str(tmp_path / "home"), "--name", "st-anna", "--patients", "40"]) == 0
    return tmp_path / "home"


@pytest.fixture
def daemon(home: Path, tmp_path: Path) -> Daemon:
    """40 patients MRN-100 .. MRN-139 with one row each, whose value is the number, all taken in and approved."""
    rows = [f"MRN-{number},{number},{'yes' if number % 2 else 'no'}" for number in range(100, 140)]
    (tmp_path / "table.csv").write_text("\n".join(["who,a,y", *rows]) + "\n")
    (tmp_path / "federation.toml").write_text(FEDERATION)
    assert ingest(home, tmp_path) == 0
    assert run(["hospital", "approve", str(home), str(tmp_path / "federation.toml"), "--yes"]) == 0
    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    return Daemon(hospital, hospital.approvals.agreement(digest))


def ingest(home: Path, folder: Path, *more: str) -> int:
    table = ["--table", str(folder / "table.csv"), "--federation", str(folder / "federation.toml")]
    return run(["hospital", "ingest", str(home), *table, "--patient-column", "who", *more])


def withdraw(capsys: pytest.CaptureFixture[str], home: Path, *arguments: str) -> list[dict[str, Any]]:
    """The JSON lines of `wardround hospital withdraw HOME ARGUMENTS --json`, which ends well."""
    capsys.readouterr()
    assert run(["hospital", "withdraw", str(home), *arguments, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_a_patient_opts_out_between_two_rounds(
    daemon: Daemon, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P57: "A withdrawn patient is in no answer from the next round on and is not taken in again." P58:
    "... and changes no price."
    """
    everybody = set(range(100, 140))
    first = daemon.round(0)
    daemon.round(1)
    spent = daemon.hospital.ledger.spent(daemon.hospital.config.delta)

    patient, total = withdraw(capsys, home, "MRN-107")
    assert (patient["new"], patient["in_cohort"], patient["rows"], patient["stored"]) == (True, True, 1, "kept")
    assert [(use["round"], use["certain"]) for use in patient["rounds"]] == [(0, True), (1, False)]
    assert patient["rounds"][1]["sampling_rate"] == 0.5
    assert total["epsilon_spent"] == spent > 0 and total["registered"] == 1

    for number in (2, 3, 4):  # the daemon was not restarted
        assert daemon.refusal(daemon.round(number), number) == ""
    assert daemon.seen == [everybody] * 2 + [everybody - {107}] * 3
    agreed = daemon.agreement
    examples = Hospital.open(home).examples(agreed)
    assert examples.patients == 39  # nor does a restart bring the patient back

    assert daemon.round(0) == first  # what left before is what a retry gets, byte for byte
    assert len(daemon.seen) == 5  # and nobody was asked for it
    assert daemon.hospital.ledger.spent(daemon.hospital.config.delta) > spent

    capsys.readouterr()
    assert ingest(home, tmp_path, "--json") == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["read"], summary["used"], summary["reasons"]) == (40, 39, {"patient withdrawn": 1})
    assert summary["patients"] == 39


def test_the_officer_reads_what_it_means(daemon: Daemon, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        daemon.round(number)
    capsys.readouterr()
    assert run(["hospital", "withdraw", str(home), "MRN-107", "MRN-999"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "run spring, round 1: may have used the data",
        "run spring, rounds 0, 2: used the data",
        "The budget that was spent stays spent",
        "left out of every round from the next one on",
        "stay on the disk and are never read again",
        "Not in the cohort: no. 2",
    ):
        assert part in said
    assert "MRN" not in said


def test_no_patient_id_is_written_anywhere(
    daemon: Daemon, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.round(0)
    withdraw(capsys, home, "MRN-107", "--erase")
    ingest(home, tmp_path)
    daemon.round(1)
    files = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.name == REGISTER for file in files)
    assert not [file for file in files if b"MRN" in file.read_bytes()]


def test_erase_says_so_and_the_rounds_are_still_known(
    daemon: Daemon, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon.round(0)
    assert withdraw(capsys, home, "MRN-107")[0]["stored"] == "kept"
    values = np.fromfile(home / "cohort" / "inputs.bin", "<f4")
    patient, _ = withdraw(capsys, home, "MRN-107", "--erase")
    assert (patient["new"], patient["stored"]) == (False, "erased") and patient["erased"]
    after = np.fromfile(home / "cohort" / "inputs.bin", "<f4")
    assert after[7] == 0 and np.array_equal(np.delete(after, 7), np.delete(values, 7))
    assert [use["round"] for use in withdraw(capsys, home, "MRN-107", "--rounds-only")[0]["rounds"]] == [0]
    assert daemon.refusal(daemon.round(1), 1) == ""
    capsys.readouterr()
    assert run(["hospital", "withdraw", str(home), "MRN-107", "--erase"]) == 0
    assert "overwritten with zeros" in capsys.readouterr().out


def test_looking_changes_nothing(daemon: Daemon, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    daemon.round(0)
    before = (home / REGISTER).read_bytes()
    patient, total = withdraw(capsys, home, "MRN-107", "--rounds-only")
    assert (patient["withdrawn"], patient["stored"], len(patient["rounds"])) == (None, "in use", 1)
    assert total["registered"] == 0
    assert withdraw(capsys, home, "--list") == [{"event": "register", "registered": 0}]
    assert (home / REGISTER).read_bytes() == before


def test_a_list_from_a_file_or_a_pipe(
    daemon: Daemon, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ids.txt").write_text("\ufeffMRN-101\n\n MRN-102 \nMRN-101\n", encoding="utf-8")
    found = withdraw(capsys, home, "--from", str(tmp_path / "ids.txt"))
    assert [(each["number"], each["in_cohort"]) for each in found[:-1]] == [(1, True), (2, True)]
    monkeypatch.setattr("sys.stdin", io.StringIO("MRN-103\n"))
    withdraw(capsys, home, "--from", "-")
    listed = withdraw(capsys, home, "--list")
    assert [each.get("stored") for each in listed] == ["kept"] * 3 + [None]
    daemon.round(0)
    assert daemon.seen == [set(range(100, 140)) - {101, 102, 103}]


def test_who_withdraws_before_coming_never_comes(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    patient, _ = withdraw(capsys, home, "MRN-1")
    assert (patient["in_cohort"], patient["stored"], patient["rounds"]) == (False, "none", [])
    (tmp_path / "table.csv").write_text("who,a,y\nMRN-1,1,no\nMRN-2,2,yes\nMRN-3,3,no\n")
    (tmp_path / "federation.toml").write_text(FEDERATION)
    capsys.readouterr()
    assert ingest(home, tmp_path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["reasons"] == {"patient withdrawn": 1}


def test_a_damaged_register_stops_rounds_and_intake_and_costs_nothing(
    daemon: Daemon, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    withdraw(capsys, home, "MRN-107")
    good = (home / REGISTER).read_bytes()
    for damaged in (good[:-9], b"", None):
        if damaged is None:
            (home / REGISTER).unlink()
        else:
            (home / REGISTER).write_bytes(damaged)
        blob = daemon.round(0)
        assert daemon.refusal(blob, 0) == "StorageError"
        assert b"register" not in blob and b"withdraw" not in blob
        assert ingest(home, tmp_path) == 7
        capsys.readouterr()
        assert run(["hospital", "withdraw", str(home), "MRN-108"]) == 7
        assert "no patient may be used" in " ".join(capsys.readouterr().err.split())
        assert run(["hospital", "status", str(home), "--json"]) == 6
        assert "no patient may be used" in json.loads(capsys.readouterr().out)["withdrawn_error"]
    assert not daemon.hospital.ledger.history() and not daemon.seen
    (home / REGISTER).write_bytes(good)
    assert daemon.refusal(daemon.round(0), 0) == ""
    assert daemon.seen == [set(range(100, 140)) - {107}]


def test_everybody_may_leave_and_the_rounds_go_on(
    daemon: Daemon, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """P56: "Whether a round is answered does not depend on any patient"."""
    daemon.round(0)
    withdraw(capsys, home, *(f"MRN-{number}" for number in range(100, 140)))
    assert [daemon.refusal(daemon.round(number), number) for number in (1, 2)] == ["", ""]
    assert daemon.seen[1:] == [set(), set()]
    capsys.readouterr()
    assert run(["hospital", "approve", str(home), str(tmp_path / "federation.toml"), "--yes", "--anyway"]) == 0
    assert "the cohort is empty" in " ".join(capsys.readouterr().out.split())  # a person at home is told
    (said,) = Hospital.open(home).warm_up()  # and a daemon that has answered before comes back all the same
    assert "the cohort is empty" in said
    fresh = tmp_path / "fresh"
    shutil.copytree(home, fresh)
    (fresh / "ledger.sqlite").unlink()
    Ledger(fresh / "ledger.sqlite").close()
    with pytest.raises(DataError, match="the cohort is empty"):  # at the first start it is a mistake of the set-up
        Hospital.open(fresh).warm_up()


def test_a_table_whose_rows_name_no_patient_cannot_lose_one(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table.csv").write_text("a,y\n1,no\n2,yes\n")
    (tmp_path / "federation.toml").write_text(FEDERATION)
    table = ["--table", str(tmp_path / "table.csv"), "--federation", str(tmp_path / "federation.toml")]
    assert run(["hospital", "ingest", str(home), *table]) == 0
    assert run(["hospital", "withdraw", str(home), "MRN-1"]) == 3
    assert "name no patient" in " ".join(capsys.readouterr().err.split())
    assert withdraw(capsys, home, "--list")[-1]["registered"] == 1


def test_status_counts_them_at_home_alone(daemon: Daemon, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from wardround_client.service._proto import hospital_pb2 as pb

    withdraw(capsys, home, "MRN-107", "MRN-108")
    assert run(["hospital", "status", str(home), "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["withdrawn"] == 2
    assert "withdrawn" not in pb.StatusReply.DESCRIPTOR.fields_by_name


def test_the_register_of_a_home_that_had_none_is_made_on_purpose(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["hospital", "withdraw", str(home), "--new-register"]) == 2
    (home / REGISTER).unlink()
    assert run(["hospital", "withdraw", str(home), "MRN-1"]) == 7
    assert run(["hospital", "withdraw", str(home), "--new-register"]) == 0
    assert withdraw(capsys, home, "MRN-1")[-1]["registered"] == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no PatientID was given"),
        ([" "], "an empty PatientID"),
        (["--from", "HOME/nowhere"], "cannot be read"),
        (["--from", "HOME/secret.key"], "not UTF-8"),
        (["--from", "HOME/empty"], "holds no PatientID"),
        (["1", "--list"], "take no other option"),
        (["1", "--new-register"], "take no other option"),
        (["1", "--erase", "--rounds-only"], "changes nothing"),
    ],
)
def test_what_cannot_be_meant_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    (home / "empty").write_text("\n\n")
    (home / "secret.key").write_bytes(b"\xff" * 32)
    before = (home / REGISTER).read_bytes()
    capsys.readouterr()
    assert run(["hospital", "withdraw", str(home), *(part.replace("HOME", str(home)) for part in arguments)]) == 2
    assert said in " ".join(capsys.readouterr().err.split())
    assert (home / REGISTER).read_bytes() == before
