"""Everything that ever leaves a hospital, field by field, and where each comes from.

P1: "an adversary who sees everything that ever left this hospital". The tables below ARE that everything: a
field that exists and is not named here fails a test. Each value says which mechanism or which public constant it comes
from; `arrived` is what the coordinator itself sent, `declared` stands in hospital.toml or the approved federation.toml.
"""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.proto import fleet_pb2, heartbeat_pb2, message_pb2, run_pb2
from google.protobuf.descriptor import Descriptor
from pydantic import BaseModel
from tests.hostile.attack import Victim, taken_apart
from tests.hostile.conftest import make_home
from tests.hostile.fleet import offer
from tests.hostile.nodes import Besieged, besieged
from tests.rounds import request

import wardround_client.flower.fleet
import wardround_client.service.daemon
from wardround.wire import ReplyHeader, peek_reply
from wardround_client.flower.app import CANNOT_ANSWER, NOT_A_MESSAGE
from wardround_client.flower.node import NOT_APPROVED, TOO_LARGE
from wardround_client.privacy import mechanism
from wardround_client.round import answer

# The tables.

REPLY_ARRAYS = {
    "answer": "THE delta: noised sums (Gaussian mechanism, paid in the ledger) and what post-processing makes of them",
}
REPLY_HEADER = {
    "ReplyHeader.version": "constant of the code",
    "ReplyHeader.kind": "constant of the code",
    "ReplyHeader.run": "arrived",
    "ReplyHeader.round": "arrived",
    "ReplyHeader.hospital": "declared: hospital.name",
    "ReplyHeader.declared_patients": "declared: hospital.declared_patients",
    "ReplyHeader.epsilon": "the accountant, from declared numbers and the schedule",
    "ReplyHeader.refusal": "whether a rule was broken: declared and arrived numbers, and the ledger's public state",
    "Refusal.error": "name of a class in wardround.errors, or InternalError",
    "Refusal.rule": "constant of the code",
    "Refusal.asked": "arrived or declared",
    "Refusal.allowed": "declared",
}
WIRE = {
    "ActivateNodeRequest.public_key": "the node's key, registered before; has nothing to do with patients",
    "ActivateNodeRequest.heartbeat_interval": "constant of the code",
    "DeactivateNodeRequest.node_id": "arrived",
    "SendNodeHeartbeatRequest.node": "arrived",
    "SendNodeHeartbeatRequest.heartbeat_interval": "constant of the code",
    "PullMessagesRequest.node": "arrived",
    "PullMessagesRequest.message_ids": "never sent",
    "GetRunRequest.node": "arrived",
    "GetRunRequest.run_id": "arrived",
    "PullObjectRequest.node": "arrived",
    "PullObjectRequest.run_id": "arrived",
    "PullObjectRequest.object_id": "arrived",
    "ConfirmMessageReceivedRequest.node": "arrived",
    "ConfirmMessageReceivedRequest.run_id": "arrived",
    "ConfirmMessageReceivedRequest.message_object_id": "arrived",
    "PushMessagesRequest.node": "arrived",
    "PushMessagesRequest.messages_list": "see Message",
    "PushMessagesRequest.message_object_trees": "see ObjectTree",
    "PushMessagesRequest.clientapp_runtime_list": "constant of the code: 0, never how long an answer took",
    "PushObjectRequest.node": "arrived",
    "PushObjectRequest.run_id": "arrived",
    "PushObjectRequest.object_id": "SHA-256 of object_content",
    "PushObjectRequest.object_content": "the reply's blob, and Flower's fixed form around it",
    "PushObjectRequest.session_id": "arrived",
    "Node.node_id": "arrived",
    "Message.metadata": "see Metadata",
    "Message.content": "never sent: empty, the content goes as objects",
    "Message.error": "see Error",
    "Metadata.run_id": "arrived",
    "Metadata.message_id": "SHA-256 of the reply",
    "Metadata.src_node_id": "arrived",
    "Metadata.dst_node_id": "arrived",
    "Metadata.reply_to_message_id": "arrived",
    "Metadata.group_id": "arrived",
    "Metadata.ttl": "arrived, less the time since: timing is not defended",
    "Metadata.message_type": "arrived",
    "Metadata.created_at": "the clock: timing is not defended",
    "Metadata.src_task_id": "arrived",
    "Metadata.dst_task_id": "arrived",
    "Error.code": "constant of the code",
    "Error.reason": "constant of the code: one of ERROR_TEXTS",
    "ObjectTree.object_id": "SHA-256 of the reply's parts",
    "ObjectTree.children": "see ObjectTree; as many as the reply's length asks for",
}
HTTP_HEADERS = {
    "host": "the coordinator's own address",
    "accept": "constant of the code",
    "accept-encoding": "constant of the code",
    "connection": "constant of the code",
    "user-agent": "version of httpx",
    "content-type": "constant of the code",
    "content-length": "the body's length",
    "flwr-public-key": "the node's key, registered before",
    "flwr-timestamp": "the clock: timing is not defended",
    "flwr-signature": "of the clock, by the node's key",
    "flwr-package-name": "constant of the code",
    "flwr-package-version": "version of Flower",
    "flwr-component-name": "constant of the code",
}
PATHS = {
    "/v1/fleet/activate-node",
    "/v1/fleet/deactivate-node",
    "/v1/fleet/send-node-heartbeat",
    "/v1/fleet/pull-messages",
    "/v1/fleet/get-run",
    "/v1/fleet/pull-object",
    "/v1/fleet/confirm-message-received",
    "/v1/fleet/push-messages",
    "/v1/fleet/push-object",
}
IDLE = ("pull-messages", "heartbeat", "activate-node")  # how often these come is the clock's
ERROR_TEXTS = {NOT_APPROVED, TOO_LARGE, NOT_A_MESSAGE, CANNOT_ANSWER}
UNWANTED = re.compile(r"loss|accura|num_examples|histogram|clip_fraction|count|metric|seconds|duration|log|trace|stack")


