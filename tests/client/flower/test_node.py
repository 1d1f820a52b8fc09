"""A node against a real coordinator over TLS on loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from tests.rounds import TWO_COLUMNS

import wardround.bundle
from wardround.config import Federation
from wardround.errors import Unreachable, Untrusted
from wardround.wire import ReplyHeader, RoundReply, peek_request
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.node import Coordinator, Link, Node
from wardround_client.flower.pace import LATER, POLL_S, SLOWEST_POLL_S
from wardround_client.keys import create_node_key, load_node_key, write_card

DEADLINE_S = 300.0
FEDERATION = f'name = "two-nodes"{TWO_COLUMNS}[rounds]\nrounds = 1\nquorum = 1\ndeadline_s = 50.0\n'
ENVIRONMENT = os.environ | {"FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1"}


def _wardround(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "wardround", "coordinator", *map(str, arguments)]


@dataclass
class Place:
    """A running coordinator, and the hospitals that it knows."""

    home: Path
    process: subprocess.Popen[bytes]
    coordinator: Coordinator

    def hospital(self, name: str) -> Path:
        """The folder of a registered hospital's keys."""
        return self.home.parent / name


@dataclass
class Running:
    """A node in a thread, and everything that it reported."""

    node: Node
    stop: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[Link, str]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)
    error: Exception | None = None

    def report(self, link: Link, detail: str) -> None:
        with self.changed:
            self.seen.append((link, detail))
            self.changed.notify_all()

    def until(self, link: Link, count: int = 1) -> None:
        with self.changed:
            ok = self.changed.wait_for(
                lambda: sum(state is link for state, _ in self.seen) >= count, timeout=DEADLINE_S
            )
        assert ok, self.seen

    def __enter__(self) -> Running:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        return self

    def _run(self) -> None:
        try:
            self.node.run(self.stop)
        except Exception as error:
            self.error = error

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive()


def _no_answer(blob: bytes) -> bytes:
    raise AssertionError("nothing should be asked")


