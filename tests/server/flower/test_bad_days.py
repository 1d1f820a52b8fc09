"""A coordinator on a bad day: a proxy in the environment, a damaged database, a full disk, one hospital too many."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from tests.server.flower.test_superlink import start
from tests.server.test_hospitals import card

from wardround.errors import ConfigError, PortInUse, StorageError, Unreachable
from wardround.files import room_on_disk
from wardround.logs import OneLine
from wardround.proxies import spare_loopback
from wardround_server.commands import app
from wardround_server.flower.control import ControlApi
from wardround_server.flower.database import check_database
from wardround_server.follow import _events
from wardround_server.home import Home
from wardround_server.hospitals import Card, Registry
from wardround_server.network import tls
from wardround_server.network.gate import network_of
from wardround_server.network.listening import listening

PORTS = ["--port", "0", "--admin-port", "0", "--health-port", "0"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    assert CliRunner().invoke(app, ["init", str(tmp_path / "home"), *PORTS]).exit_code == 0
    return tmp_path / "home"


# Proxies.


@pytest.mark.parametrize("named", ["", "example.org", "example.org,127.0.0.1", "*"])
@pytest.mark.parametrize("proxy", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY"])
def test_what_goes_to_this_machine_goes_to_no_proxy(monkeypatch: pytest.MonkeyPatch, proxy: str, named: str) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, named)
    monkeypatch.setenv(proxy, "http://127.0.0.1:1")
    spare_loopback()
    with httpx.Client() as client:
        for host in ("127.0.0.1", "localhost", "[::1]"):
            transport = client._transport_for_url(httpx.URL(f"https://{host}:9093/"))
            assert transport is client._transport, host
        away = client._transport_for_url(httpx.URL("https://fl.example.net:9092/"))
        if named != "*" and proxy != "HTTP_PROXY":
            assert away is not client._transport  # others still go there


def test_a_coordinator_comes_up_and_is_found_with_a_dead_proxy_in_the_environment(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    Registry(home).add(card("anna"))
    process = start(home)
    try:
        status = json.loads(CliRunner().invoke(app, ["status", str(home), "--json"]).stdout)
        assert status["up"] is True
        assert [each["status"] for each in status["hospitals"]] == ["never connected"]
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for file in ("superlink.db", "coordinator.log", "superexec.log", "up.json", "hospitals.json"):
            assert stat.S_IMODE((home / file).stat().st_mode) == 0o600, file
        assert CliRunner().invoke(app, ["remove", str(home), "anna"]).exit_code == 0
        with ControlApi(Home(home).running()["admin"], Home(home).tls.ca) as control:
            assert {each.status for each in control.seen().values()} <= {"unregistered"}
    finally:
        process.terminate()
        assert process.wait(300) == 0


# The database.


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of Flower's, as it is after a run's worth of rows."""
    path = tmp_path_factory.mktemp("db") / "superlink.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE node (node_id INTEGER PRIMARY KEY, public_key BLOB)")
        connection.executemany("INSERT INTO node VALUES (?, ?)", [(n, os.urandom(400)) for n in range(400)])
        connection.execute("CREATE INDEX keys ON node (public_key)")
    connection.close()
    return path


def _zeros(blob: bytearray, draws: random.Random) -> None:
    at = draws.randrange(0, len(blob), 4096)
    blob[at : at + 4096] = bytes(4096)


def _cut(blob: bytearray, draws: random.Random) -> None:
    del blob[draws.randrange(200, len(blob) - 4096) :]


def _head(blob: bytearray, draws: random.Random) -> None:
    blob[draws.randrange(16)] ^= 1 + draws.randrange(255)


def _noise(blob: bytearray, draws: random.Random) -> None:
    for at in range(0, len(blob), 4096):  # each page's head says what it is
        blob[at : at + 8] = draws.randbytes(8)


def _other(blob: bytearray, draws: random.Random) -> None:
    blob[:] = draws.randbytes(5000)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("damage", [_zeros, _cut, _head, _noise, _other])
