"""`wardround hospital doctor` and `wardround coordinator doctor`: a home is broken, and what is broken is named."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.client.conftest import FEDERATION_TOML

from wardround.cli import run
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import LEDGER, Ledger
from wardround_server.network import tls

Capture = pytest.CaptureFixture[str]
NOT_JOINED = {"coordinator", "certificates", "way to it"}


def examined(capsys: Capture, side: str, home: Path) -> tuple[int, dict[str, dict[str, Any]]]:
    """(exit code, what was found, by look)."""
    capsys.readouterr()
    code = run([side, "doctor", str(home), "--json"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err and not err, err
    found = {each["look"]: each for each in map(json.loads, out.splitlines())}
    assert all(each["do"] for each in found.values() if each["state"] == "soon")
    wrong = [each["code"] for each in found.values() if each["state"] == "wrong"]
    assert code == (wrong[0] if wrong else 0) and all(wrong)
    return code, found


@pytest.fixture(scope="module")
def whole(home_with_cohort: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital that lacks nothing but a coordinator."""
    home = tmp_path_factory.mktemp("whole") / "north"
    shutil.copytree(home_with_cohort, home)
    Ledger(home / LEDGER).close()
    assert run(["hospital", "init", str(home.with_name("other")), "--name", "x", "--patients", "40"]) == 0
    for name in ("node.key", "node.pub"):
        shutil.copy2(home.with_name("other") / name, home / name)
    federation = home.with_name("federation.toml")
    federation.write_text(FEDERATION_TOML)
    hospital = Hospital.open(home)
    hospital.approvals.approve(federation)
    hospital.ledger.close()
    for path in (home, *home.rglob("*")):
        path.chmod(stat.S_IMODE(path.stat().st_mode) & 0o700)
    return home


@pytest.fixture
def home(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "north"))


def troubles(found: dict[str, dict[str, Any]]) -> set[str]:
    return {look for look, each in found.items() if each["state"] in ("wrong", "soon")} - NOT_JOINED


def approved(home: Path) -> Path:
    (folder,) = (home / "approved").iterdir()
    return folder


def damaged_chain(home: Path) -> None:
    """A digest of an entry that is there."""
    with closing(sqlite3.connect(home / LEDGER, isolation_level=None)) as ledger:
        (table,) = ledger.execute("SELECT sql FROM sqlite_master WHERE name = 'entries'").fetchone()
    assert table, "else this test looks elsewhere"
    blob = (home / LEDGER).read_bytes()
    (home / LEDGER).write_bytes(blob[:100] + b"\xff" * 4000 + blob[4100:])


