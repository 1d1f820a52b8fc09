"""A poll that is answered without Flower hides no message, in whatever order polls and pushes are worked on."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable

from flwr.proto.fleet_pb2 import PullMessagesResponse
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message, Receive, Scope, Send

from wardround_server.flower.news import POLL, PUSH, News, Polls

NODES = (b"anna", b"bert")
ticks = st.integers(0, 4)
push = st.tuples(st.just("push"), st.sampled_from(NODES), ticks, ticks, ticks)
poll = st.tuples(st.just("poll"), st.sampled_from(NODES), ticks, ticks, ticks)


async def _ticks(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Flower:
    """An inbox a node. A call looks into it some moments after it came, and is answered some moments later."""

    def __init__(self) -> None:
        self.inbox = defaultdict[bytes, int](int)
        self.polls = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        node, before, after = scope["node"], scope["before"], scope["after"]
        await _ticks(before)
        body = b""
        if scope["path"] == PUSH:
            self.inbox[node] += 1
        else:
            self.polls += 1
            body, self.inbox[node] = b"m" * self.inbox[node], 0
        await _ticks(after)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})


class Place:
    def __init__(self) -> None:
        self.flower = Flower()
        self.news = News(self.flower)
        self.polls = {node: Polls(self.flower, self.news) for node in NODES}
        self.delivered = defaultdict[bytes, int](int)

    async def call(self, kind: str, node: bytes, when: int, before: int, after: int) -> None:
        await _ticks(when)
        path = PUSH if kind == "push" else POLL
        scope: Scope = {"type": "http", "path": path, "node": node, "before": before, "after": after}
        if kind == "push":
            await self.news(scope, _receive, self._sender(node, count=False))
        else:
            await self.polls[node].answer(node, scope, _receive, self._sender(node, count=True))

    def _sender(self, node: bytes, *, count: bool) -> Callable[[Message], asyncio.Future[None]]:
        async def send(part: Message) -> None:
            self.delivered[node] += len(part.get("body", b"")) * count

        return send  # type: ignore[return-value]


async def _receive() -> Message:
    raise AssertionError("the body was read before")


@given(st.lists(push | poll, max_size=30))
def test_every_message_is_delivered_by_the_next_poll(calls: list[tuple[str, bytes, int, int, int]]) -> None:
    async def play() -> None:
        place = Place()
        await asyncio.gather(*(place.call(*each) for each in calls))
        pushed = {node: sum(each[:2] == ("push", node) for each in calls) for node in NODES}
        for node in NODES:
            await place.call("poll", node, 0, 0, 0)
            assert place.delivered[node] == pushed[node]
        for _ in range(20):  # nobody pushes any more: Flower is asked once more at most, for the answer "nothing"
            await place.call("poll", node, 0, 0, 0)
        before = place.flower.polls
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
        polls, got = Polls(flower, News(flower)), list[Message]()

        async def send(part: Message) -> None:
            got.append(part)

        for _ in answers:
            await polls.answer(b"q", {}, _receive, send)
        got.clear()
        await polls.answer(b"q", {}, _receive, send)
        return got

    assert asyncio.run(play()) == nothing
    assert list(asked) == []


def test_contract_with_flower_an_answer_without_messages_has_no_bytes() -> None:
    assert PullMessagesResponse().SerializeToString() == b""