def test_a_damaged_database_is_named_with_the_way_back(
    tmp_path: Path, database: Path, damage: object, seed: int
) -> None:
    blob = bytearray(database.read_bytes())
    damage(blob, random.Random(seed))  # type: ignore[operator]
    path = tmp_path / "superlink.db"
    path.write_bytes(blob)
    with pytest.raises(StorageError, match=r"superlink\.db cannot be used.*`mv .*hospitals\.json"):
        check_database(path)
    shutil.copyfile(database, path)
    check_database(path)


def test_up_with_a_damaged_database_ends_in_words_and_comes_up_without_it(home: Path) -> None:
    Registry(home).add(card("anna"))
    process = start(home)
    process.terminate()
    assert process.wait(300) == 0
    first = Registry(home).by_node()
    path = home / "superlink.db"
    blob = bytearray(path.read_bytes())
    for at in range(0, len(blob), 512):
        blob[at] ^= 0xFF
    path.write_bytes(blob)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "wardround", "coordinator", "up", str(home)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 7, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert "this is a bug" not in done.stdout + done.stderr
    path.rename(home / "superlink.db.damaged")
    process = start(home)
    process.terminate()
    assert process.wait(300) == 0
    (node,) = Registry(home).by_node()
    assert node not in first  # registered anew, by itself


# A full disk.


def test_a_full_disk_is_told_from_an_empty_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert room_on_disk(tmp_path)
    assert list(tmp_path.iterdir()) == []
    full = Path("/dev/full")
    if full.exists():
        monkeypatch.setattr("wardround.files.write_atomically", lambda path, blob, **_: full.write_bytes(blob))
        assert not room_on_disk(tmp_path)


class Finished:
    """A run that Flower says is over."""

    def run_status(self, run_id: int) -> tuple[str, str]:
        return "finished", "failed \x1b[2J"

    def stop_run(self, run_id: int) -> None: ...


@pytest.mark.parametrize("room", [True, False])
def test_a_run_that_ended_without_a_word_on_a_full_disk_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: bool
) -> None:
    monkeypatch.setattr("wardround_server.follow.room_on_disk", lambda folder: room)
    with pytest.raises(Exception, match="ended early" if room else "disk of .* is full") as raised:
        list(_events(Finished(), 1, tmp_path / "events.jsonl", 0))
    assert raised.value.exit_code == (6 if room else 7)  # type: ignore[attr-defined]
    assert str(raised.value).isprintable()


# Names and sizes.


def test_register_shows_what_it_takes_and_asks_at_a_terminal(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / "join.json"
    Registry(home).add(card("anna", patients=300))
    path.write_text(card("bert", patients=10**9).model_dump_json())
    shown = CliRunner().invoke(app, ["register", str(home), str(path), "--patients", "100", "--yes"]).output
    assert "declares 1,000,000,000 patients" in shown
    assert "100" in shown
    assert "25.0% of the federation" in shown
    assert {h.name: h.declared_patients for h in Registry(home)} == {"anna": 300, "bert": 100}
    monkeypatch.setattr("wardround_server.commands.register.at_a_terminal", lambda: True)
    path.write_text(card("carl").model_dump_json())
    refused = CliRunner().invoke(app, ["register", str(home), str(path)], input="n\n")
    assert refused.exit_code == 1
    assert "Nothing was changed" in refused.output
    assert CliRunner().invoke(app, ["register", str(home), str(path)], input="y\n").exit_code == 0
    assert [h.name for h in Registry(home)] == ["anna", "bert", "carl"]


def test_a_fingerprint_is_the_one_that_ssh_keygen_shows(tmp_path: Path) -> None:
    made = card("anna")
    (tmp_path / "key.pub").write_text(made.public_key + "\n")
    keygen = shutil.which("ssh-keygen")
    if keygen is None:
        assert made.fingerprint.startswith("SHA256:")
        return
    said = subprocess.run([keygen, "-lf", str(tmp_path / "key.pub")], capture_output=True, text=True, check=True).stdout
    assert made.fingerprint in said


@pytest.mark.parametrize("patients", [-1, 10**10])
def test_impossible_sizes_are_refused(home: Path, patients: int) -> None:
    (home / "join.json").write_text(card("anna").model_dump_json())
    result = CliRunner().invoke(app, ["register", str(home), str(home / "join.json"), "--patients", str(patients)])
    assert result.exit_code != 0
    assert list(Registry(home)) == []


def test_remove_knows_who_is_there(home: Path) -> None:
    Registry(home).add(card("anna"))
    with pytest.raises(ConfigError, match="Allowed: anna"):
        Registry(home).remove("b\x1b[2Jert")
    Registry(home).remove("anna")
    assert list(Registry(home)) == []


def test_a_card_is_read_once_and_within_bounds(tmp_path: Path) -> None:
    from wardround_server.hospitals import load_card

    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    large = tmp_path / "large"
    large.write_text(card("anna").model_dump_json() + " " * 100_000)
    strange = tmp_path / "strange"
    strange.write_text('{"name": "a", "\x1b[2J\\u202e": 1}')
    for path in (fifo, large, strange, Path("/dev/zero"), tmp_path):
        with pytest.raises(ConfigError) as raised:
            load_card(path)
        assert str(raised.value).isprintable()
    assert isinstance(Card.model_validate_json(card("anna").model_dump_json()), Card)


# Strings.


def test_a_log_has_one_dated_line_a_record_whatever_it_holds() -> None:
    import logging

    formatter = OneLine()
    try:
        raise ValueError("x\n2026-01-01 INFO forged\x1b[2J")
    except ValueError:
        record = logging.LogRecord(
            "n", logging.INFO, "f", 1, "a\nINFO b %s", ("\x1b]0;c\x07\r\n\u202e",), sys.exc_info()
        )
    lines = formatter.format(record).split("\n")
    assert " INFO n a" in lines[0]
    assert all(line.startswith("    ") for line in lines[1:])
    assert all(line.isprintable() for line in lines)


# Addresses and descriptors.


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
    ],
)
def test_what_counts_as_one_address(address: str, counted: str) -> None:
    assert network_of(address) == counted


