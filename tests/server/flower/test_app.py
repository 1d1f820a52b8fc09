"""The transport over a Flower Grid: names, failures, and a deadline that holds."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given
from hypothesis import strategies as st
from tests.server.conftest import FakeHospital, a_federation
from tests.server.test_hospitals import card

from wardround.errors import ConfigError, FederationError, MessageError
from wardround.wire import RequestHeader, RoundRequest
from wardround_flower import pack, unpack
from wardround_server.checkpoint import Checkpointer
from wardround_server.flower import transport as transport_module
from wardround_server.flower.app import HOME, app
from wardround_server.flower.transport import LOT, PUSHES, GridTransport
from wardround_server.hospitals import Member

# A Message takes run and sender from this process-wide identity; a ServerApp process gets it from Flower.
TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class FakeGrid(Grid):
    """Replies as `answers` says, by node id: bytes, an Error, or None for silence."""

    def __init__(self, hospitals: dict[int, FakeHospital | Error | None]) -> None:
        self.members, self.pending, self.pushed = hospitals, dict[str, Message](), 0

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *_: object, **__: object) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> Iterable[int]:
        return list(self.members)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            self.pushed += 1
            message.metadata.__dict__["_message_id"] = identity = f"m{self.pushed}"
            member = self.members[message.metadata.dst_node_id]
            identities.append(identity)
            if isinstance(member, Error):
                self.pending[identity] = Message(member, reply_to=message)
                self.pending[identity].metadata.__dict__["_src_node_id"] = 1  # as Flower does for a dead node
            elif member is not None:
                reply = member(unpack(message.content))
                assert isinstance(reply, bytes)
                self.pending[identity] = Message(pack(reply), reply_to=message)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self.pending.pop(identity) for identity in list(message_ids) if identity in self.pending]

    def send_and_receive(self, *_: object, **__: object) -> Iterable[Message]:
        raise NotImplementedError


def registered(**nodes: int) -> dict[int, Member]:
    return {node: Member(**card(name).model_dump(), node_id=node) for name, node in nodes.items()}


def test_names_come_from_the_registry_and_failures_find_their_hospital() -> None:
    federation = a_federation()
    blob = b"x" * 10
    grid = FakeGrid({11: Error(4, "gone"), 12: None, 13: Error(2, "raised")})
    transport = GridTransport(grid, lambda: registered(anna=11, bert=12), everybody=True)
    assert transport.hospitals() == ["13", "anna", "bert"]
    assert transport.declared_patients("anna") == 100
    assert transport.declared_patients("13") is None
    started = time.monotonic()
    outcomes = dict(transport.exchange(dict.fromkeys(["anna", "bert", "13"], blob), deadline_s=0.3))
    assert time.monotonic() - started < 60
    assert set(outcomes) == {"anna", "13"}
    assert all(isinstance(outcome, FederationError) for outcome in outcomes.values())
    assert "gone" in str(outcomes["anna"])
    assert federation.rounds.quorum == 2


def test_only_members_are_asked_and_they_are_looked_up_each_round() -> None:
    grid = FakeGrid({11: None, 12: None, 13: None})
    members = registered(anna=11, bert=12)
    transport = GridTransport(grid, lambda: members)
    assert transport.hospitals() == ["anna", "bert"]
    del members[12]
    assert transport.hospitals() == ["anna"]
    assert transport.declared_patients("bert") is None


def test_a_hospital_that_is_removed_after_it_was_asked_is_not_believed() -> None:
    members = registered(anna=11, bert=12)
    federation = a_federation()
    grid = FakeGrid({11: FakeHospital("anna", federation), 12: FakeHospital("bert", federation)})
    transport = GridTransport(grid, lambda: members)
    transport.hospitals()
    request = RoundRequest(
        RequestHeader(run="spring", federation=federation.digest, round=0),
        *(np.ones(size, np.float32) for size in (6, 2, 2)),
    ).pack()
    outcomes = {}
    for name, outcome in transport.exchange(dict.fromkeys(["anna", "bert"], request), deadline_s=30):
        outcomes[name] = outcome
        members.pop({"anna": 12, "bert": 11}[name], None)  # the other one
    first, second = outcomes.values()
    assert isinstance(first, bytes)
    assert isinstance(second, FederationError)
    assert "not registered any more" in str(second)


def status(code: int) -> httpx.HTTPStatusError:
    response = httpx.Response(code, request=httpx.Request("POST", "https://127.0.0.1/v1/runtime/push-messages"))
    return httpx.HTTPStatusError(str(code), request=response.request, response=response)


@pytest.mark.parametrize("how", [ObjectPushError("part", 1, "session"), status(500)])
@pytest.mark.parametrize("refusals", range(PUSHES + 1))
def test_requests_that_were_not_taken_whole_are_sent_again_and_at_last_nobody_was_asked(
    refusals: int, how: Exception
) -> None:
    class Busy(FakeGrid):
        refused = 0

        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            seen.update(message.object_id for message in messages)
            if self.refused < refusals:
                self.refused += 1
                raise how
            return super().push_messages(messages)

    seen = set[str]()
    grid = Busy({11: Error(4, "gone"), 12: Error(4, "gone")})
    transport = GridTransport(grid, lambda: registered(anna=11, bert=12))
    transport.hospitals()
    outcomes = dict(transport.exchange(dict.fromkeys(["anna", "bert"], b"x"), deadline_s=600))
    assert set(outcomes) == {"anna", "bert"} and len(seen) == 2 * min(refusals + 1, PUSHES)
    assert all(("could not be sent" in str(each)) is (refusals == PUSHES) for each in outcomes.values())


def test_requests_go_in_lots_and_one_that_cannot_be_sent_keeps_no_other_back() -> None:
    class Busy(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            if any(message.metadata.dst_node_id == 11 for message in messages):
                raise ObjectPushError("part", 1, "session")
            return super().push_messages(messages)

    names = {f"h{node}": node for node in range(10, 40)}
    transport = GridTransport(Busy(dict.fromkeys(names.values(), Error(4, "gone"))), lambda: registered(**names))
    transport.hospitals()
    outcomes = dict(transport.exchange(dict.fromkeys(names, b"x"), deadline_s=600))
    assert set(outcomes) == set(names)
    assert sum("could not be sent" in str(each) for each in outcomes.values()) == LOT


class Clock:
    """Stands for `time`: it moves when somebody sleeps, or says that something took long."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.integers(1, 40), st.floats(0, 1.9), st.floats(1, 30), st.floats(0.1, 0.99) | st.floats(1.1, 1.5))
