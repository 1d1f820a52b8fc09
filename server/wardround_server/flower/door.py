"""The door of the hospitals' port: an ASGI layer before Flower's own, which reads whatever it is sent.

A request passes these in order, and the body of one that fails is not read:
    path and method     only what a hospital needs                                       404
    key and signature   of a registered hospital, by the same headers as Flower's        401, 412 (an unknown key)
    pace                so many a second for each hospital; held back, then refused      429
    length              by path: a part is no longer than any reply in any run           413, 408 (too slow)
    what is announced   one reply of the shape that a reply has, of its own              400, 413
    what is uploaded    a part of that reply; all together no longer than a reply        404, 413
    a poll              passes only while there can be a message for it
    a farewell          waits until the runs have heard of its replies
    the same once more  of a reply's calls is answered as the first was

The hospital's node drops a reply that is refused with 400, 403, 404 or 412, and waits when it is told 429.
"""

from __future__ import annotations

import asyncio
import binascii
import datetime
import hashlib
import json
import logging
import time
from base64 import b64decode
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from flwr.common.constant import SUPERLINK_NODE_ID, SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree, PushObjectRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.object_store import ObjectStore
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from wardround.errors import ConfigError
from wardround_flower.parts import CHUNK_BYTES, ENVELOPE_BYTES, most_parts
from wardround_server.flower.news import POLL, News, Polls, keeping, say, whole
from wardround_server.hospitals import Member, Registry
from wardround_server.network import limits
from wardround_server.network.gate import CONNECTION, Connection
from wardround_server.network.limits import Bucket, largest_replies, largest_reply

FLEET, ACTIVATE, ANNOUNCE, UPLOAD = "/v1/fleet/", "activate-node", "push-messages", "push-object"
LEAVE = "deactivate-node"
PATHS = frozenset(
    FLEET + name
    for name in (
        *(ACTIVATE, LEAVE, "send-node-heartbeat", "pull-messages", "push-messages", "get-run"),
        *("get-fab", "push-object", "pull-object", "confirm-message-received"),
    )
)
GOES_ON = frozenset(("get-run", "get-fab", "pull-object", "confirm-message-received"))
"""What a hospital asks that has heard of a message."""

log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that does not pass. code: the HTTP status."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code, self.why = code, why


class Gone(Exception):
    """Who asked has hung up."""


@dataclass
class Announced:
    """A reply that a hospital announced. to: which message. tree: as it came. sizes: bytes of each part that was
    uploaded, by its id. answers: what Flower said to each call of it, by the call's SHA-256. one: held by one call
    after another.
    """

    run: int
    to: str
    tree: bytes
    parts: frozenset[str]
    sizes: dict[str, int] = field(default_factory=dict)
    answers: dict[bytes, list[Message]] = field(default_factory=dict)
    one: asyncio.Lock = field(default_factory=asyncio.Lock)


@dataclass
class Visitor:
    """What the door remembers of a hospital."""

    pace: Bucket
    places: asyncio.Semaphore
    polls: Polls
    replies: dict[str, Announced] = field(default_factory=dict)
    lines: Bucket = field(default_factory=lambda: Bucket(1 / 30, 20, time.monotonic()))

    def tell(self, what: str) -> None:
        """A line in the log, as far as this hospital has not filled it already."""
        if self.lines.wait_s(time.monotonic()) > 0:
            self.lines.give_back()
        else:
            log.warning("%s", what)