def ended(home: Path) -> None:
    record = approved(home) / "approval.json"
    said = json.loads(record.read_text())
    record.write_text(json.dumps(said | {"until": (datetime.now(UTC) - timedelta(days=1)).isoformat()}))


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda home: (home / name).write_text(text)


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings": (write("hospital.toml", "[hospital\n"), "settings"),
    "a setting out of bounds": (write("hospital.toml", '[hospital]\nname = "x"\ndeclared_patients = -1\n'), "settings"),
    "open to others": (lambda home: (home / "cohort").chmod(0o755), "who can read it"),
    "no secret.key": (lambda home: (home / "secret.key").unlink(), "secret.key"),
    "half a secret.key": (lambda home: (home / "secret.key").write_bytes(b"x"), "secret.key"),
    "no node.key": (lambda home: (home / "node.key").unlink(), "node.key"),
    "no ledger": (lambda home: (home / LEDGER).unlink(), "ledger"),
    "a damaged ledger": (damaged_chain, "ledger"),
    "stopped": (write("stopped.toml", "?"), "one life"),
    "no register": (lambda home: (home / "withdrawn.register").unlink(), "who has withdrawn"),
    "no cohort": (lambda home: shutil.rmtree(home / "cohort"), "cohort"),
    "half a cohort": (lambda home: (home / "cohort" / "inputs.bin").write_bytes(b""), "cohort"),
    "a hook that is not there": (
        lambda home: (home / "hospital.toml").write_text(
            (home / "hospital.toml").read_text() + '[operations]\nhook = ["/nowhere/notify"]\n'
        ),
        "hook",
    ),
    "many left out": (write("cohort/quarantine.csv", "file,reason\n" + "a,b\n" * 900), "quarantine"),
    "nothing approved": (lambda home: shutil.rmtree(approved(home)), "approvals"),
    "an approval that ended": (ended, "approval"),
    "half an approval": (lambda home: (approved(home) / "approval.json").write_text("{"), "approval"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_hospital_s_fault_is_named_with_what_to_do(fault: str, home: Path, capsys: Capture) -> None:
    spoil, look = FAULTS[fault]
    spoil(home)
    before = {path: path.read_bytes() for path in home.rglob("*") if path.is_file()}
    _, found = examined(capsys, "hospital", home)
    named = [name for name in found if name.startswith(look)]
    assert named and troubles(found) >= set(named), found
    assert all(
        {path: path.read_bytes() == blob for path, blob in before.items() if path.name != "hospital.toml"}.values()
    )


def test_a_home_that_lacks_nothing_but_a_coordinator_is_told_that_alone(home: Path, capsys: Capture) -> None:
    code, found = examined(capsys, "hospital", home)
    assert troubles(found) == set(), [each for each in found.values() if each["state"] == "wrong"]
    assert code == 2
    assert {look for look, each in found.items() if each["state"] in ("wrong", "waits")} == NOT_JOINED
    assert "hospital join" in found["coordinator"]["do"]
    assert run(["hospital", "doctor", str(home)]) == 2
    assert "1 thing wrong" in capsys.readouterr().out


@pytest.mark.parametrize("side", ["hospital", "coordinator"])
def test_whatever_becomes_of_a_file_the_doctor_comes_to_an_end(
    side: str, home: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Any file, gone, cut, of other bytes, or a folder; one after the other, so that faults meet."""
    if side == "coordinator":
        home = coordinator(tmp_path)
    dice, files = random.Random(7), sorted(path for path in home.rglob("*") if path.is_file())
    dice.shuffle(files)
    for path in files[:12]:
        content = path.read_bytes() if path.exists() else b""
        match dice.randrange(4):
            case 0:
                path.unlink(missing_ok=True)
            case 1:
                path.write_bytes(content[: len(content) // 2])
            case 2:
                path.write_bytes(dice.randbytes(200))
            case _:
                path.unlink(missing_ok=True)
                path.mkdir()
        if not (home / f"{side}.toml").is_file():
            return  # no home any more
        examined(capsys, side, home)


def coordinator(folder: Path) -> Path:
    ports = ("--port", "0", "--admin-port", "0", "--health-port", "0")
    assert run(["coordinator", "init", str(folder / "coordinator"), *ports]) == 0
    return folder / "coordinator"


def soon_over(home: Path) -> None:
    """A server certificate of long ago, which ends in a few days."""
    tls.create(home / "tls-old", ["127.0.0.1"], at=datetime.now(UTC) - timedelta(days=815))
    for name in ("ca.crt", "ca.key", "server.crt", "server.key"):
        shutil.move(home / "tls-old" / name, home / "tls" / name)
    shutil.rmtree(home / "tls-old")


def half_a_checkpoint(home: Path) -> None:
    (home / "runs" / "spring").mkdir(parents=True)
    (home / "runs" / "spring" / "checkpoint.safetensors").write_bytes(b"half")


def no_hook(home: Path) -> None:
    (home / "notify").write_text("#!/bin/sh")
    with (home / "coordinator.toml").open("a") as file:
        file.write(f'[operations]\nhook = ["{home / "notify"}"]\n')


COORDINATOR_FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "settings": (write("coordinator.toml", "x = ["), "settings"),
    "open to others": (lambda home: (home / "tls" / "ca.key").chmod(0o644), "who can read it"),
    "another's key": (lambda home: shutil.copy(home / "tls" / "ca.key", home / "tls" / "server.key"), "keys"),
    "a certificate that ends": (soon_over, "server certificate"),
    "no certificate": (lambda home: (home / "tls" / "ca.crt").unlink(), "keys"),
    "a damaged database": (write("superlink.db", "no database"), "superlink.db"),
    "half a checkpoint": (half_a_checkpoint, "runs"),
    "a hook that nobody may execute": (no_hook, "hook"),
    "a damaged registry": (write("hospitals.json", "[]"), "hospitals"),
}


@pytest.mark.parametrize("fault", COORDINATOR_FAULTS)
def test_a_coordinator_s_fault_is_named_with_what_to_do(fault: str, tmp_path: Path, capsys: Capture) -> None:
    home = coordinator(tmp_path)
    code, found = examined(capsys, "coordinator", home)
    assert code == 0 and troubles(found) == {"hospitals", "daemon"}, found
    spoil, look = COORDINATOR_FAULTS[fault]
    spoil(home)
    _, found = examined(capsys, "coordinator", home)
    assert look in troubles(found), found


def test_wardround_doctor_finds_out_whose_home_it_is(home: Path, tmp_path: Path, capsys: Capture) -> None:
    """It says what the doctor of that side says, also where the settings are broken; where it cannot tell, it asks."""
    for side, place in (("hospital", home), ("coordinator", coordinator(tmp_path))):
        for settings in ((place / f"{side}.toml").read_text(), "[broken"):
            (place / f"{side}.toml").write_text(settings)
            said = []
            capsys.readouterr()
            for words in ([side, "doctor"], ["doctor"]):
                code = run([*words, str(place), "--json"])
                found = map(json.loads, capsys.readouterr().out.splitlines())
                said.append((code, [(each["look"], each["state"]) for each in found]))
            assert said[0] == said[1]
        (tmp_path / "both").mkdir(exist_ok=True)
        name = "secret.key" if side == "hospital" else "hospitals.json"
        (tmp_path / "both" / name).write_text("{}")
    assert run(["doctor", str(tmp_path / "both")]) == run(["doctor", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert "secret.key of a hospital and hospitals.json of a coordinator" in told
    assert "neither a hospital's home nor a coordinator's. Allowed: a folder with hospital.toml or" in told
