"""Metrics: prometheus_client reads back what was written, and no caller keeps another one, or the process, waiting."""

from __future__ import annotations

import math
import socket
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from wardround import metrics
from wardround.errors import PortInUse
from wardround.metrics import HEAD_BYTES, MOST_CALLERS, Metric, Samples, serving, text
from wardround.text import shown

ONE = [Metric.one("wardround_things_total", "counter", "How many.", 3.0)]


@given(st.dictionaries(st.tuples(st.text(), st.text()), st.floats(), max_size=5))
def test_whatever_a_label_holds_it_is_read_back_as_it_is_shown(samples: dict[tuple[str, str], float]) -> None:
    told: Samples = {(run, hospital): value for (run, hospital), value in samples.items()}
    written = text([Metric("wardround_x", "gauge", "A number.", ("run", "hospital"), told), *ONE])
    read = {family.name: family for family in text_string_to_metric_families(written)}
    found = [(s.labels["run"], s.labels["hospital"], s.value) for s in read["wardround_x"].samples]
    wanted = [(shown(run), shown(hospital), value) for (run, hospital), value in samples.items()]
    for one, other in zip(found, wanted, strict=True):
        assert one[:2] == other[:2]
        assert one[2] == other[2] or (math.isnan(one[2]) and math.isnan(other[2]))
    assert (read["wardround_x"].type, read["wardround_x"].documentation) == ("gauge", "A number.")
    assert read["wardround_things"].type == "counter"


def get(port: int, path: str = "/metrics", **headers: str) -> httpx.Response:
    return httpx.get(f"http://127.0.0.1:{port}{path}", headers=headers, trust_env=False, timeout=60)


def test_a_scrape() -> None:
    with serving(0, lambda: ONE) as port:
        reply = get(port)
        assert reply.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        assert reply.text == text(ONE)
        assert httpx.head(f"http://localhost:{port}/metrics", trust_env=False).text == ""
    with pytest.raises(httpx.ConnectError):
        get(port)


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [("/", {}, 404), ("/metrics/../", {}, 404), ("/metrics", {"host": "evil.example"}, 421), ("/metrics?x=1", {}, 404)],
)
def test_what_else_is_asked_is_refused(path: str, headers: dict[str, str], status: int) -> None:
    with serving(0, lambda: ONE) as port:
        assert get(port, path, **headers).status_code == status
        assert httpx.post(f"http://127.0.0.1:{port}/metrics", trust_env=False).status_code == 405


def test_a_page_whose_name_was_pointed_here_reads_nothing() -> None:
    with serving(0, lambda: ONE) as port:
        assert get(port, host=f"evil.example:{port}").status_code == 421


def test_numbers_that_cannot_be_read_are_an_error_and_not_the_end() -> None:
    answers = iter([ValueError("secret"), None])

    def read() -> Sequence[Metric]:
        if (error := next(answers)) is not None:
            raise error
        return ONE

    with serving(0, read) as port:
        first = get(port)
        assert (first.status_code, first.text) == (500, "")
        assert get(port).status_code == 200


@pytest.mark.parametrize("says", [b"", b"GET /metrics HTT", b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_callers_who_say_nothing_more_are_put_out_and_others_are_served(
    says: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "CALLER_S", 0.5)
    with serving(0, lambda: ONE) as port, ExitStack() as stack:
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(MOST_CALLERS + 3)]
        for each in slow:
            each.sendall(says)
        for each in slow:  # the server hangs up on every one, or resets what it did not read
            each.settimeout(60)
            with suppress(ConnectionResetError):
                assert each.recv(1) == b""
        assert get(port).status_code == 200


def test_a_head_without_an_end_is_bounded() -> None:
    with serving(0, lambda: ONE) as port, socket.create_connection(("127.0.0.1", port)) as caller:
        caller.settimeout(60)
        with pytest.raises(ConnectionError):
            while True:
                caller.sendall(b"GET /metrics HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES)
        assert get(port).status_code == 200


@given(st.binary(max_size=200))
def test_bytes_that_are_no_request_end_nothing(said: bytes) -> None:
    port = _shared()
    with socket.create_connection(("127.0.0.1", port)) as caller:
        caller.sendall(said + b"\r\n\r\n")
        caller.shutdown(socket.SHUT_WR)
        caller.settimeout(60)
        try:
            head = caller.recv(4096)
        except ConnectionResetError:
            head = b""
        assert head == b"" or head.split(b" ")[1] in (b"421", b"404", b"405")


_open = ExitStack()
_port: list[int] = []


def _shared() -> int:
    if not _port:
        _port.append(_open.enter_context(serving(0, lambda: ONE)))
    return _port[0]


def teardown_module() -> None:
    _open.close()


def test_many_scrapes_at_once_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "FRESH_S", 3600.0)
    reads = list[int]()
    with serving(0, lambda: reads.append(1) or ONE) as port:  # type: ignore[func-returns-value]
        threads = [threading.Thread(target=get, args=(port,)) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(reads) == 1


def test_a_port_that_is_taken_is_named() -> None:
    with serving(0, lambda: ONE) as port:
        refused = pytest.raises(PortInUse, match=r"operations\.metrics_port")
        with refused, serving(port, lambda: ONE):
            pass
