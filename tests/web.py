"""Pages of this process on a port of loopback, and requests as nobody's browser would send them."""

from __future__ import annotations

import asyncio
import http.client
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlencode

from starlette.types import ASGIApp

from wardround.web.guard import COOKIE, Guard, Session
from wardround.web.serving import LOOPBACK, listening, server_of

PATIENCE_S = 600.0  # what a request may take on a machine that does much else


@dataclass
class Answer:
    """What came back. Header names in lower case."""

    status: int
    headers: Mapping[str, str]
    text: str


@dataclass
class Served:
    """Pages that are served. told: what the person at the terminal was told."""

    session: Session
    port: int
    told: list[str] = field(default_factory=list)

    @property
    def origin(self) -> str:
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def link(self) -> str:
        return self.origin + self.session.link

    @property
    def root(self) -> str:
        """Where the pages lie, as who has the cookie sees them."""
        return self.origin + self.session.area

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str | None] | None = None
    ) -> Answer:
        """One request, with the headers that http.client sends and those given; None leaves one out."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=PATIENCE_S)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {"Host": f"{LOOPBACK}:{self.port}", **(headers or {})}.items():
                if value is not None:
                    connection.putheader(name, value)
            if body is not None and "Content-Length" not in (headers or {}):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            came = connection.getresponse()
            text = came.read().decode(errors="replace")  # of a picture
            return Answer(came.status, {k.lower(): v for k, v in came.getheaders()}, text)
        finally:
            connection.close()

    def cookie(self) -> dict[str, str]:
        """The header of who came in."""
        return {"Cookie": f"{COOKIE}={self.session.cookie}"}

    def page(self, path: str, **headers: str | None) -> Answer:
        """A page, as who came in."""
        return self.ask("GET", self.session.area + path, headers=self.cookie() | headers)

    def press(
        self, path: str, fields: Mapping[str, str] | None = None, headers: Mapping[str, str | None] | None = None
    ) -> Answer:
        """A form of the page, as who came in; headers and fields may spoil it."""
        sent = {"csrf": self.session.csrf, **(fields or {})}
        form = {"Origin": self.origin, "Content-Type": "application/x-www-form-urlencoded", **self.cookie()}
        return self.ask("POST", self.session.area + path, urlencode(sent).encode(), form | dict(headers or {}))


@contextmanager
def served(app: ASGIApp) -> Iterator[Served]:
    """An application behind the guard, on a free port."""
    with listening(0) as listener:
        there = Served(Session(), int(listener.getsockname()[1]))
        server = server_of(Guard(app, there.session, there.port, there.told.append))
        started = threading.Event()

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not (server.started or serving.done()):
                await asyncio.sleep(0.01)
            started.set()
            await serving

        thread = threading.Thread(target=asyncio.run, args=(run(),), name="pages")
        thread.start()
        try:
            assert started.wait(PATIENCE_S)
            yield there
        finally:
            there.session.ends = server.should_exit = True
            thread.join()
