"""A real coordinator under attack, honest hospitals that are threads of this process, and one that lies on order."""

from __future__ import annotations

import hashlib
import json
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.proto.node_pb2 import Node as PbNode
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from tests.questions import answer_size
from tests.rounds import TWO_COLUMNS
from tests.story.processes import environment

from wardround import bundle
from wardround.config import Federation, load_federation
from wardround.models import Model, build_model
from wardround.schedule import Schedule
from wardround.wire import ReplyHeader, RoundReply, peek_request
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.fleet import Coordinator, Session, Work, connect
from wardround_client.flower.node import Node
from wardround_flower import pack
from wardround_server.home import Home
from wardround_server.hospitals import Card, Registry
from wardround_server.office.hospitals import register_nodes

DEADLINE_S = 15.0  # idle waiting for five lies, and room for a busy machine
PATIENTS = 40


@dataclass
class Siege:
    """A coordinator that runs. process: `wardround coordinator up`."""

    home: Path
    process: subprocess.Popen[bytes]
    keys: dict[str, ec.EllipticCurvePrivateKey] = field(default_factory=dict)

    @property
    def port(self) -> int:
        """The hospitals'."""
        return int(Home(self.home).running()["fleet"])

    @property
    def coordinator(self) -> Coordinator:
        """As a hospital dials it."""
        return Coordinator(f"127.0.0.1:{self.port}", Home(self.home).tls.ca.read_bytes())

    def register(self, *names: str) -> None:
        """Register hospitals with fresh keys."""
        for name in names:
            self.keys[name] = ec.generate_private_key(ec.SECP384R1())
            public = self.keys[name].public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
            Registry(self.home).add(Card(name=name, public_key=public, declared_patients=PATIENTS))
        register_nodes(Home(self.home), int(Home(self.home).running()["admin"]))

    def memory_mib(self) -> float:
        """Resident memory of the coordinator's process now."""
        return _status_kib(self.process.pid, "VmRSS") / 1024

    def peak_mib(self) -> float:
        """The most that was resident since `forget_peak`."""
        return _status_kib(self.process.pid, "VmHWM") / 1024

    def forget_peak(self) -> None:
        """Measure the peak from now on (proc(5), clear_refs)."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def descriptors(self) -> int:
        """Open files of the coordinator's process."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def trusts(self) -> ssl.SSLContext:
        """A client's TLS context."""
        return ssl.create_default_context(cafile=str(Home(self.home).tls.ca))

    def dial(self, timeout_s: float = 120.0) -> ssl.SSLSocket:
        """A stranger's connection, after the handshake."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)
        return self.trusts().wrap_socket(plain, server_hostname="127.0.0.1")

    def is_well(self, within_s: float = 120.0) -> bool:
        """Whether a new connection is served, if it is tried again and again as a hospital does."""
        until = time.monotonic() + within_s
        while time.monotonic() < until:
            with suppress(OSError), self.dial() as line:
                line.sendall(b"GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                return line.recv(100).startswith(b"HTTP/1.1 200")
            threading.Event().wait(0.2)
        return False


def _status_kib(pid: int, key: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key + ":")).split()[1])


@contextmanager
def besieged(folder: Path, *, files: int | None = None, toml: str = "") -> Iterator[Siege]:
    """Start a coordinator, with `files` descriptors at most, and end it well."""
    wardround = [sys.executable, "-m", "wardround", "coordinator"]
    ports = ["--port", "0", "--admin-port", "0", "--health-port", "0"]
    subprocess.run([*wardround, "init", str(folder), *ports], check=True, env=environment(), capture_output=True)
    with (folder / "coordinator.toml").open("a") as file:
        file.write(toml)
    limited = ["prlimit", f"--nofile={files}:{files}"] if files else []
    process = subprocess.Popen([*limited, *wardround, "up", str(folder)], stdout=subprocess.PIPE, env=environment())
    assert process.stdout is not None
    try:
        with process.stdout:
            assert b"is up" in process.stdout.readline()
        yield Siege(folder, process)
        assert process.poll() is None, "the coordinator ended"
    finally:
        process.terminate()
        assert process.wait(300) == 0


def agreement(folder: Path, *, rounds: int, deadline_s: float = DEADLINE_S, model: str = "") -> Path:
    """A federation.toml about a table of two columns."""
    path = folder / "federation.toml"
    rules = f"[rounds]\nrounds = {rounds}\nquorum = 2\ndeadline_s = {deadline_s}\n"
    path.write_text(f'name = "siege"{TWO_COLUMNS}{rules}{model}')
    return path


class Answers:
    """What an honest hospital says, as far as a coordinator can tell: small numbers of the right kind."""

    def __init__(self, name: str, federation: Federation) -> None:
        self.name, self._federation = name, federation
        self.model: Model = build_model(federation)

    def __call__(self, request: bytes) -> bytes:
        return self.reply(request).pack()

    def reply(self, request: bytes, **changes: object) -> RoundReply:
        """The reply, with other fields in its header."""
        header = peek_request(request)
        plan = Schedule.of(self._federation)[header.round]
        seed = [header.round, *self.name.encode()]
        size = answer_size(plan.question, self.model)
        answer = 0.01 * np.random.default_rng(seed).normal(size=size)
        fields = {"run": header.run, "round": header.round, "hospital": self.name, "declared_patients": PATIENTS}
        return RoundReply(
            ReplyHeader.model_validate(fields | {"epsilon": 0.5} | changes), np.abs(answer).astype(np.float32)
        )


def approved(federation: Path) -> Callable[[], frozenset[str]]:
    """The bundle that a node lets pass."""
    digest = hashlib.sha256(bundle.build(load_federation(federation))).hexdigest()
    return lambda: frozenset({digest})


@contextmanager
def honest(siege: Siege, federation: Path, *names: str) -> Iterator[None]:
    """Registered hospitals' own nodes, in threads, until the end of the block."""
    stop, threads, agreed = threading.Event(), [], load_federation(federation)
    for name in names:
        memory = siege.home.parent / f"{name}.json"
        node = Node(siege.coordinator, siege.keys[name], Answers(name, agreed), approved(federation), memory)
        threads.append(threading.Thread(target=node.run, args=[stop], daemon=True))
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(300)


