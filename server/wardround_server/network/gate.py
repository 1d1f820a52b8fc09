"""The gate before a port: who may connect, how many at once, and for how long without saying anything.

It stands before TLS, because a handshake costs time and a connection costs a descriptor. HTTP itself is uvicorn's (h11,
which bounds a head); what a request may be is the door's (door.py).

A new connection is always let in, and the longest-waiting stranger put out for it: an honest hospital needs a few
hundredths of a second to become known, so nobody can keep it out by holding places.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from wardround.text import shown
from wardround_server.network import limits
from wardround_server.network.limits import Bucket, Connections

LOOK_EVERY_S = 0.5
TELL_EVERY_S = 60.0
CONNECTION = "wardround.connection"
log = logging.getLogger(__name__)


@dataclass(eq=False)
class Connection:
    """One connection. owner: the hospital that signed a request on it. since: when it was last of use."""

    address: str
    since: float
    owner: str = ""
    requests: int = 0
    busy: bool = False
    head_since: float | None = None
    unsent: int = 0
    send_until: float = 0.0
    transport: asyncio.Transport | None = None
    opening: asyncio.Task[None] | None = None

    def end(self) -> None:
        """Shut it now, whatever is going on."""
        if self.transport is not None:
            self.transport.abort()
        elif self.opening is not None:
            self.opening.cancel()

    def is_over(self, now: float) -> bool:
        """Whether its time is up."""
        unsent = self.transport.get_write_buffer_size() if self.transport is not None else 0
        if unsent > self.unsent:
            self.send_until = now + limits.GRACE_S + unsent / limits.LEAST_BYTES_A_SECOND
        self.unsent = unsent
        if unsent:
            return now > self.send_until
        if self.busy or self.transport is None:  # the door and the handshake have their own times
            return False
        if self.head_since is not None:
            return now - self.head_since > limits.HEAD_S
        return now - self.since > (limits.SILENT_HOSPITAL_S if self.owner else limits.SILENT_STRANGER_S)


@dataclass
class Gate:
    """Accepts what comes to a listening socket and hands it to a uvicorn server.

    Args:
        listener: bound and listening.
        server: has started, without sockets of its own.
        context: of TLS.
        bounds: how many connections.
        admits: whether a connection may be at all; asked before a byte of it is read.
    """

    listener: socket.socket
    server: uvicorn.Server
    context: ssl.SSLContext
    bounds: Connections
    admits: Callable[[socket.socket], bool] = lambda accepted: True
    open: set[Connection] = field(default_factory=set)
    _pace: dict[str, Bucket] = field(default_factory=dict)
    _turned_away: int = 0
    _told: float = 0.0

    async def run(self) -> None:
        """Accept until cancelled. No fault of a connection, and no lack of descriptors, ends it."""
        loop = asyncio.get_running_loop()
        self.listener.setblocking(False)
        sweeper = loop.create_task(self._sweep())
        try:
            while True:
                try:
                    accepted, peer = await loop.sock_accept(self.listener)
                except OSError as error:  # out of descriptors, or it was gone before it was here
                    self._say(f"a connection could not be accepted ({error.strerror})")
                    self._put_out(self.open)
                    await asyncio.sleep(0.1)
                    continue
                self._take(accepted, network_of(str(peer[0])))
                await asyncio.sleep(0)  # a flood must leave the loop to others
        finally:
            sweeper.cancel()
            for connection in list(self.open):
                connection.end()

    def becomes_known(self, connection: Connection, owner: str) -> None:
        """A request that a registered hospital signed came on it."""
        connection.owner = owner
        theirs = [each for each in self.open if each.owner == owner]
        if len(theirs) > limits.A_HOSPITAL:
            idle = [each for each in theirs if each is not connection and not each.busy]
            min(idle or [connection], key=lambda each: each.since).end()

    def _take(self, accepted: socket.socket, address: str) -> None:
        now = time.monotonic()
        if not self.admits(accepted):
            return self._turn_away(accepted, "a process of another user of this machine dialled the control port")
        strangers = [each for each in self.open if not each.owner]
        same = [each for each in strangers if each.address == address]
        if len(same) >= self.bounds.an_address:
            self._put_out(same)
        elif len(strangers) >= self.bounds.strangers or len(self.open) >= self.bounds.all:
            self._put_out(strangers)
        if len(self.open) >= self.bounds.all:
            return self._turn_away(accepted, "there are too many connections")
        connection = Connection(address, now)
        self.open.add(connection)
        connection.opening = asyncio.get_running_loop().create_task(self._begin(connection, accepted))
        return None

    async def _begin(self, connection: Connection, accepted: socket.socket) -> None:
        try:
            await _says_something(accepted)
            if not self._in_time(connection.address):
                self.open.discard(connection)
                return self._turn_away(accepted, f"{connection.address} connects too often")
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: _Watched(self, connection),
                accepted,
                ssl=self.context,
                ssl_handshake_timeout=limits.HANDSHAKE_S,
                ssl_shutdown_timeout=2.0,
            )
        except OSError:  # no TLS, too slow, gone again
            self.open.discard(connection)
            accepted.close()
        except asyncio.CancelledError:
            self.open.discard(connection)
            accepted.close()

    def _in_time(self, address: str) -> bool:
        """Whether the address may have another handshake already; what is too early is shut, for a queue would fill."""
        now = time.monotonic()
        bucket = self._pace.setdefault(address, Bucket(limits.NEW_A_SECOND, limits.NEW_AT_ONCE, now))
        if bucket.wait_s(now) <= 0:
            return True
        bucket.give_back()
        return False

    def _put_out(self, among: list[Connection] | set[Connection]) -> None:
        """Shut the stranger that waits for the longest, if there is one."""
        waiting = [each for each in among if not each.owner and not each.busy]
        if waiting:
            oldest = min(waiting, key=lambda each: each.since)
            self.open.discard(oldest)
            oldest.end()

    def _turn_away(self, accepted: socket.socket, why: str) -> None:
        self._turned_away += 1
        self._say(why)  # before it is seen outside
        accepted.close()

    def _say(self, what: str) -> None:
        """A line in the log, but not one for each connection of a flood."""
        now = time.monotonic()
        if now - self._told > TELL_EVERY_S:
            self._told = now
            log.warning("%s; %d connections turned away so far", shown(what), self._turned_away)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            for connection in [each for each in self.open if each.is_over(now)]:
                connection.end()
            self._pace = {address: bucket for address, bucket in self._pace.items() if not bucket.is_full(now)}


class _Watched(asyncio.Protocol):
    """uvicorn's protocol, and beside it the connection's times."""

    def __init__(self, gate: Gate, connection: Connection) -> None:
        self._gate, self._connection = gate, connection
        server = gate.server
        state = dict(server.lifespan.state) | {CONNECTION: connection}
        self._inner = H11Protocol(config=server.config, server_state=server.server_state, app_state=state)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._connection.transport = transport
        self._connection.since = time.monotonic()
        if self._connection not in self._gate.open:  # put out in the meantime
            transport.abort()
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        if not self._connection.busy and self._connection.head_since is None:
            self._connection.head_since = time.monotonic()
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def connection_lost(self, error: Exception | None) -> None:
        self._gate.open.discard(self._connection)
        self._inner.connection_lost(error)


async def _says_something(accepted: socket.socket) -> None:
    """Wait for the first byte, which costs nothing, before a handshake, which does. Raises: TimeoutError."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(accepted, ready.set)
    try:
        async with asyncio.timeout(limits.HANDSHAKE_S):
            await ready.wait()
    finally:
        loop.remove_reader(accepted)


def watched(app: ASGIApp) -> ASGIApp:
    """An application whose requests the gate knows of: between them a connection is idle."""

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        connection = scope.get("state", {}).get(CONNECTION)
        if connection is None:  # the lifespan
            return await app(scope, receive, send)
        connection.busy, connection.head_since = True, None
        connection.requests += 1
        try:
            await app(scope, receive, send)
        finally:
            connection.busy, connection.since = False, time.monotonic()
        return None

    return inner


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """TLS 1.2 or later, without renegotiation, which costs the server more than who asks for it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.load_cert_chain(certificate, key)
    return context


def network_of(address: str) -> str:
    """What is counted as one: an IPv4 address, or an IPv6 network of 64 bits, which is what one customer has."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is not None:
            return str(found.ipv4_mapped)
        return str(ipaddress.ip_network((found, 64), strict=False))
    return str(found)
