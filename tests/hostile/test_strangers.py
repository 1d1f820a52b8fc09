"""Whoever is not registered, at the hospitals' port and at the control port: a refusal, and nothing else."""

from __future__ import annotations

import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.hostile.coordinators import Siege, agreement, besieged, honest, online, start_run

from wardround.errors import Unreachable
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.errors import explained
from wardround_client.flower.fleet import Session, connect
from wardround_server.flower.control import ControlApi
from wardround_server.home import Home
from wardround_server.network import limits

pytestmark = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads Linux' /proc")
FILES = 512
NOBODY = 65534


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """A coordinator with few descriptors, and two honest hospitals."""
    with besieged(tmp_path_factory.mktemp("strangers") / "coordinator", files=FILES) as siege:
        siege.register("anna", "bert")
        yield siege


@pytest.fixture(autouse=True)
def unharmed(siege: Siege) -> Iterator[None]:
    """After each attack a new connection is served, and memory is where it was."""
    assert siege.is_well()
    siege.forget_peak()
    before = siege.memory_mib()
    yield
    assert siege.is_well()
    assert siege.peak_mib() < before + 60, (before, siege.peak_mib())


def head(path: str = "/v1/fleet/activate-node", **headers: str) -> bytes:
    given = {"host": "a", "content-type": "application/x-protobuf", **headers}
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in given.items())
    return f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode()


def status(line: ssl.SSLSocket) -> int:
    """The status of the answer; 0, when the connection was shut without one that could be read."""
    with suppress(OSError):
        answer = line.recv(4096)
        if answer:
            return int(answer.split(b" ")[1])
    return 0


def push(line: ssl.SSLSocket, size: int, *, chunked: bool) -> int:
    """Send so many zeros, as far as they are taken -> how many."""
    block, sent = bytes(1 << 16), 0
    with suppress(OSError):
        while sent < size:
            line.sendall(b"%x\r\n%b\r\n" % (len(block), block) if chunked else block)
            sent += len(block)
    return sent


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("name", ["activate-node", "push-object", "push-messages", "no-such-path"])
def test_a_body_of_a_gigabyte_from_a_stranger_is_not_read(siege: Siege, name: str, chunked: bool) -> None:
    with siege.dial() as line:
        how = {"transfer_encoding": "chunked"} if chunked else {"content_length": str(1 << 30)}
        line.sendall(head(f"/v1/fleet/{name}", **how))
        taken = push(line, 1 << 30, chunked=chunked)
        assert status(line) in (0, 401, 404)
    assert taken < 64 << 20  # what lies in sockets' buffers


def test_a_gigabyte_of_head_is_not_read(siege: Siege) -> None:
    for begin in (
        b"POST /",
        b"GET / HTTP/1.1\r\nhost: a\r\nx: ",
        b"",
        b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000,
    ):
        with siege.dial() as line:
            line.sendall(begin)
            assert push(line, 1 << 28, chunked=False) < 64 << 20


def test_a_thousand_silent_connections_and_half_heads_leave_the_service_up(siege: Siege, tmp_path: Path) -> None:
    """Twice as many as there are descriptors, in every state that a connection can be left in, during a run."""
    federation = agreement(tmp_path, rounds=4, deadline_s=20)
    with honest(siege, federation, "anna", "bert"), ExitStack() as stack:
        online(siege, "anna", "bert")
        run = start_run(siege, federation, "quiet")
        for number in range(2 * FILES):
            line = socket.create_connection(("127.0.0.1", siege.port), timeout=20)
            stack.callback(line.close)
            with suppress(OSError):
                if number % 4 == 1:
                    line.sendall(b"\x16\x03\x01\x02\x00\x01\x00")  # half a hello
                elif number % 4 == 2:
                    line.sendall(b"GET / HTTP/1.1\r\n")  # no TLS
                elif number % 16 == 3:
                    line.settimeout(1)
                    line = siege.trusts().wrap_socket(line, server_hostname="127.0.0.1")
                    stack.callback(line.close)
                    line.sendall(head()[:40])
        assert siege.descriptors() < FILES
        assert siege.is_well()
        run.finish()
    assert [event["rejected"] for event in run.rounds()] == [{}] * 5


