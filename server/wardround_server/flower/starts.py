"""How often a run's process is started: Flower by itself would do it for ever.

Flower gives a process 30 s from its start (AcquireTask) until it asks for its run (PullTaskInput); if it is late,
another is started, and the late one is refused. On a machine that is too busy each new process delays the next. One
that did begin and is not heard of for 60 s is taken for dead, and its run has failed: it is not started again. So at
most one process works on a run. One that was only stopped still holds the lock of the run's folder, and nobody resumes
the run until it has ended, which it does at its next call.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from flwr.proto.runtime_pb2 import AcquireTaskResponse
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wardround.text import counted
from wardround_server.flower.news import body_of, say

ACQUIRE = "/v1/runtime/acquire-task"
MOST_STARTS = 5
log = logging.getLogger(__name__)


class Starts:
    """An ASGI layer around the application that SuperExec asks for runs to start.

    Args:
        app: Flower's application.
        fail: ends a task that is not finished, with a sentence.
    """

    def __init__(self, app: ASGIApp, fail: Callable[[int, str], None]) -> None:
        self._app, self._fail, self._starts = app, fail, Counter[int]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on; a task that was given out too often is failed, and SuperExec is told that there is none."""
        if scope["type"] != "http" or scope["path"] != ACQUIRE:
            await self._app(scope, receive, send)
            return
        answer: list[Message] = []

        async def kept(part: Message) -> None:
            answer.append(part)

        await self._app(scope, receive, kept)
        task = _given_out(body_of(answer))
        if task is not None:
            self._starts[task] += 1
            if self._starts[task] > MOST_STARTS:
                why = (
                    f"its process was started {counted(MOST_STARTS, 'time')} and never began: this machine is too busy"
                )
                log.error("a run is given up: %s", why)
                await asyncio.to_thread(self._fail, task, why)
                answer = _empty(answer)
        await say(answer, send)


def _given_out(body: bytes) -> int | None:
    """Which task SuperExec is to start."""
    try:
        answer = AcquireTaskResponse.FromString(body)
    except DecodeError:
        return None
    return int(answer.task.task_id) if answer.HasField("task") and answer.token else None


def _empty(answer: list[Message]) -> list[Message]:
    """The same answer without a task: protobuf writes it with no bytes."""
    start = dict(answer[0])
    start["headers"] = [
        (name, b"0" if name.lower() == b"content-length" else value) for name, value in start["headers"]
    ]
    return [start, {"type": "http.response.body", "body": b""}]