def test_the_deadline_is_counted_from_the_last_request(
    each: int, push_s: float, deadline_s: float, late: float
) -> None:
    """Pushing takes its time; each hospital answers when a part of its deadline has gone since the last push."""
    clock, lived = Clock(), dict[str, float]()

    class Slow(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            messages = list(messages)
            clock.sleep(push_s * len(messages))
            identities = list(super().push_messages(messages))
            lived.update(
                {
                    identity: clock.now + message.metadata.ttl
                    for identity, message in zip(identities, messages, strict=True)
                }
            )
            self.pushed_at = clock.now
            return identities

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages(message_ids) if clock.now >= self.pushed_at + late * deadline_s else []

    names = {f"h{node}": node for node in range(10, 10 + each)}
    grid = Slow(dict.fromkeys(names.values(), Error(4, "gone")))
    transport = GridTransport(grid, lambda: registered(**names))
    transport.hospitals()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport_module, "time", clock)
        answered = dict(transport.exchange(dict.fromkeys(names, b"x"), deadline_s))
    assert set(answered) == (set(names) if late <= 1 else set())
    assert min(lived.values()) - push_s * LOT >= grid.pushed_at + deadline_s, (
        "Flower forgot a request before its deadline"
    )


def test_who_is_not_allowed_to_push_any_more_ends() -> None:
    class Dead(FakeGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            raise status(401)

    transport = GridTransport(Dead({11: None}), lambda: registered(anna=11))
    transport.hospitals()
    with pytest.raises(httpx.HTTPStatusError):
        list(transport.exchange({"anna": b"x"}, deadline_s=600))


def test_it_does_not_wait_for_the_deadline_when_all_have_answered() -> None:
    transport = GridTransport(FakeGrid({11: Error(4, "gone")}), lambda: registered(anna=11))
    transport.hospitals()
    started = time.monotonic()
    assert len(list(transport.exchange({"anna": b"x"}, deadline_s=600))) == 1
    assert time.monotonic() - started < 300


def test_content_that_is_not_ours_is_a_message_error() -> None:
    assert unpack(pack(b"blob")) == b"blob"
    for content in (
        RecordDict(),
        RecordDict({"wardround": ArrayRecord({"other": Array(np.zeros(1))})}),
        RecordDict({"wardround": ArrayRecord({"blob": Array(np.zeros(3, np.float32))})}),
        RecordDict({"wardround": ArrayRecord({"blob": Array(np.zeros((2, 2), np.uint8))})}),
    ):
        with pytest.raises(MessageError):
            unpack(content)


def context(**run_config: str | bool) -> Context:
    return Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=dict(run_config))


def play(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: str, **more: bool
) -> list[dict[str, object]]:
    monkeypatch.setenv(HOME, str(tmp_path))
    try:
        app(grid, context(federation=config, run="spring", **more))
    finally:
        path = tmp_path / "runs" / "spring" / "events.jsonl"
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return events


def test_a_whole_run_writes_its_events_and_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = a_federation(rounds=2)
    grid = FakeGrid({11: FakeHospital("anna", federation), 12: FakeHospital("bert", federation), 13: Error(4, "gone")})
    events = play(grid, tmp_path, monkeypatch, federation.canonical())
    assert [event["event"] for event in events] == ["start", "round", "round", "round", "done"]
    assert [event["replied"] for event in events[1:-1]] == [2, 2, 2]
    assert (tmp_path / "runs" / "spring" / "checkpoint.safetensors").exists()


def test_how_a_run_failed_is_its_last_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = a_federation(rounds=2)
    members: dict[int, FakeHospital | Error | None] = {11: FakeHospital("anna", federation), 12: Error(4, "gone")}
    with pytest.raises(FederationError):
        play(FakeGrid(members), tmp_path, monkeypatch, federation.canonical())
    events = [json.loads(line) for line in (tmp_path / "runs" / "spring" / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["start", "missed", "failed"]
    assert events[-1]["error"] == "QuorumMissed"
    assert events[-1]["exit_code"] == 6
    assert "gone" in events[-1]["message"]

    members[12] = FakeHospital("bert", federation)
    events = play(FakeGrid(members), tmp_path, monkeypatch, federation.canonical(), resume=True)
    assert events[-1]["event"] == "done"


def test_a_run_that_is_going_on_is_not_told_that_it_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround_server.checkpoint.PATIENCE_S", 0.0)
    federation = a_federation(rounds=2)
    with Checkpointer(tmp_path / "runs" / "spring").held(), pytest.raises(FederationError, match="going on already"):
        play(FakeGrid({}), tmp_path, monkeypatch, federation.canonical())
    assert (tmp_path / "runs" / "spring" / "events.jsonl").read_text() == ""


@pytest.mark.parametrize("text", ["", "{}", "not json"])
def test_a_bundle_without_a_federation_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(ConfigError):
        play(FakeGrid({}), tmp_path, monkeypatch, text)
