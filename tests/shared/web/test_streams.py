"""A page is told of every change, also of one between the page and its stream, whoever else holds how many streams."""

from __future__ import annotations

import http.client
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from starlette.requests import Request
from starlette.responses import Response
from tests.web import PATIENCE_S, Served, served

from wardround.web.serving import LOOPBACK
from wardround.web.views import STREAMS, Site


class Told:
    """A site whose state is a number."""

    def __init__(self) -> None:
        self.state = 0
        self.site = Site("wardround.web", lambda: "test", (("/", "Overview"),), lambda: str(self.state))

    def page(self, request: Request) -> Response:
        return self.site.page(request, "trouble.html", what="a page", changed=False, back="")


@pytest.fixture(scope="module")
def told() -> Told:
    return Told()


@pytest.fixture(scope="module")
def there(told: Told) -> Iterator[Served]:
    with served(told.site.app({"/": told.page}, [])) as found:
        yield found


@contextmanager
def stream(there: Served) -> Iterator[http.client.HTTPResponse]:
    """What a page that was just loaded listens to."""
    (address,) = re.findall(r'data-events="([^"]+)"', there.page("/").text)
    connection = http.client.HTTPConnection(LOOPBACK, there.port, timeout=PATIENCE_S)
    connection.request("GET", address, headers=there.cookie())
    try:
        yield connection.getresponse()
    finally:
        connection.close()


def first_event(answer: http.client.HTTPResponse) -> str:
    """The first line that is an event, or "" where the stream ends before."""
    return next((line.decode() for line in answer if line.startswith(b"event")), "")


def test_a_change_between_the_page_and_its_stream_is_told(told: Told, there: Served) -> None:
    (address,) = re.findall(r'data-events="([^"]+)"', there.page("/").text)
    told.state += 1
    connection = http.client.HTTPConnection(LOOPBACK, there.port, timeout=PATIENCE_S)
    connection.request("GET", address, headers=there.cookie())
    assert first_event(connection.getresponse()) == "event: changed\n"
    connection.close()


def test_tabs_that_do_not_read_keep_nobody_from_being_told(told: Told, there: Served) -> None:
    with ExitStack() as tabs:
        older = [tabs.enter_context(stream(there)) for _ in range(3 * STREAMS)]
        newest = tabs.enter_context(stream(there))
        assert {answer.status for answer in (*older, newest)} == {200}
        told.state += 1
        assert first_event(newest) == "event: changed\n"
        assert first_event(older[0]) == ""  # it was ended, and its tab asks again
        assert there.page("/").status == 200


def test_the_end_of_the_command_ends_a_stream_without_a_word_in_the_log(
    told: Told, caplog: pytest.LogCaptureFixture
) -> None:
    with ExitStack() as tabs:
        with served(told.site.app({"/": told.page}, [])) as there:
            answer = tabs.enter_context(stream(there))
            assert answer.readline() == b"retry: 3000\n"
        assert answer.read().strip() == b""
    assert not caplog.records
