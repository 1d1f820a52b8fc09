"""What a hospital says when it cannot connect: clocks, certificates, names and proxies, each with its own advice."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from wardround.errors import ConfigError, Unreachable, Untrusted
from wardround.proxies import is_loopback, proxy_for, spare_loopback, without_password
from wardround_client.flower.clock_skew import NOTED_S, TOLERATED_S, Clock, span
from wardround_client.flower.errors import KeyRefused, explained, refused
from wardround_client.flower.fleet import connect
from wardround_client.flower.node import Coordinator, Link, Node
from wardround_server.network import tls

NOW = datetime.now(UTC)
DATE = st.one_of(
    st.text(max_size=40),
    st.sampled_from(["Thu, 01 Jan 1970 00:00:00 GMT", "Sat, 28 Nov 99999 16:00:00 GMT", "0", "-1", "Mon, 99 Foo 20"]),
    st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)).map(
        lambda d: format_datetime(d.replace(tzinfo=UTC), True)
    ),
)


def day(number: float) -> datetime:
    return NOW + timedelta(days=number)


@contextmanager
def server(certificate: Path, key: Path, date: str = "", host: str = "127.0.0.1") -> Iterator[str]:
    """A TLS server that says 404 to everything, with this Date -> its address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.bind((host, 0))
    listener.listen()
    reply = f"HTTP/1.1 404 Not Found\r\nDate: {date}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode()

    def serve() -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            try:
                with context.wrap_socket(plain, server_side=True) as line:
                    line.recv(65536)
                    line.sendall(reply)
                    while line.recv(65536):  # to close on what is not read yet would take the reply away
                        pass
            except OSError:
                plain.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        shown = f"[{host}]" if ":" in host else host
        yield f"{shown}:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def said(address: str, ca_pem: bytes) -> str:
    """What a node says that cannot connect."""
    node = Node(
        Coordinator(address, ca_pem), ec.generate_private_key(ec.SECP384R1()), bytes, frozenset, Path("/nonexistent/x")
    )
    with pytest.raises((Untrusted, Unreachable)) as caught:
        node.run(threading.Event(), give_up_after_s=0.0)
    return str(caught.value)


def http(when: datetime) -> str:
    return format_datetime(when, usegmt=True)


def test_a_server_certificate_that_has_ended_blames_the_coordinator(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [], at=day(-830))
    with server(files.certificate, files.key, http(NOW)) as address:
        message = said(address, files.ca.read_bytes())
    assert f"the certificate of {address} has ended on {day(-5):%Y-%m-%d}" in message
    assert "coordinator up" in message and "joining again changes nothing" in message
    assert any(f"if it is not {today:%Y-%m-%d}" in message for today in (NOW, datetime.now(UTC))), "midnight may pass"


@pytest.mark.parametrize(("days", "where"), [(-829, "ahead of"), (+400, "behind")])
def test_a_clock_that_explains_it_is_named_first(tmp_path: Path, days: int, where: str) -> None:
    """The coordinator lives in another time, in which its certificate is good."""
    files = tls.create(tmp_path / "tls", [], at=day(days))
    with server(files.certificate, files.key, http(day(days))) as address:
        message = said(address, files.ca.read_bytes())
    assert re.search(f"({abs(days)}|{abs(days) - 1}) days", message) and f"{where} the coordinator's" in message, (
        message
    )
    assert "timedatectl" in message and "join" not in message


def test_not_valid_yet_without_any_word_of_the_coordinators_clock(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [], at=day(2))
    with server(files.certificate, files.key) as address:
        message = said(address, files.ca.read_bytes())
    assert "is not valid before" in message and "timedatectl" in message


def test_an_authority_that_has_ended_asks_for_a_new_invitation(tmp_path: Path) -> None:
    files = tls.create(tmp_path / "tls", [], at=day(-3651))
    tls.renew_ca(files, switch=False)
    before = files.ca.read_bytes()
    with server(files.certificate, files.key, http(NOW)) as address:
        message = said(address, before)
    assert "CA that this hospital joined has ended" in message and "join again: approvals stay" in message


