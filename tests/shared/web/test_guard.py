"""Who is let in: a link that works once, then a cookie in an area nobody can guess; everybody else is refused."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.web import PATIENCE_S, Served, served

from wardround.web import serving
from wardround.web.guard import BODY_BYTES, COOKIE, FIELDS, HEADERS, Session


class Pages:
    """An application that notes what reached it."""

    def __init__(self) -> None:
        self.reached: list[tuple[str, str, dict[str, str]]] = []

    async def note(self, request: Request) -> Response:
        self.reached.append((request.method, request.url.path, dict(request.state.form)))
        return PlainTextResponse("done")

    @property
    def app(self) -> Starlette:
        return Starlette(routes=[Route("/{path:path}", self.note, methods=["GET", "POST"])])


@pytest.fixture(scope="module")
def inside() -> Iterator[Pages]:
    yield Pages()


@pytest.fixture(scope="module")
def there(inside: Pages) -> Iterator[Served]:
    with served(inside.app) as found:
        yield found


@pytest.fixture(autouse=True)
def _nothing_yet(inside: Pages) -> None:
    inside.reached.clear()


def test_the_link_works_once_and_gives_a_cookie_that_scripts_and_other_pages_cannot_use() -> None:
    pages = Pages()
    with served(pages.app) as there:
        token = there.session.token
        for ahead in ({"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"}):
            assert there.ask("GET", f"/open?token={token}", headers=ahead).status == 403
        assert there.ask("HEAD", f"/open?token={token}").status == 403
        assert there.ask("GET", "/open?token=").status == there.ask("GET", "/open").status == 403
        assert there.ask("GET", f"/open?token={token}x").status == 403
        came = there.ask("GET", f"/open?token={token}")
        assert came.status == 303
        assert came.headers["location"] == f"{there.session.area}/"
        kept = came.headers["set-cookie"]
        assert kept.startswith(f"{COOKIE}={there.session.cookie};")
        assert {"HttpOnly", "SameSite=strict", f"Path={there.session.area}/"} <= set(kept.split("; "))
        again = there.ask("GET", f"/open?token={token}")
        assert again.status == 403
        assert "set-cookie" not in again.headers
        assert there.ask("GET", "/open?token=").status == 403  # the token is empty now, and opens nothing
        assert [line for line in there.told if "was opened" in line] == there.told[-3:-2]
        assert not pages.reached


@pytest.mark.parametrize("path", ["/", "/open/", "/static/page.css", "//", "/%2e%2e/", "/favicon.ico", "*"])
@pytest.mark.parametrize("with_cookie", [True, False])
def test_outside_of_its_area_there_is_nothing(there: Served, inside: Pages, path: str, with_cookie: bool) -> None:
    assert there.ask("GET", path, headers=there.cookie() if with_cookie else {}).status in (400, 403)
    assert not inside.reached


@pytest.mark.parametrize("cookie", ["", COOKIE, f"{COOKIE}=", f"{COOKIE}=x", "other=1", f"{COOKIE}=\xff"])
def test_in_its_area_nobody_without_the_cookie_sees_anything(there: Served, inside: Pages, cookie: str) -> None:
    for method in ("GET", "POST"):
        assert there.ask(method, f"{there.session.area}/", b"", {"Cookie": cookie}).status == 403
    assert not inside.reached


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=60))
def test_another_host_name_is_refused_also_with_the_cookie(there: Served, inside: Pages, host: str) -> None:
    """DNS rebinding: the browser believes that it talks to evil.example."""
    if host.lower() not in (f"127.0.0.1:{there.port}", f"localhost:{there.port}"):
        assert there.page("/", Host=host).status in (400, 421)
        assert not inside.reached


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "127.0.0.1:1", "localhost.evil.example", "[::1]", None])
def test_so_is_every_host_that_is_nearly_right(there: Served, inside: Pages, host: str | None) -> None:
    assert there.page("/", Host=host).status in (400, 421)
    assert not inside.reached


def test_by_its_own_names_it_is_served(there: Served, inside: Pages) -> None:
    for name in ("127.0.0.1", "localhost", "LOCALHOST"):
        assert there.page("/a", Host=f"{name}:{there.port}").status == 200
    assert [path for _, path, _ in inside.reached] == [f"{there.session.area}/a"] * 3


SPOILT: dict[str, tuple[dict[str, str], dict[str, str | None]]] = {
    "no origin": ({}, {"Origin": None}),
    "a frame of a file": ({}, {"Origin": "null"}),
    "another page's": ({}, {"Origin": "https://evil.example"}),
    "another port's": ({}, {"Origin": "http://127.0.0.1:1"}),
    "https": ({}, {"Origin": "https://127.0.0.1"}),
    "no token": ({"csrf": ""}, {}),
    "another token": ({"csrf": "x" * 43}, {}),
    "a token that is not ASCII": ({"csrf": "\u202e"}, {}),
    "sent by another site": ({}, {"Sec-Fetch-Site": "cross-site"}),
    "sent by another port": ({}, {"Sec-Fetch-Site": "same-site"}),
    "as text": ({}, {"Content-Type": "text/plain"}),
    "as JSON": ({}, {"Content-Type": "application/json"}),
    "of no type": ({}, {"Content-Type": None}),
    "too many fields": ({f"f{number}": "" for number in range(FIELDS)}, {}),
    "too long": ({"text": "x" * BODY_BYTES}, {}),
    "of a length that is no number": ({}, {"Content-Length": "1_0"}),
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_form_that_is_not_this_pages_own_changes_nothing(there: Served, inside: Pages, how: str) -> None:
    fields, headers = SPOILT[how]
    assert 400 <= there.press("/pause", fields, headers).status < 500
    assert not inside.reached


def test_nor_does_one_that_names_a_field_twice_is_no_form_or_comes_in_pieces_without_end(
    there: Served, inside: Pages
) -> None:
    form = {"Origin": there.origin, "Content-Type": "application/x-www-form-urlencoded", **there.cookie()}
    path, csrf = f"{there.session.area}/pause", f"csrf={there.session.csrf}"
    for body in (f"{csrf}&{csrf}", f"{csrf}&a=1&a=2", f"{csrf}&a=%ff", f"{csrf}&\xe9=1"):
        assert there.ask("POST", path, body.encode("latin-1"), form).status == 400
    pieces = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
    chunked = form | {"Transfer-Encoding": "chunked", "Content-Length": None}
    assert there.ask("POST", path, pieces * 2 + b"0\r\n\r\n", chunked).status == 413
    assert there.ask("GET", path, b"x", there.cookie()).status == 413
    assert not inside.reached


def test_the_pages_own_form_is_answered_and_its_token_stays_with_the_guard(there: Served, inside: Pages) -> None:
    assert there.press("/pause", {"name": "\u202e&=;"}, {"Sec-Fetch-Site": "same-origin"}).status == 200
    assert inside.reached == [("POST", f"{there.session.area}/pause", {"name": "\u202e&=;"})]


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "TRACE", "PATCH", "FOO"])
def test_other_methods_are_refused(there: Served, inside: Pages, method: str) -> None:
    assert there.ask(method, f"{there.session.area}/", headers=there.cookie()).status == 405
    assert not inside.reached


def test_every_answer_forbids_what_is_not_the_pages_own(there: Served) -> None:
    answers = [
        there.page("/"),
        there.ask("GET", "/"),
        there.page("/", Host="evil.example"),
        there.press("/x", {"csrf": ""}),
    ]
    assert [answer.status for answer in answers] == [200, 403, 421, 403]
    for answer in answers:
        assert {name: answer.headers.get(name.lower()) for name in HEADERS} == HEADERS
    policy = dict(part.split(" ", 1) for part in HEADERS["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}


# The port.


def _closed(line: socket.socket) -> bool:
    """Whether the other side ends the connection; waits for that."""
    try:
        while line.recv(65_536):
            pass
    except ConnectionError:
        pass
    return True


def test_long_headers_end_the_connection(there: Served, inside: Pages) -> None:
    with socket.create_connection(("127.0.0.1", there.port), timeout=PATIENCE_S) as line:
        line.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{there.port}\r\nA: ".encode())
        try:
            for _ in range(64):
                line.sendall(b"x" * 65_536)
        except ConnectionError:
            pass
        assert _closed(line)
    assert not inside.reached


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x"])
def test_who_is_silent_is_put_out(sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WAITING_S", 0.2)
    monkeypatch.setattr(serving, "LOOK_S", 0.05)
    with served(Pages().app) as there, socket.create_connection(("127.0.0.1", there.port), timeout=PATIENCE_S) as line:
        line.sendall(sent)
        assert _closed(line)


def test_who_sends_a_form_slowly_is_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wardround.web.guard.BODY_S", 0.2)
    pages = Pages()
    with served(pages.app) as there, socket.create_connection(("127.0.0.1", there.port), timeout=PATIENCE_S) as line:
        line.sendall(
            f"POST {there.session.area}/pause HTTP/1.1\r\nHost: 127.0.0.1:{there.port}\r\nOrigin: {there.origin}\r\n"
            f"Cookie: {COOKIE}={there.session.cookie}\r\nContent-Type: application/x-www-form-urlencoded\r\n"
            "Content-Length: 100\r\n\r\ncsrf=".encode()
        )
        assert b" 408 " in line.recv(65_536)
        assert _closed(line)
    assert not pages.reached


def test_so_many_connections_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CONNECTIONS", 3)
    with served(Pages().app) as there:
        lines = [socket.create_connection(("127.0.0.1", there.port), timeout=PATIENCE_S) for _ in range(4)]
        try:
            assert _closed(lines[-1])
            for line in lines[:-1]:  # the others are served still
                line.sendall(f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{there.port}\r\n\r\n".encode())
                assert b" 403 " in line.recv(65_536)
        finally:
            for line in lines:
                line.close()


_STRANGER = """
import os, socket, sys
"".encode("idna")  # what a connection imports lies where the other user may not read
os.setuid(int(sys.argv[2]))
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as line:
    line.sendall(sys.argv[3].replace("|", "\\r\\n").encode())
    try:
        sys.stdout.write(line.recv(65536).decode())
    except ConnectionError:
        pass
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user")
def test_another_users_process_is_not_answered_whatever_it_knows(
    there: Served, inside: Pages, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = (
        f"GET {there.session.area}/ HTTP/1.1|Host: 127.0.0.1:{there.port}|"
        f"Cookie: {COOKIE}={there.session.cookie}|Connection: close||"
    )
    monkeypatch.delenv("SUDO_UID", raising=False)
    python = getattr(sys, "_base_executable", sys.executable)  # one that the other user may start
    for user, answered in ((65534, False), (os.getuid(), True)):
        command = [python, "-I", "-c", _STRANGER, str(there.port), str(user), request]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd="/")
        assert bool(done.stdout) == answered
    monkeypatch.setenv("SUDO_UID", "65534")  # who started the page as its user, by sudo
    command = [python, "-I", "-c", _STRANGER, str(there.port), "65534", request]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout
    assert len(inside.reached) == 2


def test_where_the_system_does_not_say_whose_a_process_is_the_cookie_decides(
    monkeypatch: pytest.MonkeyPatch, there: Served
) -> None:
    monkeypatch.setattr(serving, "TABLES", {socket.AF_INET: SimpleNamespace(exists=lambda: False)})
    assert there.page("/").status == 200
    assert there.ask("GET", "/").status == 403


def test_two_sessions_share_nothing() -> None:
    one, other = Session(), Session()
    kept: list[Any] = [getattr(each, name) for each in (one, other) for name in ("token", "area", "cookie", "csrf")]
    assert len(set(kept)) == 8
    assert all(len(each) >= 22 for each in kept)
    assert not any(each in repr(one) for each in (one.token, one.area, one.cookie, one.csrf))