def test_a_stranger_is_put_out_in_seconds_however_it_trickles(siege: Siege) -> None:
    """Silence, a head byte by byte, and one refused request after another: each ends by itself."""
    ends: dict[str, float] = {}

    def silent() -> None:
        with siege.dial(200) as line:
            assert line.recv(1) == b""

    def trickle() -> None:
        with siege.dial(200) as line, suppress(OSError):
            line.settimeout(0.2)
            for byte in head() * 100:
                line.sendall(bytes([byte]))
                with suppress(TimeoutError):
                    if line.recv(1) == b"":
                        return

    def again_and_again() -> None:
        with siege.dial(200) as line, suppress(OSError):
            for _ in range(10 * limits.REQUESTS_OF_A_STRANGER):
                line.sendall(head(content_length="0"))
                if not line.recv(4096):
                    return
            raise AssertionError("it may ask for ever")

    def timed(attack: object) -> None:
        began = time.monotonic()
        attack()  # type: ignore[operator]
        ends[attack.__name__] = time.monotonic() - began  # type: ignore[attr-defined]

    threads = [threading.Thread(target=timed, args=[attack]) for attack in (silent, trickle, again_and_again)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert set(ends) == {"silent", "trickle", "again_and_again"}
    assert max(ends.values()) < 12 * limits.HEAD_S


def rubbish() -> st.SearchStrategy[bytes]:
    """Heads that are nearly right, and bytes that are not."""
    names = st.sampled_from(
        ["flwr-public-key", "flwr-signature", "flwr-timestamp", "content-length", "transfer-encoding", "expect", "te",
         "upgrade", "connection", "host", "content-type", "x-forwarded-for", "content-encoding"]
    )  # fmt: skip
    values = st.one_of(
        st.sampled_from(
            ["", "0", "-1", "99999999999999999999", "chunked", "100-continue", "websocket", "a" * 9000, "=="]
        ),
        st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=40),
    )
    lines = st.lists(st.tuples(names, values), max_size=8).map(
        lambda pairs: "".join(f"{name}: {value}\r\n" for name, value in pairs).encode("latin-1")
    )
    methods = st.sampled_from([b"POST", b"GET", b"PUT", b"CONNECT", b"OPTIONS", b"PRI", b"\x00"])
    paths = st.sampled_from(
        [b"/v1/fleet/activate-node", b"/v1/fleet/push-object", b"/v1/fleet/register-node", b"/v1/fleet//activate-node",
         b"/v1/control/start-run", b"/v1/fleet/../control/start-run", b"/v1/fleet/%2e%2e/control/start-run", b"/docs",
         b"*", b"http://a/v1/control/list-runs", b"/v1/fleet/push-object?a=b", b"/v1/runtime/acquire-task"]
    )  # fmt: skip
    whole = st.tuples(methods, paths, lines).map(lambda p: b"%b %b HTTP/1.1\r\nhost: a\r\n%b\r\n" % p)
    return st.one_of(whole, st.binary(max_size=300))


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(first=rubbish(), body=st.binary(max_size=200))
def test_no_head_of_a_stranger_is_let_through(siege: Siege, first: bytes, body: bytes) -> None:
    with siege.dial() as line:
        line.settimeout(0.2)
        with suppress(OSError):
            line.sendall(first + body)
        with suppress(OSError):
            answer = line.recv(4096)
            assert not answer or answer.split(b" ")[1] in (b"400", b"401", b"404", b"412", b"100"), (first, answer)