@dataclass
class Parts:
    """A reply as Flower sends it, to be changed. order: from the message down to a chunk; all: by their ids."""

    message: Message
    root: str
    tree: ObjectTree
    contents: dict[str, bytes]

    def head(self) -> Any:
        """The message without its content, under the id of the root."""
        self.message.metadata.__dict__["_message_id"] = self.root
        return message_to_proto(remove_content_from_message(self.message))


def parts_of(work: Work, blob: bytes) -> Parts:
    """An honest reply."""
    message = Message(pack(blob), reply_to=work.head)
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Parts(message, message.object_id, get_object_tree(message), contents)


def changed(parts: Parts, kind: str, change: Callable[[bytes], bytes], *, children: Sequence[str] = ()) -> Parts:
    """The reply with another body in its object of a class, and all ids above it mended; `children`: it has these."""
    contents, tree = dict(parts.contents), ObjectTree()
    tree.CopyFrom(parts.tree)
    chain = [tree]
    while chain[-1].children:
        chain.append(chain[-1].children[0])
    swapped: dict[str, str] = {}
    for node in reversed(chain):
        content = contents.pop(node.object_id)
        head, _, body = content.partition(b"\0")
        name, ids, _ = head.decode().split(" ")
        for before, after in swapped.items():
            ids, body = ids.replace(before, after), body.replace(before.encode(), after.encode())
        if name == kind:
            body = change(body)
            ids = ",".join(children) if children else ids
        made = f"{name} {ids} {len(body)}".encode() + b"\0" + body
        number = hashlib.sha256(made).hexdigest()
        swapped[node.object_id], node.object_id, contents[number] = number, number, made
    return Parts(parts.message, tree.object_id, tree, contents)


Lie = Callable[["Liar", Work, bytes], None]


