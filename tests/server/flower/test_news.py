"""A poll that is answered without Flower hides no message, in whatever order polls and pushes are worked on.

Flower's own handler, over its own database, is asked too: what this test believes of it, it once did not do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
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
from wardround_server.flower.news import POLL, PUSH, REPEATS, News, Polls, keeping

NODES = (3, 2**63 + 5)
nodes, ticks = st.sampled_from(NODES), st.integers(0, 4)
push = st.tuples(st.sampled_from(["whole", "hollow"]), nodes, ticks, ticks, ticks)
poll = st.tuples(st.sampled_from(["poll", "failing", "unheard"]), nodes, ticks, ticks, ticks)
Call = tuple[str, int, int, int, int]


async def _ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Flower:
    """An inbox a node. A call looks into it some moments after it came, and is answered some moments later.

    A poll takes one message out, and brings nothing when that is hollow, which means that its parts are gone.
    """

    def __init__(self, old: int) -> None:
        self.inbox: dict[int, list[str]] = {node: [f"gone {number}" for number in range(old)] for node in NODES}
        self.store: set[str] = set()
        self.polls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, node = scope["kind"], scope["node"]
        await _ticks(scope["before"])
        answer = PullMessagesResponse()
        if scope["path"] == PUSH:
            await receive()
            await receive()
            self.inbox[node].append(scope["name"])
            self.store |= {scope["name"]} if kind == "whole" else set()
        else:
            self.polls += 1
            if kind == "failing":
                raise ConnectionError("busy")
            if self.inbox[node] and (name := self.inbox[node].pop(0)) in self.store:
                answer.messages_list.add(metadata=Metadata(message_id=name))
        await _ticks(scope["after"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer.SerializeToString()})


class Place:
    """Flower behind the layer, and a hospital for each node: one poll after another, but that it gives up waiting."""

    def __init__(self, old: int = 0) -> None:
        self.flower = Flower(old)
        self.news = News(self.flower, Counter(dict.fromkeys(NODES, old)))
        self.polls = {node: Polls(self.flower, self.news, self.flower.store, node) for node in NODES}
        self.delivered: dict[int, list[str]] = {node: [] for node in NODES}

    async def push(self, name: str, call: Call) -> None:
        kind, node, when, before, after = call
        await _ticks(when)
        scope = {"type": "http", "path": PUSH, "kind": kind, "node": node, "name": name}
        await self.news(scope | {"before": before, "after": after}, _push_to(node), _nowhere)

    async def hospital(self, calls: Sequence[Call]) -> None:
        given_up = []
        for call in calls:
            if call[0] == "unheard":
                given_up.append(asyncio.create_task(self.poll(call)))
            else:
                await self.poll(call)
        await asyncio.gather(*given_up)

    async def poll(self, call: Call) -> None:
        kind, node, when, before, after = call
        if kind != "unheard":
            await _ticks(when)
        scope: Scope = {"type": "http", "path": POLL, "kind": kind, "node": node, "before": before, "after": after}
        answer: list[Message] = []
        with suppress(ConnectionError):
            await self.polls[node].answer(b"%d" % node, scope, _receive, keeping(answer, _nowhere))
        for message in PullMessagesResponse.FromString(answer[1]["body"]).messages_list if answer else ():
            if kind != "unheard":
                self.delivered[node].append(message.metadata.message_id)
                self.polls[node].heard()


async def _nowhere(part: Message) -> None:
    pass


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
def test_every_message_is_delivered_once_by_as_many_polls_as_there_are_messages(calls: list[Call], old: int) -> None:
    polls = {node: [call for call in calls if call[1] == node and call[0] in ("poll", "failing")] for node in NODES}
    for node in NODES:  # each given up once in a while
        unheard = [call for call in calls if call[1] == node and call[0] == "unheard"][:REPEATS]
        polls[node] = [each for pair in zip_longest(polls[node], unheard) for each in pair if each]
    pushes = {f"m{number}": call for number, call in enumerate(calls) if call[0] in ("whole", "hollow")}

    async def play() -> None:
        place = Place(old)
        hospitals = [place.hospital(polls[node]) for node in NODES]
        await asyncio.gather(*hospitals, *(place.push(*push) for push in pushes.items()))
        for node in NODES:
            for _ in range(len(place.flower.inbox[node]) + 1):  # one may have been given and not heard
                await place.poll(("poll", node, 0, 0, 0))
            asked = [name for name, call in pushes.items() if call[:2] == ("whole", node)]
            assert sorted(place.delivered[node]) == sorted(asked)
        for _ in range(old + len(calls) + 1):  # nobody pushes any more: Flower is left alone in the end
            for node in NODES:
                await place.poll(("poll", node, 0, 0, 0))
        before = place.flower.polls
        for node in NODES:
            await place.poll(("poll", node, 0, 0, 0))
        assert place.flower.polls == before

    asyncio.run(play())


def test_a_message_that_nobody_goes_on_with_is_given_again_as_long_as_it_can_be_read() -> None:
    async def play() -> list[int]:
        place, asked = Place(), list[int]()
        await place.push("m", ("whole", NODES[0], 0, 0, 0))
        for number in range(REPEATS + 3):
            if number == gone:
                place.flower.store.clear()
            await place.poll(("unheard", NODES[0], 0, 0, 0))
            asked.append(place.flower.polls)
        return asked

    for gone in (2, 99):
        asked = asyncio.run(play())
        last = min(gone, REPEATS + 1)
        assert asked[:last] == [1] * last and asked[last] == 2, "a poll that repeats it is not Flower's"


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
        polls, got = Polls(flower, News(flower, Counter()), (), 1), list[Message]()

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
