"""Whether there can be a message for a hospital: an idle one's polls are answered without Flower while there cannot.

Flower looks a poll's key and messages up in its database, three transactions in threads of their own, whether or not
there is anything: 200 hospitals in a round would keep the coordinator busy with their asking alone. But nothing comes
into the database that no run has pushed, and every push passes here.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from flwr.proto.fleet_pb2 import PullMessagesResponse
from flwr.proto.runtime_pb2 import PullAppMessagesResponse, PushAppMessagesRequest
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLL = "pull-messages"
PUSH, LOOK = "/v1/runtime/push-messages", "/v1/runtime/pull-messages"
REPEATS = 3
"""Of one message to a hospital that does nothing with it."""


class Store(Protocol):
    """Where Flower keeps the parts of messages."""

    def __contains__(self, object_id: str) -> bool:
        """Whether a part, or a message, is there."""
        ...


class News:
    """An ASGI layer around the application that the runs' processes call.

    Args:
        app: Flower's application.
        waiting: messages in its database that nobody has fetched, by the node they are for.

    Attributes:
        pushed: these, and all that came after them.
        unseen: messages whose replies are announced, and which no run has heard of yet.
    """

    def __init__(self, app: ASGIApp, waiting: Counter[int]) -> None:
        self._app, self.pushed = app, Counter(waiting)
        self.unseen: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, and look at what it brought afterwards."""
        if scope["type"] == "http" and scope["path"] == PUSH:
            await self._push(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == LOOK and self.unseen:
            await self._look(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _look(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: list[Message] = []
        await self._app(scope, receive, keeping(answer, send))
        with suppress(DecodeError):
            heard = PullAppMessagesResponse.FromString(body_of(answer)).messages_list
            self.unseen.difference_update(message.metadata.reply_to_message_id for message in heard)

    async def _push(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count afterwards: who was told "nothing" before then asks Flower again."""
        body = bytearray()

        async def heard() -> Message:
            part = await receive()
            body.extend(part.get("body", b""))
            return part

        try:
            await self._app(scope, heard, send)
        finally:
            with suppress(DecodeError):  # Flower refuses it as well
                pushed = PushAppMessagesRequest.FromString(bytes(body)).messages_list
                self.pushed.update(message.metadata.dst_node_id for message in pushed)


class Polls:
    """One hospital's polls, one after another.

    A poll takes one message out of Flower's database, and is told "nothing" as well when that one has lost its parts,
    as those of a round that ended without an answer have: another may wait behind it. So "nothing" is not believed
    before Flower was asked as often as there may be messages. And Flower gives a message once, heard or not: one that
    a hospital does not go on with is given again at its next poll.

    Args:
        app: Flower's application.
        news: what the runs have pushed.
        store: of what it can still read.
        node: the hospital's.
    """

    def __init__(self, app: ASGIApp, news: News, store: Store, node: int) -> None:
        self._app, self._news, self._store, self._node = app, news, store, node
        self._one = asyncio.Lock()  # who waited too long asks again while Flower still works on the first
        self._pushed = self._left = self._repeats = 0
        self._asked: bytes | None = None
        self._nothing: list[Message] = []
        self._unheard: list[Message] = []

    def heard(self) -> None:
        """The hospital goes on with what it was given last."""
        self._unheard = []

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one: anew what was not heard; as Flower did when it said "nothing", if there can be no message."""
        async with self._one:
            pushed = self._news.pushed[self._node]
            self._left, self._pushed = self._left + pushed - self._pushed, pushed
            if self._unheard and self._repeats < REPEATS and _message_of(self._unheard) in self._store:
                self._repeats += 1
                await say(self._unheard, send)
            elif not self._left and body == self._asked:
                await say(self._nothing, send)
            else:
                await self._ask(body, scope, receive, send)

    async def _ask(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        answer: list[Message] = []
        try:
            await self._app(scope, receive, keeping(answer, send))
        finally:
            if whole(answer):
                self._left = max(0, self._left - 1)
                if body_of(answer):
                    self._unheard, self._repeats = answer, 0
                else:  # protobuf writes no message with no bytes
                    self._asked, self._nothing = body, answer


def keeping(answer: list[Message], send: Send) -> Send:
    """Sends, and keeps what it sent."""

    async def kept(part: Message) -> None:
        answer.append(part)
        await send(part)

    return kept


def whole(answer: Sequence[Message]) -> bool:
    """Whether it is a whole response, and none that refuses."""
    start, *rest = answer or [{}]
    return start.get("status") == 200 and bool(rest) and not rest[-1].get("more_body", False)


async def say(answer: Sequence[Message], send: Send) -> None:
    """Send a response that was kept."""
    for part in answer:
        await send(part)


def body_of(answer: Sequence[Message]) -> bytes:
    """Of a response that was kept."""
    return b"".join(part.get("body", b"") for part in answer)


def _message_of(answer: Sequence[Message]) -> str:
    """The id of the message in it; "" if there is none."""
    with suppress(DecodeError):
        for message in PullMessagesResponse.FromString(body_of(answer)).messages_list:
            return message.metadata.message_id
    return ""
