"""A poll that is answered without Flower hides no message, in whatever order polls and pushes are worked on.

Flower's own handler, over its own database, is asked too: what this test believes of it, it once did not do.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.app import Message as FlowerMessage
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.servicer.fleet.fleet_handlers import pull_messages
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from wardround_server.flower.database import undelivered
from wardround_server.flower.news import POLL, PUSH, News, Polls

NODES = (3, 2**63 + 5)
nodes, ticks = st.sampled_from(NODES), st.integers(0, 4)
push = st.tuples(st.sampled_from(["whole", "hollow"]), nodes, ticks, ticks, ticks)
poll = st.tuples(st.sampled_from(["poll", "failing"]), nodes, ticks, ticks, ticks)


async def _ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Flower:
    """An inbox a node. A call looks into it some moments after it came, and is answered some moments later.

    A poll takes one message out, and brings nothing when that is hollow, which means that its parts are gone.
    """

    def __init__(self, old: int) -> None:
        self.inbox = {node: ["hollow"] * old for node in NODES}
        self.polls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, node = scope["kind"], scope["node"]
        await _ticks(scope["before"])
        body = b""
        if scope["path"] == PUSH:
            await receive()
            await receive()
            self.inbox[node].append(kind)
        else:
            self.polls += 1
            if kind == "failing":
                raise ConnectionError("busy")
            if self.inbox[node] and self.inbox[node].pop(0) == "whole":
                body = b"m"
        await _ticks(scope["after"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Place:
    def __init__(self, old: int = 0) -> None:
        self.flower = Flower(old)
        self.news = News(self.flower, Counter(dict.fromkeys(NODES, old)))
        self.polls = {node: Polls(self.flower, self.news, node) for node in NODES}
        self.delivered = defaultdict[int, int](int)

    async def call(self, kind: str, node: int, when: int, before: int, after: int) -> None:
        await _ticks(when)
        path = POLL if kind in ("poll", "failing") else PUSH
        scope: Scope = {"type": "http", "path": path, "kind": kind, "node": node, "before": before, "after": after}
        if path == PUSH:
            await self.news(scope, _push_to(node), self._sender(node, count=False))
        else:
            with suppress(ConnectionError):
                await self.polls[node].answer(b"%d" % node, scope, _receive, self._sender(node, count=True))

    def _sender(self, node: int, *, count: bool) -> Callable[[Message], asyncio.Future[None]]:
        async def send(part: Message) -> None:
            self.delivered[node] += len(part.get("body", b"")) * count

        return send  # type: ignore[return-value]


def _push_to(node: int) -> Receive:
    """A request with a message for the node, in two pieces."""
    push = PushAppMessagesRequest(messages_list=[ProtoMessage(metadata=Metadata(dst_node_id=node))]).SerializeToString()
    pieces = iter([push[:5], push[5:]])

    async def receive() -> Message:
        return {"type": "http.request", "body": next(pieces)}

    return receive


async def _receive() -> Message:
    raise AssertionError("the body was read before")


@given(st.lists(push | poll, max_size=40), st.integers(0, 5))
def test_every_message_is_delivered_by_as_many_polls_as_there_are_messages(
    calls: list[tuple[str, int, int, int, int]], old: int
) -> None:
    async def play() -> None:
        place = Place(old)
        await asyncio.gather(*(place.call(*each) for each in calls))
        for node in NODES:
            for _ in range(len(place.flower.inbox[node])):
                await place.call("poll", node, 0, 0, 0)
            assert place.delivered[node] == sum(each[:2] == ("whole", node) for each in calls)
        for _ in range(old + len(calls) + 1):  # nobody pushes any more: Flower is left alone in the end
            for node in NODES:
                await place.call("poll", node, 0, 0, 0)
        before = place.flower.polls
        for node in NODES:
            await place.call("poll", node, 0, 0, 0)
        assert place.flower.polls == before

    asyncio.run(play())


def test_what_is_not_flowers_nothing_is_asked_again() -> None:
    nothing: list[Message] = [{"type": "http.response.start", "status": 200}, {"type": "http.response.body"}]
    answers: list[list[Message]] = [
        [],  # it hung up
        nothing[:1],
        [nothing[0], {"type": "http.response.body", "more_body": True}],
        [nothing[0], {"type": "http.response.body", "body": b"m"}],
        [{"type": "http.response.start", "status": 401}, nothing[1]],
        nothing,
    ]
    asked = iter(answers)

    async def flower(scope: Scope, receive: Receive, send: Send) -> None:
        for part in next(asked):
            await send(part)

    async def play() -> list[Message]:
        polls, got = Polls(flower, News(flower, Counter()), 1), list[Message]()

        async def send(part: Message) -> None:
            got.append(part)

        for _ in range(len(answers)):
            await polls.answer(b"q", {}, _receive, send)
        assert list(asked) == []
        got.clear()
        await polls.answer(b"q", {}, _receive, send)
        return got

    assert asyncio.run(play()) == nothing


def test_contract_with_flower_an_answer_without_messages_has_no_bytes() -> None:
    assert PullMessagesResponse().SerializeToString() == b""


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # alembic's, of Flower's settings
@pytest.mark.parametrize("hollow", [0, 1, 3])
def test_contract_with_flower_a_message_without_parts_is_a_poll_that_brings_nothing(
    hollow: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its handler over its database. A message waits behind those of rounds that ended without this hospital."""
    database, objects = tmp_path / "superlink.db", ObjectStoreFactory(":flwr-in-memory:")
    assert undelivered(database) == {}
    state: Any = LinkStateFactory(str(database), NoOpFederationManager(), objects).state()
    run = state.create_run(*(None, None, "0" * 64, {}, NOOP_FEDERATION_ID, None, None, TaskType.SERVER_APP))
    for name, value in {"_task_id": 1, "_run_id": run, "_node_id": SUPERLINK_NODE_ID}.items():
        monkeypatch.setattr(TaskIdentity, name, value)
    node = state.create_node("anna", "anna", b"key", 30.0)
    state.activate_node(node, 30.0)
    sent = []
    for number in range(hollow + 1):
        message = FlowerMessage(RecordDict({"c": ConfigRecord({"round": number})}), node, "train", ttl=100.0)
        message.metadata.__dict__["_message_id"] = message.object_id
        session = state.start_session(run)
        assert state.store_message_and_object_tree(message, get_object_tree(message), session)[0]
        sent.append(message.object_id)
    for identity in sent[:hollow]:
        objects.store().delete(identity)
    assert undelivered(database) == {node: hollow + 1}
    pull = PullMessagesRequest(node=Node(node_id=node))
    answers = [pull_messages(pull, state, objects.store()).SerializeToString() for _ in range(hollow + 2)]
    assert [bool(answer) for answer in answers] == [False] * hollow + [True, False]
    assert undelivered(database) == {}
