"""Who may see a page and press its buttons: a link that works once, then a cookie, and nobody else.

A browser shows pages of many owners, and each of them may send requests to a port of this machine. So a request must

* name this machine as its Host: a name that an attacker's DNS turns to 127.0.0.1 is refused (DNS rebinding);
* come with the cookie that the link was exchanged for. Browsers send a cookie to every port of a host name, so it is
  kept to a path that nobody can guess, `Session.area`;
* if it changes anything, come from a form of this page: by its Origin, and by a token of the session in the form.

`serving` refuses connections of other users' processes before all this. Every answer forbids scripts, styles and
pictures from elsewhere, frames around it and copies of it in caches.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from hmac import compare_digest
from urllib.parse import parse_qsl

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE, CSRF, ENTRY = "wardround", "csrf", "/open"
BODY_BYTES, FIELDS, BODY_S = 65_536, 64, 10.0
NAMES = ("127.0.0.1", "localhost")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with "no-referrer" a browser sends a page's own forms with Origin: null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}
ASK_AGAIN = "Stop the command in the terminal with Ctrl-C and start it again: it prints a new link.\n"


@dataclass
class Session:
    """One person at one browser, for as long as the command runs.

    token: of the link, empty once it was used. area: where the pages lie. said: what the next page says at its top.
    ends: whether the command ends, and what is open is to be closed.
    """

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    area: str = field(default_factory=lambda: "/" + secrets.token_urlsafe(16), repr=False)
    cookie: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    csrf: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)
    said: list[str] = field(default_factory=list)
    ends: bool = False

    @property
    def link(self) -> str:
        """The path that opens the page, once."""
        return f"{ENTRY}?token={self.token}"

    def opened_by(self, token: str) -> bool:
        """Whether this is the token; it is used up then."""
        if not (self.token and compare_digest(self.token.encode(), token.encode())):
            return False
        self.token = ""
        return True


class _Refused(Exception):
    """An answer instead of a page."""

    def __init__(self, status: int, why: str) -> None:
        self.status, self.why = status, why
        super().__init__(why)


class Guard:
    """An application behind the session. It sees requests below `Session.area` alone, and of a POST the form's fields
    as `scope["state"]["form"]`.

    Args:
        app: what is guarded; its paths begin below the area.
        session: who may come in.
        port: the one that is listened on.
        tell: is told what the person at the terminal should know.
    """

    def __init__(self, app: ASGIApp, session: Session, port: int, tell: Callable[[str], None] = lambda line: None):
        self._app, self._session, self._tell = app, session, tell
        self._hosts = {f"{name}:{port}" for name in NAMES} | (set(NAMES) if port == 80 else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            raise RuntimeError(f"not served: {scope['type']}")
        send = _with_headers(send)
        try:
            answer = await self._answer(scope, receive, Headers(scope=scope))
        except _Refused as refused:
            answer = PlainTextResponse(refused.why, refused.status, {"Connection": "close"})
        if isinstance(answer, Response):
            await answer(scope, receive, send)
        else:
            await self._app(answer[0], answer[1], send)

    async def _answer(self, scope: Scope, receive: Receive, headers: Headers) -> Response | tuple[Scope, Receive]:
        """An answer, or what the application is to answer. Raises: _Refused."""
        method, path = scope["method"], scope["path"]
        hosts = headers.getlist("host")
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            raise _Refused(421, f"This page is served as {' or '.join(sorted(self._hosts))} only.\n")
        if method not in ("GET", "HEAD", "POST"):
            raise _Refused(405, "GET and POST only.\n")
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            raise _Refused(403, "This page does not answer other pages.\n")
        if path == ENTRY:
            return self._enter(scope, headers)
        given = cookie_parser("; ".join(headers.getlist("cookie"))).get(COOKIE, "")
        area = self._session.area
        if not (compare_digest(path[: len(area) + 1].encode("utf-8", "replace"), f"{area}/".encode())) or not (
            compare_digest(given.encode("utf-8", "replace"), self._session.cookie.encode())
        ):
            raise _Refused(403, f"Open the link that the command printed. It works once. {ASK_AGAIN}")
        inside = {**scope, "root_path": area}
        inside["state"] = {**scope.get("state", {}), "session": self._session, "form": {}}
        if method != "POST":
            if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                raise _Refused(413, "A request without a body.\n")
            return inside, receive
        inside["state"]["form"] = await self._form(receive, headers)
        return inside, receive

    def _enter(self, scope: Scope, headers: Headers) -> Response:
        """Exchange the link's token for the cookie. Raises: _Refused."""
        if scope["method"] != "GET" or "prefetch" in (headers.get("sec-purpose", "") + headers.get("purpose", "")):
            raise _Refused(403, "A link is opened by a person.\n")  # and is not used up by a look ahead
        given = dict(parse_qsl(scope["query_string"].decode("latin-1"))).get("token", "")
        if not self._session.opened_by(given):
            self._tell("Somebody opened a link that is wrong or was used before. It was refused.")
            raise _Refused(403, f"This link is wrong, or was used before. If it was not you: {ASK_AGAIN}")
        self._tell("The page was opened. Its link does not work again.")
        answer = RedirectResponse(f"{self._session.area}/", 303)
        answer.set_cookie(COOKIE, self._session.cookie, path=f"{self._session.area}/", httponly=True, samesite="strict")
        return answer

    async def _form(self, receive: Receive, headers: Headers) -> Mapping[str, str]:
        """The fields of a form of this session. Raises: _Refused."""
        origins = headers.getlist("origin")
        if len(origins) != 1 or origins[0] not in {f"http://{host}" for host in self._hosts}:
            raise _Refused(403, "A form of another page. Nothing was changed.\n")
        if headers.get("content-type", "").partition(";")[0].strip() != "application/x-www-form-urlencoded":
            raise _Refused(415, "Forms only.\n")
        if not headers.get("content-length", "0").isdecimal() or int(headers.get("content-length", "0")) > BODY_BYTES:
            raise _Refused(413, f"At most {BODY_BYTES:,} bytes.\n")
        try:
            async with asyncio.timeout(BODY_S):
                body = await _body(receive)
        except TimeoutError:
            raise _Refused(408, "The form did not come.\n") from None
        try:
            pairs = parse_qsl(
                body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS, encoding="utf-8", errors="strict"
            )
        except ValueError:
            raise _Refused(400, "Not a form.\n") from None
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise _Refused(400, "A field that comes twice.\n")
        if not compare_digest(fields.pop(CSRF, "").encode(), self._session.csrf.encode()):
            raise _Refused(403, "This form is of another session. Load the page again. Nothing was changed.\n")
        return fields


async def _body(receive: Receive) -> bytes:
    """Raises: _Refused."""
    body, more = bytearray(), True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Refused(400, "The form was cut off.\n")
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > BODY_BYTES:
            raise _Refused(413, f"At most {BODY_BYTES:,} bytes.\n")
    return bytes(body)


def _with_headers(send: Send) -> Send:
    async def inner(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return inner


def form_of(scope: Scope) -> Mapping[str, str]:
    """The fields that were sent, without the session's token; none, but for a POST."""
    form: Mapping[str, str] = scope["state"]["form"]
    return form