# Every field is named.


def test_every_field_of_a_reply_is_named() -> None:
    found: set[str] = set()

    def walk(model: type[BaseModel]) -> None:
        for name, info in model.model_fields.items():
            found.add(f"{model.__name__}.{name}")
            for inner in (info.annotation, *getattr(info.annotation, "__args__", ())):
                if isinstance(inner, type) and issubclass(inner, BaseModel):
                    walk(inner)

    walk(ReplyHeader)
    assert found == set(REPLY_HEADER)
    assert not [name for name in found if UNWANTED.search(name.partition(".")[2])]


def test_every_field_of_every_protobuf_that_the_node_sends_is_named() -> None:
    found: set[str] = set()

    def walk(descriptor: Descriptor) -> None:
        for entry in descriptor.fields:
            name = f"{descriptor.name}.{entry.name}"
            if name not in found:
                found.add(name)
                if entry.message_type is not None and not WIRE.get(name, "").startswith("never sent"):
                    walk(entry.message_type)

    source = Path(str(wardround_client.flower.fleet.__file__)).read_text()
    modules = (fleet_pb2, heartbeat_pb2, message_pb2, run_pb2)
    sent = [
        getattr(module, name)
        for module in modules
        for name in module.DESCRIPTOR.message_types_by_name
        if name.endswith("Request") and (re.search(rf"\b{name}\b", source) or name in _BY_FLOWERS_HELPERS)
    ]
    assert {message.DESCRIPTOR.name for message in sent} == {
        name.partition(".")[0] for name in WIRE if "Request" in name
    }
    for message in sent:
        walk(message.DESCRIPTOR)
    assert found == set(WIRE)


_BY_FLOWERS_HELPERS = {"PullObjectRequest", "PushObjectRequest", "ConfirmMessageReceivedRequest"}


