"""The hospital's own Flower node: one process, outbound connections only, no code that arrives is ever fetched.

It speaks Flower's Fleet API (flwr 1.41) itself, because a stock SuperNode downloads the coordinator's bundle and runs
it, starts a process for each message, and polls every 3 s. Here the bundle's hash is looked up among the approved ones
and the bundle stays where it is. This is the only file of the hospital with private Flower API; each symbol has a test
that fails by its name when Flower changes it.

A session on the coordinator                         what ends it
    activate      the key is registered              an unknown key: `Untrusted`
    poll          is there a message?                401: the coordinator forgot us, activate again
      pull        its objects                        a broken connection changes nothing: the step is repeated
      answer      a blob for a blob
      push        the reply, and its objects         403: the run is over, the reply is dropped
    heartbeat     beside it, also during an answer
    deactivate    at the end, so that the coordinator knows at once
"""

from __future__ import annotations

import json
import logging
import random
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node as PbNode
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_object_contents_from_iterable,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from wardround.errors import Untrusted, WardroundError
from wardround.wire import LIMIT_BYTES
from wardround_client.app import CANNOT_ANSWER, ERROR_CODE, Answers, reply_to
from wardround_client.explain import KeyRefused, explained, refused

POLL_S = 0.25
HEARTBEAT_S = 15.0  # what the coordinator is told; it believes us dead after two of them
BEAT_S = 4.0
PART_WAIT_S = 0.05  # a message is announced before its parts are there; Flower's own 1 s would double a round
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 20.0
NOT_APPROVED = "This hospital has not approved this bundle."
_GONE = (httpx.codes.FORBIDDEN, httpx.codes.NOT_FOUND, httpx.codes.PRECONDITION_FAILED, httpx.codes.BAD_REQUEST)
log = logging.getLogger(__name__)


class Link(StrEnum):
    """How the node stands with its coordinator."""

    CONNECTING = "connecting"
    CONNECTED = "connected"
    RETRYING = "retrying"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Coordinator:
    """address: host:port. ca_pem: the only certificate authority that is believed."""

    address: str
    ca_pem: bytes


@dataclass
class _Work:
    """The one message that is worked on: kept until its reply is delivered, so that a broken line loses nothing."""

    head: Message
    tree: ObjectTree
    reply: Message | None = None
    seconds: float = 0.0


class _Forgotten(Exception):
    """The coordinator does not know this session any more."""


