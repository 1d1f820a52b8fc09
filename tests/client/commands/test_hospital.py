"""`wardround hospital ...` as its user types it, without a coordinator."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.rounds import TWO_COLUMNS

from wardround_client.config import load_hospital_config
from wardround_client.hospital import Hospital
from wardround_client.keys import load_node_key
from wardround_server.hospitals import load_card

FEDERATION = f'name = "hearts"{TWO_COLUMNS}[rounds]\nrounds = 3\n'


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    return tmp_path / "federation.toml"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"{random.random():.4f},{random.random():.4f},{random.choice(['no', 'yes'])}" for _ in range(60)]
    (tmp_path / "table.csv").write_text("\n".join(["a,b,y", *rows, ",,no"]) + "\n")
    return tmp_path / "table.csv"


@pytest.fixture(scope="module")
def ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from wardround_server.network import tls

    return tls.create(tmp_path_factory.mktemp("tls"), ["127.0.0.1"]).ca


def test_init_makes_a_private_home_and_a_card_that_the_coordinator_takes(home: Path) -> None:
    assert home.stat().st_mode & 0o777 == 0o700
    for name in ("secret.key", "node.key", "ledger.sqlite"):
        assert (home / name).stat().st_mode & 0o777 == 0o600, name
    config = load_hospital_config(home / "hospital.toml")
    assert (config.hospital.name, config.hospital.declared_patients) == ("st-anna", 60)
    card = load_card(home / "join.json")
    assert (card.name, card.declared_patients) == ("st-anna", 60)
    assert load_node_key(home).curve.name == "secp384r1"
    secrets = (home / "secret.key").read_bytes(), (home / "node.key").read_bytes()
    assert not any(secret in (home / "join.json").read_bytes() for secret in secrets)


def test_the_template_says_something_about_every_key(home: Path) -> None:
    text = (home / "hospital.toml").read_text()
    config = load_hospital_config(home / "hospital.toml")
    for section, values in config.model_dump().items():
        for key in values:
            assert re.search(rf"^(# )?{key} = ", text, re.MULTILINE), f"{section}.{key} is missing"


def test_the_template_states_the_defaults(home: Path) -> None:
    from wardround_client.config import HospitalConfig, Identity

    config = load_hospital_config(home / "hospital.toml")
    assert config == HospitalConfig(hospital=Identity(name="st-anna", declared_patients=60))


def test_init_twice_changes_nothing(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (home / "secret.key").read_bytes()
    code, _, err = wardround(capsys, "init", home, "--name", "other", "--patients", 60)
    assert code == 2
    assert "already" in err
    assert (home / "secret.key").read_bytes() == before


def test_init_names_next_steps_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = wardround(capsys, "init", tmp_path / "home", "--name", "x", "--patients", 60)
    named = re.findall(r"wardround hospital (\S+)", out)
    assert code == 0 and named == ["ingest", "pull", "join", "approve", "up"]
    assert all(wardround(capsys, name, "--help")[0] == 0 for name in named)


def test_a_name_that_the_federation_could_not_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert wardround(capsys, "init", tmp_path / "x", "--name", "St. Anna / Ward", "--patients", 60)[0] == 2
    assert not (tmp_path / "x").exists()


def test_join_keeps_every_other_line(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    invitation = home.parent / "invitation.toml"
    invitation.write_text(f'address = "fl.example.org:9092"\nca_pem = """\n{ca.read_text()}"""\n')
    before = (home / "hospital.toml").read_text().splitlines()
    assert wardround(capsys, "join", home, invitation)[0] == 0
    after = (home / "hospital.toml").read_text().splitlines()
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) == 2
    assert changed[0].startswith('address = "fl.example.org:9092"')
    assert "# host:port" in changed[0]
    assert (home / "coordinator-ca.pem").read_text().strip() == ca.read_text().strip()


def test_join_tells_the_coordinator_of_a_delta_of_the_hospitals_own(
    home: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = load_card(home / "join.json")
    text = (home / "hospital.toml").read_text()
    (home / "hospital.toml").write_text(re.sub(r"(?m)^delta = \S+", "delta = 1e-6", text))
    code, out, _ = wardround(capsys, "join", home, "--address", "fl.example.org:9092", "--ca", ca)
    assert (code, "1e-06" in out) == (0, True)
    assert load_card(home / "join.json") == before.model_copy(update={"delta": 1e-6})


def test_join_by_address_and_again_elsewhere(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for address in ("a.example.org:1", "127.0.0.1:2"):
        assert wardround(capsys, "join", home, "--address", address, "--ca", ca, "--json")[0] == 0
        assert load_hospital_config(home / "hospital.toml").coordinator.address == address


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "neither an invitation"),
        (["missing.toml"], "cannot be read"),
        (["--address", "host:1", "--ca", "hospital.toml"], "not a PEM certificate"),
        (["hospital.toml"], "not an invitation"),
    ],
)
def test_an_invitation_that_is_none(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(home)
    before = (home / "hospital.toml").read_text()
    code, _, err = wardround(capsys, "join", home, *arguments)
    assert code == 2
    assert said in err
    assert (home / "hospital.toml").read_text() == before


def test_an_address_without_a_port(home: Path, ca: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = wardround(capsys, "join", home, "--address", "example.org", "--ca", ca)
    assert code == 2
    assert "coordinator.address" in err


def test_ingest_approve_and_look(home: Path, federation: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = wardround(capsys, "ingest", home, "--table", table, "--federation", federation, "--json")
    assert code == 0
    summary = json.loads(out)
    assert (summary["read"], summary["used"], summary["quarantined"]) == (61, 60, 1)

    code, out, _ = wardround(capsys, "approve", home, federation, "--yes", "--json")
    assert code == 0
    terms = json.loads(out)
    assert terms["epsilon_of_this_run"] == pytest.approx(8.0, abs=0.01)
    assert terms["questions"] == {"statistics": 1, "gradient": 3}
    assert len(terms["bundle_sha256"]) == 64
    assert terms["forecast"] == "this run will cost this hospital epsilon 8.00 of the 10.00 left"
    record = json.loads((home / "approved" / terms["digest"] / "approval.json").read_text())
    assert record["forecast"] == terms["forecast"]
    assert record["time"]

    code, out, _ = wardround(capsys, "status", home, "--json")
    assert code == 6  # no daemon, and yet the numbers
    status = json.loads(out)
    assert not status["running"]
    assert (status["epsilon_spent"], status["epsilon_budget"]) == (0.0, 10.0)
    assert status["approved"] == [terms["digest"]]

    code, out, _ = wardround(capsys, "ledger", home, "--verify", "--json")
    assert code == 0
    assert json.loads(out)["verified"] is True


def test_approve_asks_and_no_changes_nothing(
    home: Path, federation: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("typer.confirm", lambda text: False)
    code, out, _ = wardround(capsys, "approve", home, federation)
    assert code == 1
    assert "epsilon of this run" in out
    assert list((home / "approved").iterdir()) == []
    monkeypatch.setattr("typer.confirm", lambda text: True)
    assert wardround(capsys, "approve", home, federation)[0] == 0
    assert len(list((home / "approved").iterdir())) == 1


def test_a_run_that_the_budget_does_not_carry_is_refused_unless_asked_for(
    home: Path, federation: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wardround(capsys, "ingest", home, "--table", table, "--federation", federation)
    code, out, err = wardround(capsys, "approve", home, federation, "--yes", "--runs", 2)
    assert code == 4
    assert "enough for" in err and "--anyway" in err and "Approved" not in out
    assert list((home / "approved").iterdir()) == []
    code, out, _ = wardround(capsys, "approve", home, federation, "--yes", "--runs", 2, "--anyway")
    assert code == 0
    assert "Warning: the budget does NOT fit" in out and "Approved for 2 runs" in out


def test_the_patients_there_are_count_and_not_the_declared_ones(
    home: Path, federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{n}.5,1.5,{label}" for n, label in enumerate(["no", "no", "no", "yes", "Yes", "YES"])]
    (tmp_path / "few.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    few = ("--table", tmp_path / "few.csv", "--federation", federation, "--allow-unknown-labels")
    assert wardround(capsys, "ingest", home, *few)[0] == 0
    code, out, err = wardround(capsys, "approve", home, federation, "--yes")
    assert code == 3
    assert "4 patients for this task" in err and "at least 20 (policy.least_patients)" in err
    assert re.search(r"usable +4 of 6, 60 declared", out)
    assert re.search(r"'no' +3\n +'yes' +1", out)
    assert "Warning: y has labels that the task does not know: 'YES' (1 patient, did you mean 'yes'?)" in out
    code, out, _ = wardround(capsys, "approve", home, federation, "--yes", "--anyway", "--json")
    assert code == 0
    assert json.loads(out)["cohort"]["patients"]["usable"] == "4 of 6, 60 declared"
    (record,) = (home / "approved").glob("*/approval.json")
    assert "usable" not in record.read_text(), "counts are stored nowhere"


def test_an_approval_can_end(
    home: Path, federation: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from datetime import UTC, datetime, timedelta

    from wardround.errors import PolicyRefusal
    from wardround_client.consent import approvals

    code, out, _ = wardround(capsys, "approve", home, federation, "--yes", "--days", 30)
    assert code == 0 and "if it begins before" in out
    (digest,) = (folder.name for folder in (home / "approved").iterdir())
    hospital = Hospital.open(home)
    hospital.approvals.permit(digest, "spring")

    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + timedelta(days=31)

    monkeypatch.setattr(approvals, "datetime", Later)
    with pytest.raises(PolicyRefusal, match="runs that began before"):
        hospital.approvals.permit(digest, "spring")
    hospital.ledger.close()


def test_the_policy_speaks_before_the_person(home: Path, federation: Path, capsys: pytest.CaptureFixture[str]) -> None:
    federation.write_text(FEDERATION + "[privacy]\nclip_norm = 50.0\n")
    code, _, err = wardround(capsys, "approve", home, federation, "--yes")
    assert code == 4
    assert "policy.greatest_clip_norm" in err
    assert list((home / "approved").iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "HOME"], 2, "--labels"),
        (["ingest", "HOME", "HOME/nowhere", "--labels", "x.csv"], 3, "is not a folder"),
        (["ingest", "HOME", "--table", "x.csv"], 2, "--federation"),
        (["up", "HOME"], 2, "names no coordinator"),
        (["pause", "HOME"], 6, "no daemon is running"),
        (["watch", "HOME"], 6, "no daemon is running"),
        (["status", "HOME/nowhere"], 2, "not a hospital's home"),
        (["ledger", "HOME/nowhere"], 2, "not a hospital's home"),
    ],
)
def test_what_cannot_be_done_is_said(
    home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    found, _, err = wardround(capsys, *(part.replace("HOME", str(home)) for part in arguments))
    assert found == code, err
    assert said in err


def test_up_without_a_cohort_says_so_before_it_connects(
    home: Path, ca: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wardround(capsys, "join", home, "--address", "127.0.0.1:9", "--ca", ca)
    code, out, err = wardround(capsys, "up", home)
    assert code == 3
    assert "no cohort" in err
    assert "connecting" not in out


def test_a_key_that_others_can_read_is_not_used(
    home: Path, ca: Path, federation: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wardround(capsys, "join", home, "--address", "127.0.0.1:9", "--ca", ca)
    wardround(capsys, "ingest", home, "--table", table, "--federation", federation)
    (home / "node.key").chmod(0o644)
    code, _, err = wardround(capsys, "up", home, "--once")
    assert code == 2
    assert "chmod 600" in err


def test_the_home_comes_from_the_environment(
    home: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARDROUND_HOSPITAL", str(home))
    code, out, _ = wardround(capsys, "ledger", "--json")
    assert code == 0
    assert json.loads(out)["entries"] == 0


def test_every_help_has_an_example_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    from wardround_client.commands import app

    for name in app.kind.names:
        code, out, _ = wardround(capsys, name, "--help")
        assert code == 0
        assert f"wardround hospital {name}" in out.split("Examples:")[1]
        assert "Exit codes" in out


def test_help_does_not_wait_for_torch() -> None:
    program = "import sys; from wardround.cli import run; run(['hospital', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0
