"""The real daemon on the wire with a coordinator that lies: it refuses by name, stays small, stays up, runs no code."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.message_pb2 import Message as PbMessage
from flwr.proto.message_pb2 import ObjectTree, PullObjectResponse
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile.attack import bundle_with
from tests.hostile.fleet import HostileFleet, Offer, Reply, offer, send, send_zeros, varint
from tests.hostile.nodes import Besieged, besieged
from tests.rounds import read, request

import wardround_client.flower.fleet
import wardround_client.flower.node
from wardround.wire import peek_reply, request_bytes
from wardround_client.flower.app import CANNOT_ANSWER, ERROR_CODE, NOT_A_MESSAGE
from wardround_client.flower.node import NOT_APPROVED, TOO_LARGE

Attack = Callable[[BaseHTTPRequestHandler, bytes], bool]
GB = 1 << 30


@pytest.fixture(scope="module")
def siege(attacked_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    with besieged(attacked_home, tmp_path_factory.mktemp("siege")) as besieged_hospital:
        yield besieged_hospital


@pytest.fixture
def under(siege: Besieged, monkeypatch: pytest.MonkeyPatch) -> Iterator[Besieged]:
    """The daemon before an attack; after it the ledger is unmoved, and a good message is answered."""
    monkeypatch.setattr(wardround_client.flower.node, "FIRST_WAIT_S", 0.02)
    monkeypatch.setattr(wardround_client.flower.node, "LONGEST_WAIT_S", 0.1)
    before = siege.ledger_entries()
    yield siege
    siege.fleet.override.clear()
    siege.fleet.waiting.clear()
    assert siege.ledger_entries() == before
    run = f"after-{before}"
    reply = siege.fleet.ask(offer(request(siege.agreement, 0, run=run), siege.bundle))
    assert reply.blob is not None, reply
    assert np.isfinite(read(siege.agreement, reply.blob, 0, run=run).answer).all()
    assert siege.ledger_entries() == before + 2


def error_of(reply: Reply) -> tuple[int, str]:
    assert reply.blob is None
    assert reply.error is not None
    return reply.error


@contextmanager
def small(limit_mib: int = 64) -> Iterator[None]:
    """This process, which holds the daemon and the attacker, needs no more memory than this beyond what it had."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak starts anew (proc(5))
    before = _peak_kib()
    yield
    assert _peak_kib() - before < limit_mib * 1024


def _peak_kib() -> int:
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


# Code.


@pytest.mark.parametrize("name", ["evil.py", "wardround/__init__.py", "wardround_client/round.py", "sitecustomize.py"])
def test_a_bundle_with_code_is_never_fetched_unpacked_or_imported(under: Besieged, tmp_path: Path, name: str) -> None:
    marker = tmp_path / "marker"
    fab = bundle_with({name: f"open({str(marker)!r}, 'w').write('here')\n", "pyproject.toml": "[project]\n"})
    modules = {key: id(module) for key, module in sys.modules.items() if key.startswith("wardround")}
    path = list(sys.path)
    before = len(under.fleet.calls)
    reply = under.fleet.ask(offer(request(under.agreement, 0, run="evil"), hashlib.sha256(fab).hexdigest()))
    assert error_of(reply)[1] == NOT_APPROVED
    # Under the hash of the approved bundle the answer is made by the hospital's own code, whatever lies behind it.
    under.fleet.override["get-fab"] = lambda handler, body: send(handler, fab)
    refused = under.fleet.ask(offer(request(under.agreement, 99, run="evil"), under.bundle))
    assert refused.blob is not None
    assert peek_reply(refused.blob).refusal is not None
    assert not any(call.path.endswith("get-fab") for call in under.fleet.calls[before:])
    assert not marker.exists()
    assert sys.path == path
    assert {key: id(module) for key, module in sys.modules.items() if key.startswith("wardround")} == modules
    assert not list(under.daemon.home.rglob(Path(name).name))


def test_the_node_has_no_way_to_fetch_a_bundle() -> None:
    for module in (wardround_client.flower.node, wardround_client.flower.fleet):
        source = Path(str(module.__file__)).read_text()
        for word in ("GetFab", "zipfile", "importlib", "__import__", "exec(", "eval(", "pickle", "subprocess"):
            assert word not in source


