"""Nobody else on the machine reads or writes a home, whatever the umask was when it was written."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.conftest import make_home
from tests.rounds import TWO_COLUMNS, request
from tests.story.processes import running, typed

from orthanc import free_port
from wardround.cli import run as command
from wardround.files import PrivateLog, private_folder, shut, write_atomically
from wardround.wire import peek_reply
from wardround_client.hospital import Hospital
from wardround_client.round import answer

ONE_ROUND = f'name = "small"{TWO_COLUMNS}[rounds]\nrounds = 1\nquorum = 1\ndeadline_s = 60.0\n'


@pytest.fixture(params=[0o000, 0o022, 0o277], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def open_to_others(home: Path) -> list[str]:
    return [
        f"{stat.S_IMODE(path.lstat().st_mode):o} {path.relative_to(home)}"
        for path in (home, *home.rglob("*"))
        if not path.is_symlink() and path.lstat().st_mode & 0o077
    ]


def test_every_command_of_a_hospital_writes_for_its_owner_alone(umask: int, tmp_path: Path) -> None:
    home = make_home(tmp_path / "made" / "home", 40)
    table, agreement = tmp_path / "made" / "table.csv", tmp_path / "made" / "federation.toml"
    coordinator = tmp_path / "coordinator"
    assert command(["coordinator", "init", str(coordinator), "--port", str(free_port())]) == 0
    for arguments in (
        ["join", str(home), str(coordinator / "invitation.toml")],
        ["status", str(home)],
        ["ledger", str(home), "--verify"],
        ["ingest", str(home), "--table", str(table), "--federation", str(agreement), "--patient-column", "id"],
        ["withdraw", str(home), "p3"],
        ["up", str(home), "--give-up-after-s", "0.1"],
    ):
        assert command(["hospital", *arguments]) in (0, 6), arguments
        assert open_to_others(home) == [], arguments
    assert (home / "hospital.log").exists()
    for arguments in (["register", str(coordinator), str(home / "join.json")], ["status", str(coordinator)]):
        assert command(["coordinator", *arguments]) in (0, 6), arguments
    assert open_to_others(coordinator) == []
    assert os.umask(umask) == umask, "the caller's own umask is as it was"


def test_a_round_answered_by_the_library_alone_writes_for_its_owner_alone(umask: int, tmp_path: Path) -> None:
    home = make_home(tmp_path / "made" / "home", 40)
    hospital = Hospital.open(home)
    (digest,) = hospital.approvals.digests()
    for number in range(2):
        assert peek_reply(answer(hospital, request(hospital.approvals.agreement(digest), number))).refusal is None
    hospital.ledger.close()
    assert (home / "models").is_dir()
    assert open_to_others(home) == []


def test_a_whole_run_of_real_processes_under_umask_000(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        home, coordinator = make_home(tmp_path / "made" / "home", 40, federation=ONE_ROUND), tmp_path / "coordinator"
        typed("coordinator", "init", coordinator, "--port", 0, "--admin-port", 0, "--health-port", 0)
        typed("coordinator", "register", coordinator, home / "join.json")
        with running(tmp_path) as start:
            up = start("coordinator", "up", coordinator)
            up.wait_for(lambda line: "is up" in line, "coordinator")
            typed("hospital", "join", home, coordinator / "invitation.toml")
            typed("hospital", "approve", home, tmp_path / "made" / "federation.toml", "--yes")
            daemon = start("hospital", "up", home)
            daemon.wait_for(lambda line: line.startswith("connected"), "hospital")
            assert open_to_others(home) == open_to_others(coordinator) == []
            typed("coordinator", "run", coordinator, tmp_path / "made" / "federation.toml")
            assert open_to_others(home) == open_to_others(coordinator) == []
            assert (coordinator / "answers" / "st-anna.jsonl").exists()
            daemon.stop()
            up.stop()
    finally:
        os.umask(before)
    assert open_to_others(home) == open_to_others(coordinator) == []


@settings(max_examples=30, deadline=None)
@given(
    modes=st.lists(st.integers(0, 0o777), min_size=4, max_size=4), mask=st.sampled_from([0, 0o022, 0o077, 0o002, 0o777])
)
def test_what_was_open_is_shut_and_said_and_its_owner_loses_nothing(
    modes: list[int], mask: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home, beside = tmp_path_factory.mktemp("open"), tmp_path_factory.mktemp("beside") / "file"
    beside.write_text("not ours")
    beside.chmod(0o666)
    before = os.umask(mask)
    try:
        private_folder(home / "folder")
        write_atomically(home / "folder" / "file", b"x")
        write_atomically(home / "secret", b"x")
    finally:
        os.umask(before)
    assert open_to_others(home) == []
    (home / "link").symlink_to(beside)
    paths = [home, home / "folder", home / "folder" / "file", home / "secret"]
    modes[:2] = [mode | 0o700 for mode in modes[:2]]  # a folder that its owner cannot enter is another matter
    for path, mode in zip(paths, modes, strict=True):
        path.chmod(mode)
    said = shut(home)
    assert set(said) == {str(p.relative_to(home)) for p, mode in zip(paths, modes, strict=True) if mode & 0o077}
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [mode & 0o700 for mode in modes]
    assert stat.S_IMODE(beside.stat().st_mode) == 0o666
    assert shut(home) == []


def test_a_log_stays_private_through_every_rotation(umask: int, tmp_path: Path) -> None:
    handler = PrivateLog(tmp_path / "hospital.log", maxBytes=200, backupCount=3)
    for number in range(40):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, f"line {number} of a long log", None, None))
    handler.close()
    logs = sorted(tmp_path.glob("hospital.log*"))
    assert len(logs) == 4
    assert {stat.S_IMODE(path.stat().st_mode) for path in logs} == {0o600}


@pytest.mark.parametrize("who", ["hospital", "coordinator"])
def test_up_shuts_a_home_that_an_older_version_left_open(who: str, tmp_path: Path) -> None:
    home = make_home(tmp_path / "made" / "home", 40)
    coordinator = tmp_path / "coordinator"
    assert command(["coordinator", "init", str(coordinator), "--port", "0"]) == 0
    assert (
        command(["hospital", "join", str(home), "--address", "127.0.0.1:1", "--ca", str(coordinator / "tls/ca.crt")])
        == 0
    )
    place = home if who == "hospital" else coordinator
    for path in (place, place / "join.json", place / "federation.toml"):
        if path.exists():
            path.chmod(0o777)
    if who == "hospital":
        assert command(["hospital", "up", str(home), "--give-up-after-s", "0.1"]) == 6
        said = (home / "hospital.log").read_text()
    else:
        (coordinator / "coordinator.toml").write_text(
            (coordinator / "coordinator.toml")
            .read_text()
            .replace("admin_port = 9093", "admin_port = 0")
            .replace("health_port = 9094", "health_port = 0")
        )
        with running(tmp_path) as start:
            start("coordinator", "up", coordinator).wait_for(lambda line: "is up" in line, "coordinator")
            said = (coordinator / "coordinator.log").read_text()
            assert json.loads((coordinator / "up.json").read_text())["pid"]
    assert open_to_others(place) == []
    assert "others could read or write" in said