class Liar:
    """A registered hospital that answers each request with the next of its lies, then honestly again and again."""

    def __init__(self, siege: Siege, name: str, federation: Path, lies: Sequence[Lie]) -> None:
        self.siege, self.name, self.lies = siege, name, list(lies)
        self.answers = Answers(name, load_federation(federation))
        self.stop = threading.Event()
        self.session: Session
        self.begin: Callable[..., Session]
        self.told: list[str] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Liar:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join(300)

    def _run(self) -> None:
        key = self.siege.keys[self.name]
        with connect(self.siege.coordinator, key, lambda: 1 << 30, Clock()) as client:
            self.begin = partial(Session.begin, client, key, self.siege.coordinator.address, clock=Clock())
            self.session = self.begin(number=None)
            while not self.stop.is_set():
                with suppress(Exception):  # whatever the coordinator makes of the last lie
                    work = self.session.poll()
                    if work is not None:
                        self._answer(work)
                self.stop.wait(0.1)
            self.session.end()

    def _answer(self, work: Work) -> None:
        fetched = self.session.fetch(work, 1 << 26)
        request = next(bytes(part) for part in fetched.values() if part.startswith(b"ArrayChunk ")).partition(b"\0")[2]
        blob = self.answers(request)
        lie = self.lies.pop(0) if self.lies else whole
        self.told.append(lie.__name__)
        lie(self, work, blob)

    def announce(self, parts: Parts, tree: ObjectTree | None = None) -> PushMessagesResponse:
        """PushMessages."""
        return self.session._client.PushMessages(
            PushMessagesRequest(
                node=PbNode(node_id=self.session.number),
                messages_list=[parts.head()],
                message_object_trees=[tree or parts.tree],
            )
        )

    def upload(self, run_id: int, session_id: str, number: str, content: bytes) -> bool:
        """PushObject -> whether it was kept."""
        return self.session._client.PushObject(
            PushObjectRequest(
                node=PbNode(node_id=self.session.number),
                run_id=run_id,
                session_id=session_id,
                object_id=number,
                object_content=content,
            )
        ).stored

    def send(self, work: Work, parts: Parts, *, but: Sequence[str] = ()) -> None:
        """Announce and upload all, but for the objects of some classes."""
        token = self.announce(parts).session_id
        for number, content in parts.contents.items():
            if content.split(b" ")[0].decode() not in but:
                self.upload(work.head.metadata.run_id, token, number, content)


def whole(liar: Liar, work: Work, blob: bytes) -> None:
    """An honest reply."""
    liar.send(work, parts_of(work, blob))


@dataclass
class Run:
    """`coordinator run` at work. events: as it printed them."""

    process: subprocess.Popen[str]
    events: list[dict[str, Any]] = field(default_factory=list)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Read events until one is wanted -> that one."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                self.events.append(json.loads(line))
                if wanted(self.events[-1]):
                    return self.events[-1]
        raise AssertionError(f"the run ended: {self.events}")

    def finish(self, timeout_s: float = 600.0) -> list[dict[str, Any]]:
        """Wait for its end -> its events."""
        out, err = self.process.communicate(timeout=timeout_s)
        assert "Traceback" not in out + err, out + err
        self.events += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert self.process.returncode == 0, out + err
        return self.events

    def rounds(self) -> list[dict[str, Any]]:
        """The rounds."""
        return [event for event in self.events if event["event"] == "round"]


def start_run(siege: Siege, federation: Path, name: str = "spring") -> Run:
    """Start a run once three nodes are there."""
    command = [sys.executable, "-m", "wardround", "coordinator", "run", str(siege.home), str(federation)]
    process = subprocess.Popen(
        [*command, "--run", name, "--wait", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    return Run(process)


def online(siege: Siege, *names: str, within_s: float = 300.0) -> None:
    """Wait until hospitals are connected."""
    from wardround_server.flower.control import ControlApi

    until = time.monotonic() + within_s
    with ControlApi(int(Home(siege.home).running()["admin"]), Home(siege.home).tls.ca) as control:
        while time.monotonic() < until:
            there = {number for number, seen in control.seen().items() if seen.status == "online"}
            if all(h.node_id in there for h in Registry(siege.home) if h.name in names):
                return
            threading.Event().wait(0.1)
    raise AssertionError(f"not connected: {names}")