@pytest.mark.parametrize(
    "bundle", ["", "0" * 64, "../../approved", "A" * 64, "\x00"], ids=["none", "zeros", "path", "upper", "nul"]
)
def test_an_unknown_bundle_is_refused_by_name(under: Besieged, bundle: str) -> None:
    code, text = error_of(under.fleet.ask(offer(request(under.agreement, 0, run="x"), bundle)))
    assert (code, text) == (wardround_client.flower.fleet.INVALID_BUNDLE, NOT_APPROVED)


@pytest.mark.parametrize("kind", ["train", "evaluate", "query", "query.other", "train.wardround", "system"])
def test_a_message_of_another_type_is_refused_and_costs_nothing(under: Besieged, kind: str) -> None:
    before = under.daemon.hospital.ledger.entries()
    blob = request(under.agreement, 0, run=f"type-{kind}")
    code, _ = error_of(under.fleet.ask(offer(blob, under.bundle, kind=kind)))
    assert code == wardround_client.flower.app.ERROR_CODE
    assert under.daemon.hospital.ledger.entries() == before


# Size.


def test_a_theta_of_2_gb_is_refused_by_name_and_never_held(under: Besieged) -> None:
    """Whether it says so (content-length) or not (chunked), with an approved bundle or without."""
    model = under.agreement.model
    assert under.daemon._largest_request() == request_bytes(model.layout.size, model.scaling_size)
    taken: list[int] = []

    def flood(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        prefix = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
        # Field 3, 2 GB of bytes: a protobuf that is what it says it is.
        prefix += bytes([3 << 3 | 2]) + varint(2 * GB)
        taken.append(send_zeros(handler, 2 * GB, prefix=prefix, chunked=len(taken) % 2 == 1))
        return True

    under.fleet.override["pull-object"] = flood
    with small():
        for bundle, expected in ((under.bundle, TOO_LARGE), (under.bundle, TOO_LARGE), ("0" * 64, NOT_APPROVED)):
            code, text = error_of(under.fleet.ask(offer(request(under.agreement, 0, run="big"), bundle)))
            assert text == expected
            assert code == (ERROR_CODE if expected == TOO_LARGE else wardround_client.flower.fleet.INVALID_BUNDLE)
        under.fleet.until(lambda: len(taken) >= 3)
    assert max(taken) < 64 << 20  # the rest stayed in the attacker's hands and the kernel's buffers


@pytest.mark.parametrize("path", ["pull-messages", "get-run", "confirm-message-received", "push-messages"])
def test_no_answer_of_2_gb_is_held(under: Besieged, path: str) -> None:
    taken: list[int] = []

    def flood(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        taken.append(send_zeros(handler, 2 * GB))
        return True

    under.fleet.override[path] = flood
    with small():
        under.fleet.send(offer(request(under.agreement, 99, run="big"), under.bundle))
        under.fleet.until(lambda: bool(taken))
    assert taken[0] < 64 << 20


def test_a_compressed_answer_is_not_unpacked(under: Besieged) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    assert len(bomb) < 100_000
    asked: list[str] = []

    def explode(handler: BaseHTTPRequestHandler, body: bytes) -> bool:
        asked.append(handler.headers["accept-encoding"])
        return send(handler, bomb, content_encoding="gzip")

    under.fleet.override["pull-object"] = explode
    with small(32):
        assert error_of(under.fleet.ask(offer(request(under.agreement, 0, run="zip"), under.bundle)))[1] == TOO_LARGE
    assert set(asked) == {"identity"}


def test_a_small_message_that_unfolds_to_2_gb_is_refused(under: Besieged) -> None:
    message = offer(b"x" * 100_000, under.bundle)
    for name, content in message.parts.items():
        if content.startswith(b"Array "):
            head, _, body = content.partition(b"\0")
            metadata = json.loads(body) | {"arraychunk_ids": [0] * 20_000, "shape": [2 * GB]}
            text = json.dumps(metadata).encode()
            message.parts[name] = head.rpartition(b" ")[0] + b" %d\0" % len(text) + text
    with small():
        assert error_of(under.fleet.ask(message))[1] == TOO_LARGE


def test_a_message_of_endless_parts_is_refused(under: Besieged) -> None:
    message = offer(request(under.agreement, 0, run="x"), under.bundle)
    message.tree = ObjectTree(object_id=message.tree.object_id, children=[ObjectTree(object_id="0")] * 100_000)
    before = len(under.fleet.calls)
    assert error_of(under.fleet.ask(message))[1] == TOO_LARGE
    assert not any(call.path.endswith("pull-object") for call in under.fleet.calls[before:])


# Form.


def _records() -> dict[str, RecordDict]:
    blob = np.frombuffer(b"hello world", np.uint8)
    return {
        "nothing": RecordDict(),
        "a numpy array": RecordDict({"wardround": ArrayRecord({"blob": Array(blob)})}),
        "another name": RecordDict({"fab": ArrayRecord({"blob": Array(blob)})}),
        "a configuration": RecordDict({"wardround": ConfigRecord({"seed": 1, "noise": 0.0})}),
        "pickle": RecordDict({"wardround": ArrayRecord({"blob": Array("uint8", (3,), "pickle", b"\x80\x04.")})}),
        "a shape that lies": RecordDict(
            {"wardround": ArrayRecord({"blob": Array("uint8", ((1 << 31) - 1,), "wardround.blob", b"abc")})}
        ),
        "a dtype with a line break": RecordDict(
            {"wardround": ArrayRecord({"blob": Array("uint8\nERROR all is lost", (3,), "wardround.blob", b"abc")})}
        ),
    }


@pytest.mark.parametrize("name", _records())
def test_content_that_is_none_of_ours_gets_a_fixed_text(under: Besieged, name: str) -> None:
    reply = under.fleet.ask(offer(_records()[name], under.bundle))
    assert error_of(reply) == (ERROR_CODE, NOT_A_MESSAGE)


def _each(message: Offer, change: Callable[[bytes], bytes]) -> None:
    message.parts = {name: change(content) for name, content in message.parts.items()}


def _within_itself(message: Offer) -> None:
    (name,) = [name for name, content in message.parts.items() if content.startswith(b"RecordDict")]
    message.parts[name] = f"RecordDict {name} 2\0{{}}".encode()


BROKEN: dict[str, Callable[[Offer], None]] = {
    "parts of zeros": lambda message: _each(message, lambda content: bytes(len(content))),
    "empty parts": lambda message: _each(message, lambda content: b""),
    "another class": lambda message: _each(message, lambda content: content.replace(b"Array ", b"os.system ", 1)),
    "an array without chunks": lambda message: _each(message, lambda c: c.replace(b"arraychunk_ids", b"chunks")),
    "a part within itself": _within_itself,
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_are_no_message_get_a_fixed_text(under: Besieged, name: str) -> None:
    message = offer(request(under.agreement, 0, run="x"), under.bundle)
    BROKEN[name](message)
    assert error_of(under.fleet.ask(message))[1] in (CANNOT_ANSWER, NOT_A_MESSAGE)


def _pulls(*, head: PbMessage | None, tree: ObjectTree | None) -> bytes:
    return PullMessagesResponse(
        messages_list=[head] if head is not None else [], message_object_trees=[tree] if tree is not None else []
    ).SerializeToString()


def _lie_once(fleet: HostileFleet, path: str, body: bytes) -> threading.Event:
    """Have the next call of a path answered with this body, and those after it honestly -> set once it was."""
    lied = threading.Event()

    def lie(handler: BaseHTTPRequestHandler, _: bytes) -> bool:
        if lied.is_set():
            return False
        lied.set()
        return send(handler, body)

    fleet.override[path] = lie
    return lied


@pytest.mark.parametrize(
    "body",
    [
        b"\xff" * 100,
        b"<html>proxy</html>",
        _pulls(head=PbMessage(), tree=None),
        _pulls(head=PbMessage(), tree=ObjectTree()),
        bytes([2 << 3 | 2, 200]),
    ],
    ids=["bytes", "html", "no tree", "empty", "truncated"],
)
def test_an_answer_to_the_poll_that_is_none_leaves_the_node_up(under: Besieged, body: bytes) -> None:
    under.fleet.until(_lie_once(under.fleet, "pull-messages", body).is_set)


@settings(max_examples=25)
@given(path=st.sampled_from(["pull-messages", "get-run", "pull-object", "push-messages"]), body=st.binary(max_size=60))
def test_random_answers_leave_the_node_up(siege: Besieged, path: str, body: bytes) -> None:
    """Each call once answered with random bytes; then an honest refusal still comes back."""
    lied = _lie_once(siege.fleet, path, body)
    if path != "pull-messages":
        siege.fleet.send(offer(request(siege.agreement, 99, run="x"), siege.bundle))
    siege.fleet.until(lied.is_set)
    siege.fleet.override.clear()
    reply = siege.fleet.ask(offer(request(siege.agreement, 98, run="y"), siege.bundle))
    assert reply.blob is not None or reply.error is not None


def test_a_message_that_can_never_be_understood_does_not_block_those_behind_it(under: Besieged) -> None:
    poisoned = offer(request(under.agreement, 99, run="x"), under.bundle)
    lied: list[int] = []

    def lie(handler: BaseHTTPRequestHandler, _: bytes) -> bool:
        if under.fleet.current is not poisoned:
            return False
        lied.append(1)
        return send(handler, b"\xff" * 10)

    under.fleet.override["get-run"] = lie
    under.fleet.send(poisoned)
    under.fleet.until(lambda: bool(lied))
    reply = under.fleet.ask(offer(request(under.agreement, 98, run="y"), under.bundle))
    assert reply.blob is not None
    assert len(lied) == 1


def test_a_version_that_does_not_fit_does_not_end_the_program(under: Besieged, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower's own interceptor ends the process, by force after 5 s, when an error's body says so."""
    import flwr.supercore.exit as flower_exit
    from flwr.supercore.error import ApiErrorCode

    def ended(*_: object, **__: object) -> None:
        raise AssertionError("the coordinator ended the daemon")

    monkeypatch.setattr(flower_exit, "flwr_exit", ended)
    text = json.dumps({"code": int(ApiErrorCode.RUNTIME_VERSION_INCOMPATIBLE), "detail": "go away"}).encode()
    seen = threading.Event()

    def lie(handler: BaseHTTPRequestHandler, _: bytes) -> bool:
        seen.set()
        return send(handler, text, status=412)

    for path in ("pull-messages", "send-node-heartbeat"):
        under.fleet.override[path] = lie
    under.fleet.until(seen.is_set)
    under.fleet.until(lambda: "does not fit" in under.daemon.feed.describe().link_detail)
    assert not any("force_exit" in thread.name for thread in threading.enumerate())


def test_a_redirect_is_not_followed(under: Besieged) -> None:
    """Neither into the hospital's network nor anywhere else than to the coordinator that was joined."""
    with socket.socket() as inside:
        inside.bind(("127.0.0.1", 0))
        inside.listen()
        inside.setblocking(False)
        seen = threading.Event()

        def elsewhere(handler: BaseHTTPRequestHandler, _: bytes) -> bool:
            seen.set()
            port = inside.getsockname()[1]
            return send(handler, b"", status=307, location=f"http://127.0.0.1:{port}/pacs/delete")

        under.fleet.override["pull-messages"] = elsewhere
        under.fleet.until(seen.is_set)
        under.fleet.until(lambda: "307" in under.daemon.feed.describe().link_detail)
        with pytest.raises(BlockingIOError):
            inside.accept()


def test_attacks_on_a_round_are_refused_over_the_wire_too(under: Besieged) -> None:
    """One of each kind that the in-process suite knows; the blob that leaves is a refusal and nothing else."""
    for blob, error, rule in (
        (request(under.agreement, 1, run="w", theta=1e30), "PolicyRefusal", "policy.greatest_magnitude"),
        (request(under.agreement, 1, run="w", theta=float("nan")), "MessageError", ""),
        (request(under.agreement, 99, run="w"), "PolicyRefusal", "approved"),
        (b"", "MessageError", ""),
        (b"\0" * 500, "MessageError", ""),
    ):
        reply = under.fleet.ask(offer(blob, under.bundle))
        assert reply.blob is not None
        refusal = peek_reply(reply.blob).refusal
        assert refusal is not None
        assert (refusal.error, refusal.rule) == (error, rule)


def test_the_fleet_here_is_the_one_that_the_node_knows(siege: Besieged) -> None:
    """The suite's own ground: with no attack, a whole schedule is answered."""
    assert isinstance(siege.fleet, HostileFleet)
    for plan in siege.agreement.schedule.rounds:
        reply = siege.fleet.ask(offer(request(siege.agreement, plan.number, run="honest"), siege.bundle))
        assert reply.blob is not None
        assert peek_reply(reply.blob).refusal is None