class Node:
    """A hospital's node.

    Args:
        coordinator: where to connect, and whom to believe.
        key: the node's private key; its public half is registered at the coordinator.
        answer: gives the hospital's blob for the coordinator's; must not raise.
        approved_bundles: SHA-256 of the bundles that the hospital approved, asked at each message.
        memory: a small file that remembers the node's number, to come back at once after a crash.
        report: told whenever the link changes, with a sentence for a person.
        poll_s: how long an idle node waits before it asks again.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        key: ec.EllipticCurvePrivateKey,
        answer: Answers,
        approved_bundles: Callable[[], frozenset[str]],
        memory: Path,
        *,
        report: Callable[[Link, str], None] = lambda link, detail: None,
        poll_s: float = POLL_S,
    ) -> None:
        self._coordinator, self._key, self._answer = coordinator, key, answer
        self._approved_bundles, self._memory, self._report, self._poll_s = approved_bundles, memory, report, poll_s
        self._session: _Session | None = None
        self._work: _Work | None = None

    def run(self, stop: threading.Event, *, give_up_after_s: float | None = None) -> None:
        """Work until `stop`. A broken connection is repaired for as long as it takes.

        Args:
            stop: ends the loop; the coordinator is told.
            give_up_after_s: how long to go on trying while nothing connects; None: for ever.

        Raises:
            Untrusted: at the first contact, the coordinator's certificate or this node's key is not accepted. A node
                that was connected before goes on trying instead.
            Unreachable: only with give_up_after_s.
        """
        wait_s, failing_since = FIRST_WAIT_S, time.monotonic()
        met = False  # whether this process was ever connected
        self._report(Link.CONNECTING, f"connecting to {self._coordinator.address}")
        with self._client() as client:
            try:
                while not stop.is_set():
                    try:
                        with explained(self._coordinator.address):
                            busy = self._step(client)
                    except WardroundError as error:
                        late = give_up_after_s is not None and time.monotonic() - failing_since >= give_up_after_s
                        if late or self._hopeless(error, met):
                            raise
                        pause_s = random.uniform(0.5, 1.0) * wait_s  # jitter: hospitals must not come back in step
                        wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                        self._report(Link.RETRYING, f"{error} Trying again in {pause_s:.1f} s.")
                        stop.wait(pause_s)
                        continue
                    if not met or wait_s > FIRST_WAIT_S:
                        self._report(Link.CONNECTED, f"connected to {self._coordinator.address}")
                    met, wait_s, failing_since = True, FIRST_WAIT_S, time.monotonic()
                    if not busy:
                        stop.wait(self._poll_s)
            finally:
                if self._session:
                    self._session.end()
                self._report(Link.STOPPED, "stopped")

    def _client(self) -> FleetHttpClient:
        try:
            return FleetHttpClient.from_server_address(
                self._coordinator.address,
                False,
                self._coordinator.ca_pem,
                interceptors=[
                    RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                    NodeAuthHttpInterceptor(self._key, self._key.public_key()),
                ],
            )
        except (ssl.SSLError, ValueError):
            raise Untrusted(
                "the coordinator's CA file holds no certificate",
                do="join again, with the coordinator's invitation.toml",
            ) from None

    def _hopeless(self, error: WardroundError, met: bool) -> bool:
        """Whether a person has to act first. A key that was accepted before may only be late after a crash."""
        if met or not isinstance(error, Untrusted):
            return False
        return not (isinstance(error, KeyRefused) and self._remembered() is not None)

    def _step(self, client: FleetHttpClient) -> bool:
        """One step of the session -> whether there was something to do."""
        if self._session is None or self._session.lost.is_set():
            self._session = self._begin(client)
        try:
            if self._work is None:
                self._work = self._session.poll()
            if self._work is None:
                return False
            self._do(self._session, self._work)
        except _Forgotten:
            self._session.end()
            self._session = None
        return True

    def _do(self, session: _Session, work: _Work) -> None:
        """Answer the message and deliver the reply; a step that fails for a broken line is repeated later."""
        try:
            if work.reply is None:
                started = time.monotonic()
                work.reply = self._reply(session, work)
                work.seconds = time.monotonic() - started
            session.push(work.reply, work.seconds)
        except httpx.HTTPStatusError as error:
            if error.response.status_code not in _GONE:
                raise
            log.info("the run of a message is over: its reply is dropped")
        except (ObjectPullError, ObjectPushError) as error:
            log.warning("a message was dropped: its parts are no longer there (%s)", type(error).__name__)
        self._work = None

    def _reply(self, session: _Session, work: _Work) -> Message:
        parts = session.fetch(work)
        if session.bundle(work.head) not in self._approved_bundles():
            log.warning("a run was refused: its bundle is not approved here")
            return Message(Error(ErrorCode.INVALID_FAB, NOT_APPROVED), reply_to=work.head)
        content = _content(work, parts)
        if content is None:
            return Message(Error(ERROR_CODE, CANNOT_ANSWER), reply_to=work.head)
        return reply_to(work.head, self._answer, content)

    def _begin(self, client: FleetHttpClient) -> _Session:
        remembered = self._remembered()
        if remembered is not None:
            # After a kill the coordinator believes for up to half a minute that the old process lives: end its session.
            with suppress(httpx.HTTPStatusError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=remembered))
        request = ActivateNodeRequest(
            public_key=public_key_to_bytes(self._key.public_key()), heartbeat_interval=HEARTBEAT_S
        )
        try:
            node_id = client.ActivateNode(request).node_id
        except httpx.HTTPStatusError as error:
            raise refused(error, self._coordinator.address) from None
        self._remember(node_id)
        return _Session(client, node_id)

    def _remembered(self) -> int | None:
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self._memory.read_text(encoding="utf-8"))
            if known["address"] == self._coordinator.address:
                return int(known["node_id"])
        return None

    def _remember(self, node_id: int) -> None:
        try:
            text = json.dumps({"address": self._coordinator.address, "node_id": node_id})
            self._memory.write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            log.warning("%s cannot be written (%s): a crash will cost time", self._memory, error.strerror)


class _Session:
    """An activated node: calls of the Fleet API, and a heartbeat beside them."""

    def __init__(self, client: FleetHttpClient, node_id: int) -> None:
        self._client, self._node = client, PbNode(node_id=node_id)
        self.lost, self._ended = threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def end(self) -> None:
        """Stop the heartbeat and tell the coordinator, as far as it listens."""
        self._ended.set()
        self._heart.join()
        with suppress(httpx.HTTPError, ValueError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def poll(self) -> _Work | None:
        """The next message, without its content."""
        with _known():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        return _Work(message_from_proto(response.messages_list[0]), response.message_object_trees[0])

    def bundle(self, head: Message) -> str:
        """SHA-256 of the bundle of the message's run."""
        with _known():
            response = self._client.GetRun(GetRunRequest(node=self._node, run_id=head.metadata.run_id))
        return response.run.fab_hash

    def fetch(self, work: _Work) -> dict[str, bytes]:
        """The message's parts, unread, by their SHA-256; the coordinator then forgets them.

        Also done for a message that will be refused. To confirm it without would take the parts away while the
        coordinator may still be pushing them, and fail its run; not to confirm it would fill the coordinator's memory.

        Raises: ObjectPullError, also when the message is larger than any message of ours.
        """
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, self._node, work.head.metadata.run_id)
        size = 0

        def limited(object_id: str) -> bytes:
            nonlocal size
            data = fetch(object_id)
            size += len(data)
            if size > 2 * LIMIT_BYTES:
                raise ObjectPullError(object_id, "the message is larger than any message of wardround")
            return data

        with _known():
            wanted = [part.object_id for part in iterate_object_tree(work.tree)]
            parts = pull_objects(wanted, limited, initial_backoff=PART_WAIT_S)
        self._confirm(work)
        return parts

    def _confirm(self, work: _Work) -> None:
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, work.head.metadata.run_id
        )
        with _known():
            confirm(work.tree.object_id)

    def push(self, reply: Message, seconds: float) -> None:
        """Deliver a reply with its parts."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id  # Flower's own setter for it is private
            head = remove_content_from_message(reply) if reply.has_content() else reply
            with _known():
                response = self._client.PushMessages(
                    PushMessagesRequest(
                        node=self._node,
                        messages_list=[message_to_proto(head)],
                        message_object_trees=[get_object_tree(reply)],
                        clientapp_runtime_list=[seconds],
                    )
                )
            wanted = set(response.objects_to_push)
            parts = ((name, part.deflate()) for name, part in get_all_nested_objects(reply).items() if name in wanted)
            run_id = reply.metadata.run_id
            store = make_push_object_fn_protobuf(self._client.PushObject, self._node, run_id, response.session_id)
            with _known():
                push_object_contents_from_iterable(parts, store)

    def _beat(self) -> None:
        request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
        while not self._ended.wait(BEAT_S):
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self.lost.set()
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self.lost.set()
            except (httpx.HTTPError, ValueError, RuntimeError):
                pass  # the main loop meets the same broken line, and says so
            if self.lost.is_set():
                return


def _content(work: _Work, parts: dict[str, bytes]) -> RecordDict | None:
    """The message's content out of its parts; None, when they are not those of a message."""
    try:
        message = inflate_object_from_contents(work.tree.object_id, parts)
        return message.content if isinstance(message, Message) and message.has_content() else None
    except Exception as error:  # somebody else put it together: anything may be wrong with it
        log.warning("a message cannot be read (%s)", type(error).__name__)
        return None


@contextmanager
def _known() -> Iterator[None]:
    """A call of a live session. Raises: _Forgotten, when the coordinator does not know it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise _Forgotten from None
        raise