def test_a_signature_is_looked_at_before_the_body(siege: Siege) -> None:
    """A registered key (it is public) with a signature of somebody else, an old one, one of another time, and none."""
    other = ec.generate_private_key(ec.SECP384R1())
    key = siege.keys["anna"]
    from base64 import b64encode
    from datetime import UTC, datetime, timedelta

    from flwr.common.constant import TIMESTAMP_HEADER
    from flwr.supercore.primitives.asymmetric import sign_message

    now = datetime.now(UTC)
    public = b64encode(public_key_to_bytes(key.public_key())).decode()
    stamp, old, soon = (each.isoformat() for each in (now, now - timedelta(hours=1), now + timedelta(hours=1)))
    good = b64encode(sign_message(key, stamp.encode())).decode()
    for when, signature in {
        stamp: b64encode(sign_message(other, stamp.encode())).decode(),
        old: b64encode(sign_message(key, old.encode())).decode(),
        soon: b64encode(sign_message(key, soon.encode())).decode(),
        f"{now:%Y-%m-%dT%H:%M:%S}": good,
        "": good,
        "9" * 400: good,
        stamp + " ": "",
    }.items():
        signed = {"flwr_public_key": public, "flwr_signature": signature, TIMESTAMP_HEADER.replace("-", "_"): when}
        with siege.dial() as line:
            line.sendall(head(content_length=str(1 << 30), **signed))
            assert status(line) == 401, when
    unknown = b64encode(public_key_to_bytes(other.public_key())).decode()
    with siege.dial() as line:
        line.sendall(head(content_length="9", flwr_public_key=unknown, flwr_signature=good, flwr_timestamp=stamp))
        assert status(line) in (401, 412)


def test_a_hospital_that_nobody_registered_is_told_so(siege: Siege) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    with (
        connect(siege.coordinator, key, lambda: 1000, Clock()) as client,
        pytest.raises(Exception, match="does not know this node's key"),
    ):
        Session.begin(client, key, "a", None, Clock())


def test_a_registered_hospitals_bodies_are_bounded_too(siege: Siege) -> None:
    """Before a byte of them is read, and as they come; no run goes on, so no part is expected at all."""
    key = siege.keys["anna"]
    with connect(siege.coordinator, key, lambda: 1000, Clock()) as client:
        client.ActivateNode(
            ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=15)
        )
        for path in ("push-object", "push-messages", "pull-messages", "send-node-heartbeat", "activate-node"):
            with pytest.raises(Unreachable, match=r"answered 413|nobody answers"), explained("a"):
                client._unary_unary(
                    path=f"/v1/fleet/{path}",
                    rpc_method=path,
                    request=ActivateNodeRequest(public_key=bytes(50_000_000)),
                    response_type=ActivateNodeRequest,
                )


def test_a_registered_hospitals_flood_slows_nobody_else(siege: Siege, tmp_path: Path) -> None:
    """16 threads without a pause, from the middle of a run on: the rounds before and after are compared."""
    federation, stop, calls = agreement(tmp_path, rounds=7, deadline_s=20), threading.Event(), [0]
    siege.register("flood")

    def flood() -> None:
        with connect(siege.coordinator, siege.keys["flood"], lambda: 1000, Clock()) as client:
            while not stop.is_set():
                calls[0] += 1
                with suppress(Exception):
                    client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=Node(node_id=1), heartbeat_interval=15))

    threads = [threading.Thread(target=flood, daemon=True) for _ in range(16)]
    with honest(siege, federation, "anna", "bert"):
        online(siege, "anna", "bert")
        run = start_run(siege, federation, "flooded")
        run.until(lambda event: event.get("round") == 3)
        began = time.monotonic()
        for thread in threads:
            thread.start()
        run.finish()
        rate = (calls[0] - limits.REQUESTS_AT_ONCE) / (time.monotonic() - began)
        stop.set()
        for thread in threads:
            thread.join(300)
    assert all(event["replied"] == 2 for event in run.rounds())
    assert rate < 2 * limits.REQUESTS_A_SECOND, rate
    calm, flooded = (sum(event["seconds"] for event in part) for part in (run.rounds()[:4], run.rounds()[4:]))
    assert flooded < 3 * calm + 20, (calm, flooded)  # each waits for its deadline, 20 s, where hospitals starve


