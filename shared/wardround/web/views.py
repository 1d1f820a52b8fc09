"""Pages from templates, and what becomes of errors: a sentence on a page, never a traceback.

All text is escaped, and what cannot be seen is written out (`escaped`). A template finds the parts of this package
(base.html, macros.html) beside those of its own. Whatever works on files is done by one request at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Route

from wardround import __version__
from wardround.errors import WardroundError
from wardround.text import capital
from wardround.web.escaped import visible
from wardround.web.guard import Session

STREAMS = 4
"""At once, of events; a browser keeps six connections to a host name, and pages need some. Another one ends the oldest:
its tab asks again, and one whose reader has stopped reading holds no place.
"""
LOOK_S, PING_S, STREAM_S = 1.0, 15.0, 600.0
_STATIC = {"charts.css": "text/css", "page.css": "text/css", "page.js": "text/javascript"}
log = logging.getLogger(__name__)
T = TypeVar("T")
View = Callable[[Request], Response]


@dataclass(frozen=True)
class Action:
    """What a button does: its path, the function that does it, and returns where to go on."""

    path: str
    do: Callable[[Request], str]


class Site:
    """The pages of one side, as an ASGI application for `serving`.

    Args:
        package: whose folder `templates` holds the pages.
        who: of which the pages are, for their titles.
        navigation: (path, name) of each page, in order.
        state: a short text that is another one when the pages have changed; it is asked each second, beside all else.
    """

    def __init__(
        self, package: str, who: Callable[[], str], navigation: Sequence[tuple[str, str]], state: Callable[[], str]
    ) -> None:
        loader = ChoiceLoader([PackageLoader(package), PackageLoader(__package__)])
        self._templates = Environment(
            loader=loader,
            autoescape=True,
            undefined=StrictUndefined,
            finalize=visible,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["capital"] = capital
        self._who, self._navigation, self._state = who, tuple(navigation), state
        self._one = threading.Lock()
        self._streams: deque[object] = deque(maxlen=STREAMS)
        self._kept: dict[type, object] = {}

    def app(self, pages: Mapping[str, View], actions: Sequence[Action]) -> Starlette:
        """The application. pages: path -> what makes the page."""
        routes = [
            Route("/events", self._events),
            *(Route(f"/static/{name}", _static(name, kind)) for name, kind in _STATIC.items()),
            *(Route(path, self._guarded(view), methods=["GET"]) for path, view in pages.items()),
            *(Route(action.path, self._guarded(self._pressed(action)), methods=["POST"]) for action in actions),
        ]
        return Starlette(routes=routes, exception_handlers={HTTPException: self._missing})

    @staticmethod
    def written(paths: Sequence[Path]) -> str:
        """When each was written, and how long it is: a state."""
        return repr([_stat(path) for path in paths])

    def page(self, request: Request, template: str, *, status: int = 200, **values: Any) -> Response:
        """A page. What `Session.said` holds stands at the top of the next that is no error, once."""
        session: Session = request.state.session
        said: list[str] = []
        seen = request.state.seen if hasattr(request.state, "seen") else self._now()
        # The page looks after itself: nobody reads that answer. An error is of what was pressed in this tab; what is
        # said may be of another's.
        if "x-live" not in request.headers and status == 200:
            said, session.said = session.said, []
        text = self._templates.get_template(template).render(
            root=session.area,
            seen=seen,
            csrf=session.csrf,
            said=said,
            who=self._who(),
            navigation=self._navigation,
            here=request.url.path.removeprefix(session.area),
            version=__version__,
            **values,
        )
        return HTMLResponse(text, status)

    def keep(self, what: object) -> None:
        """Keep one thing of its kind in memory, for as long as the command runs."""
        self._kept[type(what)] = what

    def kept(self, kind: type[T]) -> T:
        """What was kept last; an empty one, where nothing was."""
        found = self._kept.get(kind)
        return found if isinstance(found, kind) else kind()

    def _guarded(self, view: View) -> Callable[[Request], Awaitable[Response]]:
        def one_at_a_time(request: Request) -> Response:
            with self._one:
                request.state.seen = self._now()  # before anything is read that the page shows
                return view(request)

        async def endpoint(request: Request) -> Response:
            try:
                return await run_in_threadpool(one_at_a_time, request)
            except WardroundError as error:
                return self._trouble(request, str(error), 409 if request.method == "POST" else 422)
            except HTTPException:
                raise
            except Exception:
                log.exception("the page %s", request.url.path.removeprefix(request.state.session.area))
                return self._trouble(request, "An error of this program; the log has its details.", 500)

        return endpoint

    def _pressed(self, action: Action) -> View:
        def view(request: Request) -> Response:
            return RedirectResponse(request.state.session.area + action.do(request), 303)

        return view

    async def _missing(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = "There is no such page." if error.status_code == 404 else "This cannot be done here."
        return await run_in_threadpool(self._trouble, request, what, error.status_code)

    def _trouble(self, request: Request, what: str, status: int) -> Response:
        host = f"http://{request.headers.get('host', '')}"
        came_from = request.headers.get("referer", "")
        back = came_from.removeprefix(host) if came_from.startswith(f"{host}{request.state.session.area}/") else ""
        changed = request.method == "POST"
        return self.page(request, "trouble.html", status=status, what=what, changed=changed, back=back)

    async def _events(self, request: Request) -> Response:
        """Server-sent events: `changed`, whenever the state is another one (HTML Standard, 9.2)."""
        events = self._stream(request.state.session, request.query_params.get("seen", ""))
        return StreamingResponse(events, media_type="text/event-stream")

    async def _stream(self, session: Session, seen: str) -> AsyncIterator[str]:
        """seen: what state the page is of, so that nothing is missed between a page and its stream."""
        self._streams.append(own := object())
        loop = asyncio.get_running_loop()
        until, quiet_since = loop.time() + STREAM_S, loop.time()
        try:
            yield "retry: 3000\n\n"
            while loop.time() < until and own in self._streams and not session.ends:
                state = await run_in_threadpool(self._now)
                if state != seen:
                    yield "event: changed\ndata: \n\n"
                    seen, quiet_since = state, loop.time()
                elif loop.time() - quiet_since > PING_S:
                    yield ": still here\n\n"
                    quiet_since = loop.time()
                await asyncio.sleep(LOOK_S)
        finally:
            with suppress(ValueError):
                self._streams.remove(own)

    def _now(self) -> str:
        """The state, short."""
        return hashlib.sha256(f"{self._state()}{self._kept!r}".encode("utf-8", "surrogatepass")).hexdigest()[:16]


def _stat(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _static(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    content = files(__package__).joinpath("static", name).read_bytes()

    async def endpoint(request: Request) -> Response:
        return Response(content, media_type=kind)

    return endpoint
