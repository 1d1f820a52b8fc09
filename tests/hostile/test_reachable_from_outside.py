"""Who can reach a running hospital: its owner, through one Unix socket. Whom it reaches: its coordinator."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.hostile.attack import Victim
from tests.hostile.fleet import HostileFleet, offer
from tests.rounds import request

from wardround.cli import run
from wardround_client.service._proto import hospital_pb2 as pb

LISTEN = "0A"  # tcp_states.h
ACCEPTING = 0x10000  # __SO_ACCEPTCON
pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux' /proc")

STATUS = {
    "name": "declared",
    "declared_patients": "declared",
    "coordinator": "declared",
    "link": "constant of the code",
    "link_detail": "what the coordinator's side of the line did",
    "paused": "the owner's choice",
    "run": "arrived",
    "round": "arrived",
    "answered": "how many replies left",
    "epsilon_spent": "the accountant, from declared numbers",
    "epsilon_budget": "declared",
    "delta": "declared",
    "last_error": "a refusal's public words",
    "approved": "digests of approved agreements",
    "version": "constant of the code",
    "pid": "of this machine",
    "started_at": "the clock",
}


@dataclass(frozen=True)
class Sockets:
    """What a process has open. tcp, udp: (local, remote, state) lines of /proc; unix: (path, whether it listens)."""

    tcp: list[tuple[str, str, str]]
    udp: list[tuple[str, str, str]]
    unix: list[tuple[str, bool]]


def sockets_of(pid: int) -> Sockets:
    inodes = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        found = re.fullmatch(r"socket:\[(\d+)\]", str(entry.readlink()))
        if found:
            inodes.add(found[1])

    def inet(*names: str) -> list[tuple[str, str, str]]:
        rows = [line.split() for name in names for line in _lines(pid, name)]
        return [(row[1], row[2], row[3]) for row in rows if row[9] in inodes]

    rows = [line.split() for line in _lines(pid, "unix")]
    unix = [(row[7] if len(row) > 7 else "", bool(int(row[3], 16) & ACCEPTING)) for row in rows if row[6] in inodes]
    return Sockets(inet("tcp", "tcp6"), inet("udp", "udp6", "raw", "raw6"), unix)


def _lines(pid: int, name: str) -> list[str]:
    file = Path(f"/proc/{pid}/net/{name}")
    return file.read_text().splitlines()[1:] if file.exists() else []


@contextmanager
def process(home: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`wardround hospital up` as its user starts it, with nothing in the environment that would hide a telemetry."""
    environment = {key: value for key, value in os.environ.items() if key != "FLWR_TELEMETRY_ENABLED"}
    command = [sys.executable, "-m", "wardround", "hospital", "up", str(home)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as running:
        try:
            yield running
        finally:
            running.terminate()
            running.wait(300)


def test_a_running_daemon_listens_on_nothing_but_its_owners_socket(attacked_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(attacked_home, home)
    with HostileFleet(tmp_path) as fleet:
        assert run(["hospital", "join", str(home), "--address", fleet.address, "--ca", str(fleet.ca)]) == 0
        agreement = Victim.of(home).agreement
        (approved,) = (home / "approved").glob("*/federation.toml")
        assert run(["hospital", "approve", str(home), str(approved), "--yes"]) == 0
        port = f"{int(fleet.address.rpartition(':')[2]):04X}"
        with process(home) as running:
            for plan in agreement.schedule.rounds:
                reply = fleet.ask(offer(request(agreement, plan.number), agreement.bundle_sha256))
                assert reply.blob is not None
                found = sockets_of(running.pid)
                assert found.tcp, "it is connected, so there is something to see"
                assert not [row for row in found.tcp if row[2] == LISTEN]
                assert {remote for _, remote, _ in found.tcp} == {f"0100007F:{port}"}  # 127.0.0.1, little-endian
                assert found.udp == []  # no look-up of a name, no telemetry
                assert [path for path, listening in found.unix if listening] == [str(home / "control.sock")]
            mode = (home / "control.sock").stat().st_mode
            assert stat.S_ISSOCK(mode)
            assert stat.S_IMODE(mode) == 0o600
            assert stat.S_IMODE(home.stat().st_mode) == 0o700
            for private in ("hospital.log", "ledger.sqlite", "node.key", "secret.key"):
                assert stat.S_IMODE((home / private).stat().st_mode) == 0o600, private


def test_every_field_of_the_owners_status_is_named_and_none_is_counted_from_patients() -> None:
    """It never leaves the machine; still, what a screen shows may be photographed."""
    assert set(pb.StatusReply.DESCRIPTOR.fields_by_name) == set(STATUS)


def test_the_owners_service_has_no_call_that_returns_data() -> None:
    (service,) = pb.DESCRIPTOR.services_by_name.values()
    assert {method.name: method.output_type.name for method in service.methods} == {
        "Status": "StatusReply",
        "Watch": "StatusReply",
        "Pause": "StatusReply",
        "Resume": "StatusReply",
        "Shutdown": "ShutdownReply",
    }
    assert not pb.ShutdownReply.DESCRIPTOR.fields