def test_who_asks_far_too_often_is_told_so(siege: Siege) -> None:
    """More at once than can be held back for two seconds."""
    siege.register("eager")
    key, codes = siege.keys["eager"], list[int]()

    def ask() -> None:
        with connect(siege.coordinator, key, lambda: 1000, Clock()) as client:
            for _ in range(100):
                if 429 in codes:
                    return
                try:
                    client.SendNodeHeartbeat(SendNodeHeartbeatRequest(node=Node(node_id=1), heartbeat_interval=15))
                except httpx.HTTPStatusError as error:
                    codes.append(error.response.status_code)
                except httpx.TransportError:
                    pass  # one of more connections than a hospital has

    threads = [threading.Thread(target=ask) for _ in range(int(limits.REQUESTS_AT_ONCE))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert 429 in codes
    assert set(codes) <= {401, 429}  # it is not the node that it says it is


# The control port.


def as_nobody(siege: Siege, code: str) -> str:
    """Run Python as user 65534 with the coordinator's CA, which is no secret, and its port."""
    ca = siege.home.parent.parent / "ca-for-nobody.crt"
    ca.write_bytes(Home(siege.home).tls.ca.read_bytes())
    port = Home(siege.home).running()["admin"]
    become = f"os.setgroups([])\nos.setgid({NOBODY})\nos.setuid({NOBODY})"
    script = f"import encodings.idna, os, socket, ssl\n{become}\nPORT, CA = {port}, {ca.read_text()!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=600, check=False)
    return done.stdout + done.stderr.strip().rpartition("\n")[2]


ASK = """
context = ssl.create_default_context(cadata=CA)
try:
    plain = socket.create_connection(("127.0.0.1", PORT), timeout=20)
    line = context.wrap_socket(plain, server_hostname="127.0.0.1")
    head = ["POST /v1/control/list-nodes HTTP/1.1", "host: a", "content-type: application/x-protobuf"]
    line.sendall("\\r\\n".join([*head, "", ""]).encode())
    print("answered", line.recv(100))
except OSError as error:
    print("shut", type(error).__name__)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_of_this_machine_cannot_use_the_control_port(siege: Siege) -> None:
    said = as_nobody(siege, ASK)
    assert said.startswith("shut"), said
    assert "of another user" in (siege.home / "coordinator.log").read_text()
    # The same as the coordinator's own user is answered.
    with ControlApi(int(Home(siege.home).running()["admin"]), Home(siege.home).tls.ca) as control:
        assert control.seen()


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_nor_by_closing_before_it_is_looked_at(siege: Siege) -> None:
    """A socket that nobody owns any more is listed as root's: 200 connections that are shut or handed on at once."""
    said = as_nobody(
        siege,
        """
for number in range(200):
    line = socket.create_connection(("127.0.0.1", PORT), timeout=20)
    line.sendall(b"GET / HTTP/1.1\\r\\n\\r\\n")
    if number % 2:
        line.shutdown(socket.SHUT_WR)
    line.close()
print("done")
""",
    )
    assert said.startswith("done"), said
    with ControlApi(int(Home(siege.home).running()["admin"]), Home(siege.home).tls.ca) as control:
        assert len(control.seen()) == len(siege.keys)


def test_the_other_ports_are_on_loopback_alone(siege: Siege) -> None:
    where = Home(siege.home).running()
    for name in ("admin", "health"):
        port = f"{where[name]:04X}"
        tables = [Path(f"/proc/net/{table}").read_text().splitlines()[1:] for table in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        (listening,) = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(":" + port)]
        assert listening in (f"0100007F:{port}", f"0000000000000000FFFF00000100007F:{port}"), name


def test_who_owns_the_other_end_is_read_for_both_families(tmp_path: Path) -> None:
    from wardround.web.peers import is_the_owner, owner_of_peer

    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with socket.socket(family) as listener:
            try:
                listener.bind((host, 0))
            except OSError:
                continue  # a machine without IPv6
            listener.listen()
            with socket.create_connection(listener.getsockname()[:2]) as line:
                accepted, _ = listener.accept()
                with accepted:
                    assert owner_of_peer(accepted) == os.getuid()
                    assert is_the_owner(accepted)
                    line.close()
                    assert owner_of_peer(accepted) is None
                    assert not is_the_owner(accepted)


@pytest.mark.parametrize("seed", range(5))
def test_a_bucket_never_gives_more_than_it_says(seed: int) -> None:
    draws, now = random.Random(seed), 0.0
    bucket, given = limits.Bucket(5.0, 20.0, now), 0
    for _ in range(2000):
        now += draws.expovariate(20.0)
        if bucket.wait_s(now) <= 0:
            given += 1
        else:
            bucket.give_back()
        assert given <= 20 + 5.0 * now + 1e-6
    assert given > 5.0 * now * 0.9