def test_all_addresses_are_those_of_both_kinds() -> None:
    try:
        bound = listening("::", 0, "for hospitals")
    except PortInUse:
        pytest.skip("a machine without IPv6")
    with bound:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, bound.getsockname()[1]), timeout=120):
                accepted, _ = bound.accept()
                accepted.close()


@pytest.mark.skipif(shutil.which("prlimit") is None, reason="needs prlimit")
@pytest.mark.parametrize(("soft", "hard"), [(64, 64), (256, 1024), (1024, 1024), (300, 4096), (4096, 4096)])
def test_connections_leave_descriptors_for_the_rest(soft: int, hard: int) -> None:
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this machine gives fewer")
    code = "import resource, wardround_server.network.limits as l; c = l.connections(l.Connections()); " \
        "print(c.all, c.strangers, c.an_address, resource.getrlimit(resource.RLIMIT_NOFILE)[0])"  # fmt: skip
    limited = ["prlimit", f"--nofile={soft}:{hard}", sys.executable, "-c", code]
    said = subprocess.run(limited, capture_output=True, text=True, check=True).stdout
    most, strangers, an_address, files = map(int, said.split())
    assert files == hard
    assert 0 < an_address <= strangers <= most <= 512
    assert most <= hard - 192 or most == 16


@pytest.mark.parametrize(
    "trouble", [httpx.ReadTimeout, httpx.ConnectTimeout, httpx.ConnectError, httpx.RemoteProtocolError]
)
def test_a_coordinator_that_is_too_busy_to_answer_is_not_one_that_went_away(
    trouble: type[httpx.TransportError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise trouble("busy")

    events, up = tmp_path / "events.jsonl", tmp_path / "up.json"
    with ControlApi(1, tls.create(tmp_path / "tls", ["127.0.0.1"]).ca) as control:
        monkeypatch.setattr(httpx.Client, "send", fails)
        with pytest.raises(Unreachable, match="no coordinator runs"):
            control.run_status(7)
        up.write_text(json.dumps({"pid": os.getpid()}))
        assert control.run_status(7) == ("unknown", "")
        monkeypatch.setattr("wardround_server.follow.STATUS_EVERY_S", 0.0)
        monkeypatch.setattr("wardround_server.follow.LONGEST_SILENCE_S", 0.0)
        with pytest.raises(Unreachable, match="went away"):
            list(_events(control, 7, events, 0))
