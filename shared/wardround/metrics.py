"""Numbers for Prometheus: its text format, and a small server of it on loopback that no caller can harm.

The format is https://prometheus.io/docs/instrumenting/exposition_formats/ (text, 0.0.4). Every process of this machine
can read it, so only what is public anyway may stand in it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from wardround.errors import PortInUse
from wardround.text import shown

LOOPBACK, PATH = "127.0.0.1", "/metrics"
HEAD_BYTES, MOST_CALLERS, CALLER_S, FRESH_S = 8192, 8, 5.0, 1.0
_TYPE = "text/plain; version=0.0.4; charset=utf-8"
Kind = Literal["gauge", "counter"]
Samples = Mapping[tuple[str, ...], float]
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """name: without labels; that of a counter ends in _total. help: a sentence. samples: labels' values -> number."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()
    samples: Samples = field(default_factory=dict)

    @classmethod
    def one(cls, name: str, kind: Kind, help: str, value: float) -> Metric:
        """A metric without labels."""
        return cls(name, kind, help, (), {(): value})

    def lines(self) -> Iterator[str]:
        """As Prometheus reads it."""
        yield f"# HELP {self.name} {self.help}"
        yield f"# TYPE {self.name} {self.kind}"
        for values, number in self.samples.items():
            pairs = ",".join(f'{name}="{_escaped(value)}"' for name, value in zip(self.labels, values, strict=True))
            yield f"{self.name}{f'{{{pairs}}}' if pairs else ''} {_number(number)}"


def text(metrics: Iterable[Metric]) -> str:
    """All of them, with the line's end that the format asks for."""
    return "".join(f"{line}\n" for metric in metrics for line in metric.lines())


def _escaped(value: str) -> str:
    return shown(value).replace("\\", "\\\\").replace('"', '\\"')


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"


@contextlib.contextmanager
def serving(port: int, read: Callable[[], Sequence[Metric]]) -> Iterator[int]:
    """Serve `read`'s metrics on loopback, in a thread of its own, for as long as this lasts -> the port.

    port: 0 takes any free one. What `read` raises is a 500, and a line in the log. At most MOST_CALLERS are served at
    once, each for CALLER_S at most, and others are turned away; a request's head has HEAD_BYTES at most. `read` is
    called once in FRESH_S at most.

    Raises: PortInUse.
    """
    try:
        listener = socket.create_server((LOOPBACK, port), backlog=16)
    except OSError as error:
        raise PortInUse(
            f"port {port} for metrics cannot be taken ({error.strerror})", do="set another operations.metrics_port"
        ) from None
    server = _Server(listener, read)
    server.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        server.end()


class _Server(threading.Thread):
    def __init__(self, listener: socket.socket, read: Callable[[], Sequence[Metric]]) -> None:
        super().__init__(name="metrics", daemon=True)
        self._listener, self._read, self._callers = listener, read, 0
        self._loop = asyncio.new_event_loop()
        self._over, self._reading = asyncio.Event(), asyncio.Lock()
        self._body, self._read_at = "", -math.inf

    def run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    def end(self) -> None:
        """Hang up."""
        self._loop.call_soon_threadsafe(self._over.set)
        self.join(CALLER_S)

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._caller, sock=self._listener, limit=HEAD_BYTES)
        await self._over.wait()
        server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _caller(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._callers += 1
        try:
            if self._callers <= MOST_CALLERS:
                async with asyncio.timeout(CALLER_S):
                    writer.write(await self._answer(reader))
                    await writer.drain()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # slow, gone, or no request at all
        finally:
            self._callers -= 1
            writer.transport.abort() if writer.transport.get_write_buffer_size() else writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, _, rest = head[0].partition(" ")
        fields = dict(line.lower().partition(":")[::2] for line in head[1:] if ":" in line)
        port = self._listener.getsockname()[1]
        # A page of another site whose name was pointed here names itself, and not us (DNS rebinding).
        if fields.get("host", "").strip() not in {f"{name}:{port}" for name in (LOOPBACK, "localhost")}:
            return _response("421 Misdirected Request", "")
        if rest.partition(" ")[0] != PATH:
            return _response("404 Not Found", "")
        if method not in ("GET", "HEAD"):
            return _response("405 Method Not Allowed", "")
        try:
            body = await self._fresh()
        except Exception:
            log.exception("the metrics could not be read")
            return _response("500 Internal Server Error", "")
        return _response("200 OK", body, head_only=method == "HEAD")

    async def _fresh(self) -> str:
        async with self._reading:
            if self._loop.time() - self._read_at >= FRESH_S:
                self._body, self._read_at = text(await asyncio.to_thread(self._read)), self._loop.time()
            return self._body


def _response(status: str, body: str, head_only: bool = False) -> bytes:
    content = body.encode()
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {_TYPE}\r\nContent-Length: {len(content)}\r\n"
        "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + (b"" if head_only else content)