@pytest.fixture(scope="module")
def homes(attacked_home: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same hospital, as it declares itself, with cohorts that it does not tell of."""
    base = tmp_path_factory.mktemp("cohorts")
    return {
        "40 patients": attacked_home,
        "one patient less": make_home(base / "neighbour" / "home", 39),
        "other patients": make_home(base / "others" / "home", 61, seed=9, ill=0.1),
        "few patients": make_home(base / "few" / "home", 4, seed=2),
        "one patient": make_home(base / "alone" / "home", 1),
        "one class": make_home(base / "uniform" / "home", 40, ill=0.0),
    }


@dataclass(frozen=True)
class Sent:
    """A whole schedule on the wire: (path, bytes) of every call that belongs to a message, sorted; and its replies."""

    sizes: list[tuple[str, int]]
    blobs: list[bytes]


@pytest.fixture(scope="module")
def sent(homes: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Sent]:
    """On the wire; a daemon does not start on a cohort that no model can learn from."""
    able = {name: home for name, home in homes.items() if not name.startswith("one ") or name.endswith("less")}
    return {name: _whole_run(home, tmp_path_factory.mktemp("sent")) for name, home in able.items()}


def _whole_run(home: Path, folder: Path) -> Sent:
    with besieged(home, folder) as hospital:
        blobs = []
        for plan in hospital.agreement.schedule.rounds:
            reply = hospital.fleet.ask(offer(request(hospital.agreement, plan.number), hospital.bundle))
            assert reply.blob is not None, reply
            blobs.append(reply.blob)
        _every_call_is_named(hospital)
        sizes = sorted((c.path, len(c.body)) for c in hospital.fleet.calls if not c.path.endswith(IDLE))
    return Sent(sizes, blobs)


def _every_call_is_named(hospital: Besieged) -> None:
    for call in hospital.fleet.calls:
        assert call.path in PATHS, "a call that the table does not name"
        assert set(call.headers) == set(HTTP_HEADERS), call.headers
        assert not set(call.headers) & {"cookie", "authorization"}
        if call.path.endswith("push-messages"):
            pushed = fleet_pb2.PushMessagesRequest.FromString(call.body)
            assert list(pushed.clientapp_runtime_list) == [0.0]
            (head,) = pushed.messages_list
            assert head.content.ByteSize() == 0
            assert not head.HasField("error") or head.error.reason in ERROR_TEXTS
        if call.path.endswith("pull-messages"):
            assert not fleet_pb2.PullMessagesRequest.FromString(call.body).message_ids
        if call.path.endswith("push-object"):
            content = message_pb2.PushObjectRequest.FromString(call.body).object_content
            kind = content.partition(b" ")[0]
            assert kind in (b"Message", b"RecordDict", b"ArrayRecord", b"Array", b"ArrayChunk")


def test_every_call_header_and_field_on_the_wire_is_named_and_every_table_row_is_real(sent: dict[str, Sent]) -> None:
    assert len(sent) == 4  # `_every_call_is_named` ran over each
    paths = {path for each in sent.values() for path, _ in each.sizes}
    assert paths == {path for path in PATHS if not path.endswith(IDLE)}


def test_a_blob_holds_one_array_and_one_header(sent: dict[str, Sent]) -> None:
    for each in sent.values():
        for blob in each.blobs:
            outer, data = taken_apart(blob)
            assert set(outer) == {"__metadata__", *REPLY_ARRAYS}
            assert set(outer["__metadata__"]) == {"wardround"}
            assert len(data) == 4 * math.prod(outer["answer"]["shape"])


# Nothing of it depends on the data.


def test_what_is_sent_has_the_same_sizes_and_counts_whatever_the_cohort(sent: dict[str, Sent]) -> None:
    """P47: "per-round timing and message size"."""
    sizes = {name: each.sizes for name, each in sent.items()}
    assert sizes["40 patients"]
    for name, each in sizes.items():
        assert each == sizes["40 patients"], name


def test_all_but_the_noised_numbers_is_the_same_to_the_last_byte(sent: dict[str, Sent]) -> None:
    """P46: "loss or accuracy in a reply; num_examples; class histogram; clip fraction; [...] label set"."""

    def around(blob: bytes) -> bytes:
        return blob[: len(blob) - len(taken_apart(blob)[1])]

    for name, each in sent.items():
        assert [around(blob) for blob in each.blobs] == [around(blob) for blob in sent["40 patients"].blobs], name
    assert [peek_reply(blob).declared_patients for blob in sent["few patients"].blobs] == [40] * 5


def test_before_the_noise_nothing_private_leaves_and_after_it_nothing_private_enters(
    homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a public constant in the place of the noised sum, every reply is the same to the last byte.

    P8, P53: "N in q, in the denominator or in delta", "early stopping on private values", "adaptive clipping on raw
    norms": sampling rates, noise, their number and all that follows are the same for every cohort.
    """
    seen: dict[str, tuple[list[bytes], list[Any]]] = {}
    sample = mechanism.poisson_sample
    for name, home in homes.items():
        asked: list[Any] = []

        def constant(total: torch.Tensor, std: float, asked: list[Any] = asked) -> torch.Tensor:
            asked.append(("noise", std, tuple(total.shape)))
            return torch.linspace(-1, 2, total.numel())

        def recorded(n: int, rate: float, asked: list[Any] = asked) -> torch.Tensor:
            asked.append(("sample", rate))
            return sample(n, rate)

        monkeypatch.setattr(mechanism, "noised", constant)
        monkeypatch.setattr(mechanism, "poisson_sample", recorded)
        victim = Victim.of(home)
        replies = [
            answer(victim.hospital, request(victim.agreement, plan.number)) for plan in victim.agreement.schedule.rounds
        ]
        assert all(peek_reply(reply).refusal is None for reply in replies)
        seen[name] = replies, asked
    for name, each in seen.items():
        assert each == seen["40 patients"], name
    assert (
        len([entry for entry in seen["one patient"][1] if entry[0] == "noise"]) == 10
    )  # about nobody, and about somebody


def test_the_ledger_is_the_same_whatever_the_cohort(homes: dict[str, Path]) -> None:
    """P8: "nothing computed from the true count enters q, the denominator, or delta"."""

    def prices(home: Path) -> list[object]:
        victim = Victim.of(home)
        for plan in victim.agreement.schedule.rounds:
            answer(victim.hospital, request(victim.agreement, plan.number))
        keys = ("kind", "rows", "delta", "epsilon_after", "bytes", "size")
        return [[entry.body.get(key) for key in keys] for entry in victim.hospital.ledger.entries()]

    expected = prices(homes["40 patients"])
    assert len(expected) == 10
    for name, home in homes.items():
        assert prices(home) == expected, name


def test_a_reply_grid_holds_a_reply_to_whole_multiples(victim: Victim, monkeypatch: pytest.MonkeyPatch) -> None:
    """P55: "per-round timing": reduced by policy.reply_grid_s, not removed."""
    waits: list[float] = []

    class Stop:
        def wait(self, timeout: float) -> bool:
            waits.append(timeout)
            return False

    hospital = victim.hospital
    daemon = wardround_client.service.daemon.Daemon.__new__(wardround_client.service.daemon.Daemon)
    daemon.hospital, daemon.stop = hospital, Stop()  # type: ignore[assignment]
    monkeypatch.setattr(time, "monotonic", lambda: 100.3)
    daemon._wait_for_grid(100.0)
    assert waits == []  # off unless it is asked for
    policy = hospital.config.policy.model_copy(update={"reply_grid_s": 2.0})
    hospital.config = hospital.config.model_copy(update={"policy": policy})
    for came in (100.0, 98.4, 100.3):
        daemon._wait_for_grid(came)
    assert np.allclose(waits, [1.7, 0.1, 0.0])