def test_another_authority_and_another_name_are_told_apart(tmp_path: Path) -> None:
    files, other = tls.create(tmp_path / "one", ["fl.example.org"]), tls.create(tmp_path / "two", [])
    with server(files.certificate, files.key, http(NOW)) as address:
        assert "not one of the coordinator's CA" in said(address, other.ca.read_bytes())
    with server(files.certificate, files.key, http(NOW), host="127.0.0.2") as address:
        message = said(address, files.ca.read_bytes())
    assert "not for 127.0.0.2, but for localhost, 127.0.0.1, fl.example.org" in message
    assert "init HOME --host 127.0.0.2" in message


def test_an_ipv6_address_is_dialled_and_verified(tmp_path: Path) -> None:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no ::1")
    files, without = tls.create(tmp_path / "tls", ["::1"]), tls.create(tmp_path / "without", [])
    with server(files.certificate, files.key, http(NOW), host="::1") as address:
        assert "answered 404" in said(address, files.ca.read_bytes()), "past TLS"
    with server(without.certificate, without.key, http(NOW), host="::1") as address:
        assert "not for [::1], but for" in said(address, without.ca.read_bytes())


@settings(max_examples=60, deadline=None)
@given(date=DATE)
def test_no_date_header_breaks_anything(date: str) -> None:
    clock = Clock(now=lambda: 1e9, kept=lambda: None)
    clock.hear(httpx.Response(200, headers=[(b"date", date.encode("utf-8", "replace"))]))
    assert abs((clock.for_signatures() - datetime.fromtimestamp(1e9, UTC)).total_seconds()) <= TOLERATED_S
    assert clock.sentence() == "" or "the coordinator's" in clock.sentence()


@settings(max_examples=200, deadline=None)
@given(ahead_s=st.floats(-1e9, 1e9), kept=st.sampled_from([True, False, None]))
def test_every_difference_is_said_in_its_direction_and_signed_as_the_coordinator_has_it(
    ahead_s: float, kept: bool | None
) -> None:
    there = 1.7e9
    clock = Clock(now=lambda: there + ahead_s, kept=lambda: kept)
    clock.hear(httpx.Response(200, headers={"date": http(datetime.fromtimestamp(there, UTC))}))
    signed = clock.for_signatures().timestamp() - there
    # Flower takes from 305 s ago to 5 s ahead, and a slow line takes its part.
    if abs(ahead_s) <= TOLERATED_S - 1:
        assert -3 <= signed <= 3
    elif abs(ahead_s) > TOLERATED_S + 1:
        assert signed == pytest.approx(ahead_s, abs=1e-3)
    sentence = clock.sentence()
    if abs(ahead_s) > NOTED_S + 1:
        assert ("ahead of" if ahead_s > 0 else "behind") in sentence
        assert ("NTP" in sentence) == (kept is not None)
    elif abs(ahead_s) < NOTED_S - 1:
        assert sentence == ""


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (45, "45 s"), (243, "4 min 3 s"), (-360, "6 min"), (172_800, "2 days"), (90_061, "1 day 1 h")],
)
def test_a_length_of_time_for_a_person(seconds: float, words: str) -> None:
    assert span(seconds) == words


def test_a_refused_signature_names_the_clock_or_says_that_it_is_not_the_clock() -> None:
    response = httpx.Response(401, request=httpx.Request("POST", "https://x/"))
    error = httpx.HTTPStatusError("", request=response.request, response=response)
    clock = Clock(now=lambda: 1.7e9 + 366, kept=lambda: True)
    assert "clock" in str(refused(error, "x:1", clock)), "nothing is known"
    clock.hear(httpx.Response(200, headers={"date": http(datetime.fromtimestamp(1.7e9, UTC))}))
    told = refused(error, "x:1", clock)
    assert isinstance(told, KeyRefused)
    assert "this hospital's clock is 6 min 6 s ahead of the coordinator's; this one is kept by NTP" in str(told)
    clock.ahead_s = 0.0
    assert "though the clocks agree" in str(refused(error, "x:1", clock))


# Proxies.

