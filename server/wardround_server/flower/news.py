"""Whether there can be a message for a hospital: an idle one's polls are answered without Flower while there cannot.

Flower looks a poll's key and messages up in its database, three transactions in threads of their own, whether or not
there is anything: 200 hospitals in a round would keep the coordinator busy with their asking alone. But nothing comes
into the database that no run has pushed, and every push passes here.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress

from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLL = "pull-messages"
PUSH = "/v1/runtime/push-messages"


class News:
    """An ASGI layer around the application that the runs' processes call.

    Args:
        app: Flower's application.
        waiting: messages in its database that nobody has fetched, by the node they are for.

    Attributes:
        pushed: these, and all that came after them.
    """

    def __init__(self, app: ASGIApp, waiting: Counter[int]) -> None:
        self._app, self.pushed = app, Counter(waiting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, and count its messages afterwards: who was told "nothing" before then asks Flower again."""
        if scope["type"] != "http" or scope["path"] != PUSH:
            return await self._app(scope, receive, send)
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
    """One hospital's polls.

    A poll takes one message out of Flower's database, and is told "nothing" as well when that one has lost its parts,
    as those of a round that ended without an answer have: another may wait behind it. So "nothing" is not believed
    before Flower was asked as often as there may be messages.

    Args:
        app: Flower's application.
        news: what the runs have pushed.
        node: the hospital's.
    """

    def __init__(self, app: ASGIApp, news: News, node: int) -> None:
        self._app, self._news, self._node = app, news, node
        self._pushed = self._left = 0
        self._asked: bytes | None = None
        self._nothing: list[Message] = []

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one: as Flower did when it said "nothing", if there can be no message in its database."""
        pushed = self._news.pushed[self._node]
        self._left, self._pushed = self._left + pushed - self._pushed, pushed
        if not self._left and body == self._asked:
            for part in self._nothing:
                await send(part)
            return
        answer: list[Message] = []

        async def kept(part: Message) -> None:
            answer.append(part)
            await send(part)

        taken = min(self._left, 1)
        self._left -= taken  # now, so that no other poll counts on the same message
        try:
            await self._app(scope, receive, kept)
        finally:
            if not _whole(answer):
                self._left += taken
            elif not any(part.get("body") for part in answer):  # protobuf writes no message with no bytes
                self._asked, self._nothing = body, answer


def _whole(answer: list[Message]) -> bool:
    """Whether it is a whole response, and none that refuses."""
    start, *rest = answer or [{}]
    return start.get("status") == 200 and bool(rest) and not rest[-1].get("more_body", False)
