"""Whether there can be a message for a hospital: an idle one's polls are answered without Flower while there cannot.

Flower looks a poll's key and messages up in its database, three transactions in threads of their own, whether or not
there is anything: 200 hospitals in a round would keep the coordinator busy with their asking alone. But nothing comes
into the database that no run has pushed, and every push passes here.
"""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLL = "pull-messages"
PUSH = "/v1/runtime/push-messages"


class News:
    """An ASGI layer around the application that the runs' processes call. pushes: how often one has pushed."""

    def __init__(self, app: ASGIApp) -> None:
        self._app, self.pushes = app, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on, and count it afterwards: who was told "nothing" before then asks Flower again."""
        try:
            await self._app(scope, receive, send)
        finally:
            if scope["type"] == "http" and scope["path"] == PUSH:
                self.pushes += 1


class Polls:
    """One hospital's polls.

    Args:
        app: Flower's application.
        news: whether a run has pushed anything.
    """

    def __init__(self, app: ASGIApp, news: News) -> None:
        self._app, self._news = app, news
        self._asked: tuple[bytes, int] | None = None
        self._nothing: list[Message] = []

    async def answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one: as the last time, if that found nothing for the same question and nothing was pushed since."""
        asked = body, self._news.pushes
        if asked == self._asked:
            for part in self._nothing:
                await send(part)
            return
        answer: list[Message] = []

        async def kept(part: Message) -> None:
            answer.append(part)
            await send(part)

        await self._app(scope, receive, kept)
        self._asked, self._nothing = (asked, answer) if _says_nothing(answer) else (None, [])


def _says_nothing(answer: list[Message]) -> bool:
    """Whether it is a whole response without a message, which protobuf writes with no bytes."""
    start, *rest = answer or [{}]
    whole = bool(rest) and not rest[-1].get("more_body", False)
    return start.get("status") == 200 and whole and not any(part.get("body") for part in rest)