def _running(
    coordinator: Coordinator,
    key: ec.EllipticCurvePrivateKey,
    memory: Path,
    answer: object = _no_answer,
    approved: frozenset[str] = frozenset(),
) -> Running:
    running = Running.__new__(Running)
    node = Node(
        coordinator,
        key,
        answer,  # type: ignore[arg-type]
        lambda: approved,
        memory,
        report=lambda link, detail: running.report(link, detail),
        poll_s=0.05,
    )
    running.__init__(node)  # type: ignore[misc]
    return running


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp("node")
    home = base / "coordinator"
    ports = ("--port", 0, "--admin-port", 0, "--health-port", 0)
    subprocess.run(_wardround("init", home, *ports), check=True, env=ENVIRONMENT, capture_output=True)
    for name in ("st-anna", "st-elisabeth"):
        (base / name).mkdir()
        card = write_card(base / name, name=name, declared_patients=50, public_key=create_node_key(base / name))
        subprocess.run(_wardround("register", home, card), check=True, env=ENVIRONMENT, capture_output=True)
    process = subprocess.Popen(_wardround("up", home), env=ENVIRONMENT, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert b"is up" in process.stdout.readline()
        fleet = json.loads((home / "up.json").read_text())["fleet"]
        yield Place(home, process, Coordinator(f"127.0.0.1:{fleet}", (home / "tls" / "ca.crt").read_bytes()))
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        if process.stdout:
            process.stdout.close()


class _Waits(threading.Event):
    """An event that is waited for without delay."""

    def __init__(self) -> None:
        super().__init__()
        self.waited_s: list[float] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.waited_s.append(timeout or 0.0)
        return self.is_set()


def test_a_node_asks_the_more_rarely_the_longer_it_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    coordinator, key = Coordinator("127.0.0.1:9", b""), ec.generate_private_key(ec.SECP384R1())
    node, stop = Node(coordinator, key, _no_answer, frozenset, tmp_path / "node.json"), _Waits()
    busy = iter([*[False] * 300, True, False])

    def step(client: object) -> bool:
        if (there := next(busy, None)) is None:
            stop.set()
        return there is not False

    monkeypatch.setattr("wardround_client.flower.node.connect", lambda *_: nullcontext())
    monkeypatch.setattr(node, "_step", step)
    node.run(stop)
    *idle, after = stop.waited_s
    assert max(idle[0], after) <= POLL_S
    assert 0.75 * SLOWEST_POLL_S <= idle[-1] <= SLOWEST_POLL_S
    assert all(wait_s <= POLL_S + LATER * sum(idle[:so_far]) + 1e-9 for so_far, wait_s in enumerate(idle))


def test_a_wrong_ca_is_not_trusted(place: Place, tmp_path: Path) -> None:
    from wardround_server.network import tls

    other = tls.create(tmp_path / "tls", ["127.0.0.1"])
    coordinator = Coordinator(place.coordinator.address, other.ca.read_bytes())
    node = Node(coordinator, load_node_key(place.hospital("st-anna")), _no_answer, frozenset, tmp_path / "node.json")
    with pytest.raises(Untrusted, match="certificate"):
        node.run(threading.Event())


def test_an_unregistered_key_is_told_so(place: Place, tmp_path: Path) -> None:
    node = Node(
        place.coordinator, ec.generate_private_key(ec.SECP384R1()), _no_answer, frozenset, tmp_path / "node.json"
    )
    with pytest.raises(Untrusted, match="does not know this node's key"):
        node.run(threading.Event())


@pytest.mark.parametrize(
    ("ahead_s", "says"),
    [(0, None), (240, "4 min .*ahead of"), (-240, "(4 min|3 min 5\\d s).* behind")],
)
def test_a_clock_that_is_off_by_four_minutes_works_and_is_said(
    place: Place, tmp_path: Path, ahead_s: int, says: str | None
) -> None:
    clock = Clock(now=lambda: time.time() + ahead_s, kept=lambda: None)
    key = load_node_key(place.hospital("st-anna"))
    running = Running(Node(place.coordinator, key, _no_answer, frozenset, tmp_path / "node.json", clock=clock))
    running.node._report = running.report
    with running:
        running.until(Link.CONNECTED)
    (detail,) = (detail for link, detail in running.seen if link is Link.CONNECTED)
    assert re.search(says, detail) if says else detail == f"connected to {place.coordinator.address}", detail


@pytest.mark.parametrize(("ahead_s", "says"), [(400, "6 min [0-9]+ s ahead of"), (-90_000, "1 day .*behind")])
def test_a_clock_that_is_off_by_more_is_refused_and_named(
    place: Place, tmp_path: Path, ahead_s: int, says: str
) -> None:
    clock = Clock(now=lambda: time.time() + ahead_s, kept=lambda: False)
    key = load_node_key(place.hospital("st-anna"))
    node = Node(place.coordinator, key, _no_answer, frozenset, tmp_path / "node.json", clock=clock)
    with pytest.raises(Untrusted, match=says):
        node.run(threading.Event())


def test_nobody_at_the_address(tmp_path: Path) -> None:
    from wardround_server.network import tls

    ca = tls.create(tmp_path / "tls", ["127.0.0.1"]).ca.read_bytes()
    with socket.socket() as taken:  # bound but not listening: the port refuses
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        key = ec.generate_private_key(ec.SECP384R1())
        node = Node(Coordinator(address, ca), key, _no_answer, frozenset, tmp_path / "node.json")
        with pytest.raises(Unreachable, match="nobody answers"):
            node.run(threading.Event(), give_up_after_s=0.3)


def test_a_ca_file_without_a_certificate(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    node = Node(Coordinator("127.0.0.1:9", b"nothing"), key, _no_answer, frozenset, tmp_path / "node.json")
    with pytest.raises(Untrusted, match="no certificate"):
        node.run(threading.Event())


CRASHING = """
import sys, threading
from pathlib import Path
from wardround_client.keys import load_node_key
from wardround_client.flower.node import Coordinator, Link, Node
address, ca, home = sys.argv[1:]
def report(link, detail):
    if link is Link.CONNECTED:
        print("connected", flush=True)
Node(Coordinator(address, Path(ca).read_bytes()), load_node_key(Path(home)), bytes, frozenset, Path(home) / "node.json",
     report=report).run(threading.Event())
"""


def test_after_kill_9_the_node_is_back_at_once(place: Place) -> None:
    home = place.hospital("st-anna")
    command = [sys.executable, "-c", CRASHING, place.coordinator.address, str(place.home / "tls" / "ca.crt"), str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=ENVIRONMENT) as crashing:
        assert crashing.stdout is not None
        assert crashing.stdout.readline() == b"connected\n"
        os.kill(crashing.pid, signal.SIGKILL)
    with _running(place.coordinator, load_node_key(home), home / "node.json") as running:
        running.until(Link.CONNECTED)
    assert Link.RETRYING not in dict(running.seen), "Flower itself would refuse it for 2 x 15 s"
    assert running.error is None
    assert running.seen[-1] == (Link.STOPPED, "stopped")


def test_after_kill_9_without_a_memory_a_known_node_waits_and_an_unknown_one_ends(place: Place, tmp_path: Path) -> None:
    home = place.hospital("st-elisabeth")
    with _running(place.coordinator, load_node_key(home), home / "node.json") as first:
        first.until(Link.CONNECTED)
        # The same key a second time, as another process would have it, with no memory of ever having been connected.
        node = Node(place.coordinator, load_node_key(home), _no_answer, frozenset, tmp_path / "none.json")
        with pytest.raises(Untrusted, match="or another process uses it"):
            node.run(threading.Event())


def test_one_run_with_a_hospital_that_approved_and_one_that_did_not(place: Place, tmp_path: Path) -> None:
    (tmp_path / "federation.toml").write_text(FEDERATION)
    federation = _federation(tmp_path / "federation.toml")
    asked: list[int] = []

    def answer(blob: bytes) -> bytes:
        header = peek_request(blob)
        asked.append(header.round)
        size = 6  # statistics: 2 classes + 2 x 2 moments; gradient: 2 x 2 weights + 2 biases
        reply = ReplyHeader(run=header.run, round=header.round, hospital="st-anna", declared_patients=50, epsilon=0.5)
        return RoundReply(reply, np.ones(size, np.float32)).pack()

    approved = frozenset({wardround.bundle.digest(federation)})
    anna, elisabeth = (place.hospital(name) for name in ("st-anna", "st-elisabeth"))
    with (
        _running(place.coordinator, load_node_key(anna), anna / "node.json", answer, approved) as one,
        _running(place.coordinator, load_node_key(elisabeth), elisabeth / "node.json") as two,
    ):
        one.until(Link.CONNECTED)
        two.until(Link.CONNECTED)
        command = _wardround("run", place.home, tmp_path / "federation.toml", "--json")
        done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        events = [json.loads(line) for line in done.stdout.splitlines()]
    rounds = [event for event in events if event["event"] == "round"]
    assert asked == [0, 1]
    assert [event["replied"] for event in rounds] == [1, 1]
    for event in rounds:
        assert "has not approved agreement" in event["rejected"]["st-elisabeth"]
    assert one.error is None
    assert two.error is None  # its answer function would have raised


def _federation(path: Path) -> Federation:
    from wardround.config import load_federation

    return load_federation(path)