HOSTS = ("127.0.0.1", "localhost", "::1", "fl.example.org", "example.org", "notexample.org", "192.0.2.7", "2001:db8::7")
NAMES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "HTTP_PROXY", "http_proxy")
PROXIES = st.sampled_from(["", "http://user:secret@proxy.example.org:3128", "proxy:8080", "https://10.0.0.1:443"])
SPARED = st.lists(
    st.sampled_from(["*", "example.org", ".example.org", "192.0.2.7", "127.0.0.1", "other", "", " "]), max_size=3
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], None]:
    def put(values: dict[str, str]) -> None:
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            if value:
                monkeypatch.setenv(name, value)

    return put


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(https=PROXIES, both=PROXIES, spared=SPARED, small=st.booleans(), host=st.sampled_from(HOSTS))
def test_what_is_said_is_what_httpx_does_and_loopback_is_never_sent_to_a_proxy(
    bare: Callable[[dict[str, str]], None], https: str, both: str, spared: list[str], small: bool, host: str
) -> None:
    no = "no_proxy" if small else "NO_PROXY"
    bare({"HTTPS_PROXY": https, "all_proxy": both, no: ",".join(spared)})
    spare_loopback(host)
    with httpx.Client() as client:
        url = httpx.URL(f"https://[{host}]:9092/" if ":" in host else f"https://{host}:9092/")
        proxied = client._transport_for_url(url) is not client._transport
    assert bool(proxy_for(host)) == proxied
    assert not (is_loopback(host) and proxied)
    assert "secret" not in proxy_for(host)
    before = os.environ["NO_PROXY"]
    spare_loopback(host)
    assert os.environ["NO_PROXY"] == before == os.environ["no_proxy"]


@pytest.mark.parametrize(
    ("proxy", "shown"),
    [
        ("http://user:pa@ss@proxy:3128", "http://proxy:3128"),
        ("user:pass@proxy:3128", "http://proxy:3128"),
        ("proxy:3128", "http://proxy:3128"),
        ("http://[2001:db8::1]:3128/path?token=secret", "http://[2001:db8::1]:3128"),
        ("http://a\x1b[2Jb:1", "http://a\\x1b[2Jb:1"),
    ],
)
def test_a_proxy_is_shown_without_its_password(proxy: str, shown: str) -> None:
    assert without_password(proxy) == shown


def test_a_dead_proxy_is_named_when_connecting_and_when_failing(
    tmp_path: Path, bare: Callable[[dict[str, str]], None]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        proxy = f"http://hospital:secret@127.0.0.1:{taken.getsockname()[1]}"
        bare({"HTTPS_PROXY": proxy})
        lines: list[str] = []

        def report(link: Link, detail: str) -> None:
            lines.append(detail)

        node = Node(
            Coordinator("fl.example.org:9092", tls.create(tmp_path / "tls", []).ca.read_bytes()),
            ec.generate_private_key(ec.SECP384R1()),
            bytes,
            frozenset,
            tmp_path / "node.json",
            report=report,
        )
        with pytest.raises(Unreachable, match=r"through the proxy http://127\.0\.0\.1.*NO_PROXY"):
            node.run(threading.Event(), give_up_after_s=0.0)
    assert lines[0].startswith("connecting to fl.example.org:9092 through the proxy http://127.0.0.1:")
    assert "secret" not in " ".join(lines)


@pytest.mark.parametrize("status", [403, 407, 502])
def test_a_proxy_that_does_not_let_through_is_blamed(status: int) -> None:
    with pytest.raises(Unreachable, match="does not let this hospital through"), explained("x:1", b"", "http://p:3128"):
        raise httpx.ProxyError(f"{status} no")


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1080", "ftp://x:1", "http://:0x/", "http://[::", "nonsense://"])
def test_a_proxy_that_cannot_be_used_is_a_mistake_of_the_environment(
    proxy: str, tmp_path: Path, bare: Callable[[dict[str, str]], None]
) -> None:
    bare({"ALL_PROXY": proxy})
    ca = tls.create(tmp_path / "tls", []).ca.read_bytes()
    key = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(ConfigError, match="HTTPS_PROXY"):
        connect(Coordinator("fl.example.org:9092", ca), key, lambda: 1, Clock())
    assert ipaddress.ip_address("127.0.0.1").is_loopback
