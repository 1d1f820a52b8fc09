"""The port of a page: on loopback, for processes of one user, with bounds on connections, headers and patience."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround.errors import PortInUse
from wardround.terminal import emit, say
from wardround.web.guard import Guard, Session
from wardround.web.peers import TABLES, owner_of_peer

LOOPBACK = "127.0.0.1"
CONNECTIONS, HEAD_BYTES = 64, 16_384
WAITING_S, REQUEST_S = 10.0, 900.0
"""How long a connection may be silent before a request, and how long a request may last: events stream for less."""
LOOK_S, ENDING_S = 1.0, 5
"""How often that is looked at, and how long a request that is answered when the command ends has for its end."""


def serve(app: ASGIApp, port: int, *, as_json: bool) -> None:
    """Serve the pages until SIGTERM, or until SIGINT, which raises KeyboardInterrupt when all is tidied up.

    Who typed the command is told the link when it can be opened, and what else there is to know.

    Args:
        app: the pages, below the area of a session that begins here.
        port: 0 takes a free one.
        as_json: the link as an object, and nothing else.

    Raises: PortInUse.
    """
    session = Session()

    def ready(link: str) -> None:
        if as_json:
            emit(event="page", link=link)
            return
        say("Open this link in a browser of this machine. It works once:\n")
        say(f"{link}\n")
        say("Ctrl-C ends the page.")

    def tell(line: str) -> None:
        if not as_json:
            say(line)

    with listening(port) as listener:
        real = int(listener.getsockname()[1])
        server = server_of(Guard(app, session, real, tell))
        asyncio.run(_serve(server, listener, session, lambda: ready(f"http://{LOOPBACK}:{real}{session.link}")))


@contextmanager
def listening(port: int) -> Iterator[socket.socket]:
    """A socket on loopback; 0 takes any port. Raises: PortInUse."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
            listener.listen(CONNECTIONS)
        except (OSError, OverflowError) as error:
            why = error.strerror if isinstance(error, OSError) else "no port has this number"
            raise PortInUse(f"port {port} of this machine cannot be taken ({why})", do="name another --port") from None
        yield listener


async def _serve(server: uvicorn.Server, listener: socket.socket, session: Session, ready: Callable[[], None]) -> None:
    heard: list[signal.Signals] = []

    def end(kind: signal.Signals) -> None:
        heard.append(kind)
        session.ends = server.should_exit = True

    loop = asyncio.get_running_loop()
    for kind in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(kind, end, kind)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(0.01)
    if not serving.done():
        ready()
    await serving
    if signal.SIGINT in heard:
        raise KeyboardInterrupt


def users() -> set[int]:
    """Whose processes are answered: this process' user, root, and who started it by sudo as another user."""
    by_sudo = os.environ.get("SUDO_UID", "")
    return {os.getuid(), 0} | ({int(by_sudo)} if by_sudo.isascii() and by_sudo.isdigit() else set())


class _Quiet(uvicorn.Server):
    """A server that leaves the signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def server_of(app: ASGIApp) -> uvicorn.Server:
    """Uvicorn with the bounds of this module, and without its handling of signals."""
    config = uvicorn.Config(
        app,
        http=_Bounded,
        ws="none",
        log_config=None,
        access_log=False,
        lifespan="off",
        h11_max_incomplete_event_size=HEAD_BYTES,
        timeout_keep_alive=int(WAITING_S),
        timeout_graceful_shutdown=ENDING_S,
        server_header=False,
        date_header=False,
        proxy_headers=False,
    )
    return _Quiet(config)


class _Bounded(H11Protocol):
    """uvicorn's protocol, for processes of this user, so many at once, and not for ever."""

    _look: asyncio.TimerHandle | None = None
    _since, _waits = 0.0, True

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio."""
        super().connection_made(transport)
        accepted = cast(socket.socket, transport.get_extra_info("socket"))
        strange = TABLES[socket.AF_INET].exists() and owner_of_peer(accepted) not in users()
        if strange or len(self.connections) > CONNECTIONS:
            transport.abort()
            return
        self._since = self.loop.time()
        self._look = self.loop.call_later(LOOK_S, self._end_if_over)

    def on_response_complete(self) -> None:
        """See uvicorn: from here on the connection waits for another request."""
        self._waits, self._since = True, self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        if self._look:
            self._look.cancel()
        super().connection_lost(exc)

    def _end_if_over(self) -> None:
        cycle: Any = self.cycle  # None before the first request
        waits = cycle is None or cycle.response_complete
        if waits != self._waits:
            self._waits, self._since = waits, self.loop.time()
        if self.loop.time() - self._since > (WAITING_S if waits else REQUEST_S):
            self.transport.abort()
            return
        self._look = self.loop.call_later(LOOK_S, self._end_if_over)
