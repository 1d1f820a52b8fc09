"""`wardround hospital check`: IT tests the way to the coordinator without a cohort, and each fault has its step."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.client.command_line import wardround
from tests.hostile.fleet import HostileFleet, send

from wardround_client.service.daemon import locked
from wardround_server.network import tls

Capture = pytest.CaptureFixture[str]
STEPS = ["proxy", "name (DNS)", "network (TCP)", "certificate (TLS)", "clock", "key"]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[HostileFleet]:
    with HostileFleet(tmp_path) as coordinator:
        yield coordinator


@pytest.fixture
def home(tmp_path: Path, capsys: Capture) -> Path:
    """A hospital without a cohort."""
    assert wardround(capsys, "init", tmp_path / "home", "--name", "st-anna", "--patients", 60)[0] == 0
    return tmp_path / "home"


def check(capsys: Capture, home: Path, address: str, ca: Path) -> tuple[int, list[tuple[str, bool]], str]:
    """(exit code, (step, worked) of each, the message)."""
    assert wardround(capsys, "join", home, "--address", address, "--ca", ca)[0] == 0
    code, out, _ = wardround(capsys, "check", home, "--json")
    lines = [json.loads(line) for line in out.splitlines()]
    tried = [(line["step"], line["ok"]) for line in lines if line["event"] == "check"]
    return code, tried, lines[-1].get("message", "")


def test_a_hospital_without_a_cohort_can_test_the_whole_way(home: Path, fleet: HostileFleet, capsys: Capture) -> None:
    code, tried, _ = check(capsys, home, fleet.address, fleet.ca)
    assert (code, tried) == (0, [(step, True) for step in STEPS])
    assert "deactivate-node" in fleet.paths()[-1], "it says goodbye"
    assert not any("pull" in path for path in fleet.paths()), "and takes no message"
    code, out, _ = wardround(capsys, "check", home)
    assert code == 0 and "registered, as node 7" in out and "Next: wardround hospital approve" in out


@pytest.mark.parametrize(
    ("address", "failed", "says"),
    [
        ("no-such-host.invalid:9092", "name (DNS)", "the name no-such-host.invalid has no address"),
        ("127.0.0.1:PORT", "network (TCP)", "in the firewall"),
    ],
)
def test_the_first_step_that_fails_says_what_to_do(
    home: Path, fleet: HostileFleet, capsys: Capture, address: str, failed: str, says: str
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = address.replace("PORT", str(taken.getsockname()[1]))
        code, tried, message = check(capsys, home, address, fleet.ca)
    assert code == 6 and tried[-1] == (failed, False) and all(ok for _, ok in tried[:-1])
    assert says in message and "Next:" in message


def test_another_authority_is_not_believed(home: Path, fleet: HostileFleet, capsys: Capture, tmp_path: Path) -> None:
    other = tls.create(tmp_path / "other", ["127.0.0.1"]).ca
    code, tried, message = check(capsys, home, fleet.address, other)
    assert (code, tried[-1]) == (6, ("certificate (TLS)", False))
    assert "join again" in message


def test_a_key_that_is_not_registered(home: Path, fleet: HostileFleet, capsys: Capture) -> None:
    fleet.override["activate-node"] = lambda handler, body: send(handler, b"", status=412)
    code, tried, message = check(capsys, home, fleet.address, fleet.ca)
    assert (code, tried[-1]) == (6, ("key", False))
    assert "register join.json" in message


def test_a_proxy_that_does_not_answer_is_named(
    home: Path, fleet: HostileFleet, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://it:secret@127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setenv("NO_PROXY", "")
        code, tried, message = check(capsys, home, "fl.example.org:9092", fleet.ca)
    assert (code, tried[-1]) == (6, ("network (TCP)", False))
    assert "secret" not in message


def test_what_is_missing_before_anything_is_dialled(home: Path, fleet: HostileFleet, capsys: Capture) -> None:
    code, _, err = wardround(capsys, "check", home)
    assert code == 2 and "wardround hospital join" in err
    assert wardround(capsys, "join", home, "--address", fleet.address, "--ca", fleet.ca)[0] == 0
    with locked(home):
        code, _, err = wardround(capsys, "check", home)
    assert code == 2 and "a daemon runs" in err