class Door:
    """The layer.

    Args:
        app: Flower's application.
        home: the coordinator's home, with the registry and the runs that go on.
        store: where Flower keeps what was announced.
        becomes_known: told when a connection brings a request that a registered hospital signed.
        news: what the runs have pushed.
    """

    def __init__(
        self, app: ASGIApp, home: Path, store: ObjectStore, becomes_known: Callable[[Connection, str], None], news: News
    ) -> None:
        self._app, self._home, self._store, self._becomes_known = app, home, store, becomes_known
        self._news = news
        self._registry = Registry(home)
        self._hospitals: dict[bytes, Member] = {}
        self._read: object = ()
        self._visitors: dict[tuple[str, int], Visitor] = {}
        self._coming: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or end it."""
        if scope["type"] != "http":
            return
        connection: Connection = scope["state"][CONNECTION]
        if (scope["method"], scope["path"]) == ("GET", "/health"):
            await _answer(
                send, 200, "the coordinator is up", close=connection.requests >= limits.REQUESTS_OF_A_STRANGER
            )
            return
        try:
            await self._serve(connection, scope, receive, send)
        except Refused as refused:
            # What was not read is read over only where it is short and on its way already.
            unread = int(Headers(scope=scope).get("content-length", limits.TREE_BYTES + 1))
            tired = not connection.owner and connection.requests >= limits.REQUESTS_OF_A_STRANGER
            await _answer(send, refused.code, refused.why, close=tired or unread > limits.TREE_BYTES)
        except Gone:
            pass

    async def _serve(self, connection: Connection, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST" or scope["path"] not in PATHS:
            raise Refused(404, "there is nothing here")
        name, headers = scope["path"].removeprefix(FLEET), Headers(scope=scope)
        hospital = self._who(name, headers)
        if not connection.owner:
            self._becomes_known(connection, hospital.name)
        visitor = self._visitor(hospital)
        await self._in_step(hospital.name, visitor)
        try:
            async with visitor.places:
                bound = self._bound(name)
                if int(headers.get("content-length", 0)) > bound:
                    raise Refused(413, f"a body of more than {bound:,} bytes")
                body = await _body(receive, bound)
                if name == ANNOUNCE:
                    return await self._announce(hospital, visitor, body, scope, receive, send)
                if name == UPLOAD:
                    return await self._pass(self._uploaded(visitor, body), body, scope, receive, send)
                if name == POLL:
                    return await visitor.polls.answer(body, scope, _once(body, receive), send)
                if name in GOES_ON:
                    visitor.polls.heard()
                if name == LEAVE:
                    await self._heard_of(visitor.replies.values())
                return await self._app(scope, _once(body, receive), send)
        except Refused as refused:
            visitor.tell(f"{hospital.name}: {name} refused: {refused.why}")
            raise

    def _who(self, name: str, headers: Headers) -> Member:
        """Whose request it is, by the key and the signed time in its head. Raises: Refused."""
        try:
            key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
            signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
            stamp = headers[TIMESTAMP_HEADER]
            age_s = (datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(stamp)).total_seconds()
            hospital = self._known().get(key)
            if hospital is None:
                raise Refused(412 if name == ACTIVATE else 401, "no registered hospital has this key")
            if not -SYSTEM_TIME_TOLERANCE < age_s < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
                raise Refused(401, f"signed {age_s:.0f} s ago by the coordinator's clock")
            if verify_signature(bytes_to_public_key(key), stamp.encode("ascii"), signature):
                return hospital
        except (KeyError, ValueError, TypeError, OverflowError, binascii.Error):
            pass
        raise Refused(401, "not signed by a registered hospital")

    def _known(self) -> dict[bytes, Member]:
        """The registry by key, read again when its file has changed."""
        if (now := self._registry.state()) != self._read:
            try:
                self._hospitals = {hospital.key_pem: hospital for hospital in self._registry}
            except ConfigError as error:  # whoever was known stays so, until somebody mends the file
                log.error("%s", error)
            self._read = now
        return self._hospitals

    def _visitor(self, hospital: Member) -> Visitor:
        who = hospital.name, hospital.node_id or 0  # 0 is nobody's: the SuperLink has not been told of it yet
        if who not in self._visitors:
            pace = Bucket(limits.REQUESTS_A_SECOND, limits.REQUESTS_AT_ONCE, time.monotonic())
            polls = Polls(self._app, self._news, self._store, who[1])
            self._visitors[who] = Visitor(pace, asyncio.Semaphore(limits.IN_PROGRESS), polls)
        return self._visitors[who]

    async def _in_step(self, name: str, visitor: Visitor) -> None:
        """Hold a request back that comes too early. Raises: Refused, when it comes far too early."""
        now = time.monotonic()
        wait_s = visitor.pace.wait_s(now)
        if wait_s > limits.LONGEST_WAIT_S:
            visitor.pace.give_back()
            visitor.tell(f"{name} asks more than {limits.REQUESTS_A_SECOND:g} times a second: it is slowed down")
            await asyncio.sleep(limits.LONGEST_WAIT_S)  # who asks in a loop waits as well
            raise Refused(429, f"more than {limits.REQUESTS_A_SECOND:g} requests a second")
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def _bound(self, name: str) -> int:
        if name == ANNOUNCE:
            return limits.TREE_BYTES
        if name != UPLOAD:
            return limits.SMALL_BYTES
        longest = largest_replies(self._home)
        return limits.SMALL_BYTES + (min(longest + ENVELOPE_BYTES, CHUNK_BYTES) if longest else 0)

    async def _announce(
        self, hospital: Member, visitor: Visitor, body: bytes, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Look at an announced reply before Flower builds on it; remember it if Flower takes it. Raises: Refused."""
        try:
            request = PushMessagesRequest.FromString(body)
            (head,), (tree,) = request.messages_list, request.message_object_trees
        except (DecodeError, ValueError):
            raise Refused(400, "not one reply with one tree of parts") from None
        metadata = head.metadata
        longest = largest_reply(self._home, metadata.run_id)
        if longest is None:
            raise Refused(403, "no such run goes on")
        if (metadata.src_node_id, metadata.dst_node_id) != (hospital.node_id, SUPERLINK_NODE_ID):
            raise Refused(400, "not a reply of this hospital to the coordinator")
        if not metadata.reply_to_message_id or metadata.message_id != tree.object_id or head.content.ByteSize():
            raise Refused(400, "not a reply")
        parts = _parts(tree)
        if len(parts) > most_parts(longest):
            raise Refused(413, f"a reply of {len(parts):,} parts")
        # A reply that Flower did not take, and one that was fetched or is over, has no parts in its store.
        visitor.replies = {
            root: each for root, each in visitor.replies.items() if root in self._store or each.one.locked()
        }
        reply, wire = visitor.replies.get(tree.object_id), tree.SerializeToString(deterministic=True)
        if reply is not None and reply.tree != wire:
            raise Refused(400, "another tree than before for the same reply")
        fresh = set() if reply else set(parts)
        if any(part in self._store or part in self._coming for part in fresh):
            raise Refused(400, "parts of something else")
        self._coming |= fresh
        # Before Flower's answer is out, for its first part, or a run that looks, may be here at once.
        announced = Announced(metadata.run_id, metadata.reply_to_message_id, wire, frozenset(parts))
        reply = visitor.replies.setdefault(tree.object_id, announced)
        if reply is announced:
            self._news.unseen.add(reply.to)
        try:
            await self._pass(reply, body, scope, receive, send)
        finally:
            self._coming -= fresh
            if tree.object_id not in self._store:  # not taken
                self._news.unseen.discard(reply.to)

    async def _heard_of(self, replies: Collection[Announced]) -> None:
        """Wait for the runs to hear of them: of a node that has gone Flower gives a run no reply that it had not asked
        for before, though patients have paid for it. As long as the run goes on, and less than the hospital waits.
        """
        ends = time.monotonic() + limits.FAREWELL_S
        while time.monotonic() < ends and any(
            each.to in self._news.unseen and largest_reply(self._home, each.run) is not None for each in replies
        ):
            await asyncio.sleep(0.05)

    async def _pass(self, reply: Announced, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on. The same again, of a hospital that heard no answer in time, is answered as the first was:
        Flower takes each call once, and would let the hospital drop its reply.
        """
        digest = hashlib.sha256(body).digest()
        async with reply.one:
            answer = reply.answers.get(digest, [])
            await say(answer, send)
            if not answer:
                await self._app(scope, _once(body, receive), keeping(answer, send))
                if whole(answer) and len(reply.answers) <= len(reply.parts):
                    reply.answers[digest] = answer

    def _uploaded(self, visitor: Visitor, body: bytes) -> Announced:
        """Look at an uploaded part -> the reply that it is of. Raises: Refused."""
        try:
            request = PushObjectRequest.FromString(body)
        except DecodeError:
            raise Refused(400, "not a part") from None
        reply = next((each for each in visitor.replies.values() if request.object_id in each.parts), None)
        longest = largest_reply(self._home, request.run_id)
        if reply is None or longest is None or reply.run != request.run_id:
            raise Refused(404, "not a part of an announced reply")
        sizes = reply.sizes | {request.object_id: len(request.object_content)}
        if sum(sizes.values()) > longest + ENVELOPE_BYTES:
            raise Refused(413, f"a reply of more than {longest + ENVELOPE_BYTES:,} bytes")
        reply.sizes = sizes
        return reply


def _parts(tree: ObjectTree) -> list[str]:
    """The ids of a reply's parts: a chain of five (message, records, arrays, array, its chunks), or a message alone.

    No id may be there twice: a part that is listed a hundred times by each of a hundred others, three deep, is a
    million when Flower unfolds it.

    Raises: Refused.
    """
    found, level = [tree.object_id], tree
    for _ in range(3):
        if not level.children:
            break
        if len(level.children) != 1:
            raise Refused(400, "not the shape of a reply")
        level = level.children[0]
        found.append(level.object_id)
    for leaf in level.children:
        if leaf.children:
            raise Refused(400, "not the shape of a reply")
        found.append(leaf.object_id)
    if len(set(found)) != len(found):
        raise Refused(400, "a reply that lists a part twice")
    return found


async def _body(receive: Receive, bound: int) -> bytes:
    """A request's body. Raises: Refused, when it is too long or comes too slowly; Gone."""
    body, loop = bytearray(), asyncio.get_running_loop()
    began = loop.time()
    while True:
        try:
            async with asyncio.timeout_at(began + limits.GRACE_S + len(body) / limits.LEAST_BYTES_A_SECOND):
                message = await receive()
        except TimeoutError:
            raise Refused(408, f"fewer than {limits.LEAST_BYTES_A_SECOND:,} bytes a second") from None
        if message["type"] == "http.disconnect":
            raise Gone
        body += message.get("body", b"")
        if len(body) > bound:
            raise Refused(413, f"a body of more than {bound:,} bytes")
        if not message.get("more_body", False):
            return bytes(body)


def _once(body: bytes, afterwards: Receive) -> Receive:
    """What Flower reads: the body, and then what the connection says."""
    rest: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return rest.pop() if rest else await afterwards()

    return receive


async def _answer(send: Send, code: int, what: str, *, close: bool) -> None:
    body = json.dumps({"detail": what}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if code == 429:
        headers.append((b"retry-after", b"2"))
    await send(
        {"type": "http.response.start", "status": code, "headers": headers + [(b"connection", b"close")] * close}
    )
    await send({"type": "http.response.body", "body": body})
