"""Flower's Fleet API (flwr 1.42), as far as a hospital's node speaks it.

This is the only file of the hospital with private Flower API; each symbol has a test that fails by its name when Flower
changes it. Nothing that a coordinator answers is believed: its length is bounded while it is read, and what cannot be
understood is an error of a known kind.
"""

from __future__ import annotations

import logging
import ssl
import threading
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.constant import TIMESTAMP_HEADER, ErrorCode
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
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
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
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.runtime_version_compatibility import (
    RuntimeVersionMetadata,
    get_runtime_version_incompatibility_exit_message,
)
from flwr.supernode.fleet_http_client import FleetHttpClient

from wardround.errors import ConfigError, FederationError, MessageError, Untrusted, WardroundError
from wardround.proxies import proxy_for, spare_loopback
from wardround_client.flower.clock_skew import Clock
from wardround_client.flower.errors import refused
from wardround_client.flower.http_limits import bound
from wardround_client.flower.pace import BEAT_S, BELIEVED_S, Pace
from wardround_flower.parts import check_parts, most_parts

PART_WAIT_S = 0.05  # a message is announced before its parts are there; Flower's own 1 s would double a round
PARTS_WAIT_S = 120.0  # how long an announced part may take to appear
CALL_TIMEOUT_S = 30.0
KEEP_LINE_S = 60.0  # an idle connection; a new one costs a handshake, and the coordinator shuts it after 75 s
ANSWER_BYTES = 1 << 20  # of every answer that is not a part of a message
INVALID_BUNDLE = int(ErrorCode.INVALID_FAB)
log = logging.getLogger(__name__)

__all__ = ["Coordinator", "FleetHttpClient", "Forgotten", "ObjectPullError", "ObjectPushError", "Session", "Work"]


@dataclass(frozen=True)
class Coordinator:
    """address: host:port. ca_pem: the only certificate authority that is believed."""

    address: str
    ca_pem: bytes

    @property
    def host(self) -> str:
        """Without the port, and without the brackets of an IPv6 address."""
        return self.address.rpartition(":")[0].strip("[]")


@dataclass
class Work:
    """The one message that is worked on: kept until its reply is delivered, so that a broken line loses nothing."""

    head: Message
    tree: ObjectTree
    reply: Message | None = None


class Forgotten(Exception):
    """The coordinator does not know this session any more."""


def connect(
    coordinator: Coordinator, key: ec.EllipticCurvePrivateKey, largest_part: Callable[[], int], clock: Clock
) -> FleetHttpClient:
    """A client of the coordinator's; connects when it is first used.

    Args:
        coordinator: where, and whom to believe.
        key: the node's private key; signs every call.
        largest_part: bytes of a message's part, at most; asked at each.
        clock: hears the coordinator's at each answer, and dates the signatures.

    Raises: Untrusted, when the CA file is none; ConfigError, when the environment names a proxy that cannot be used.
    """
    spare_loopback(coordinator.host)
    try:
        trusted = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusted.load_verify_locations(cadata=coordinator.ca_pem.decode("ascii"))
        client = FleetHttpClient(f"https://{coordinator.address}", interceptors=[_Version(), _Signature(key, clock)])
        client._client.close()  # httpx shuts an idle line after 5 s, and Flower leaves no way to say otherwise
        lines = httpx.Limits(keepalive_expiry=KEEP_LINE_S)
        client._client = httpx.Client(verify=trusted, timeout=CALL_TIMEOUT_S, limits=lines)
    except (ssl.SSLError, ValueError, ImportError, httpx.InvalidURL) as error:
        if (proxy := proxy_for(coordinator.host)) and not isinstance(error, ssl.SSLError):
            raise ConfigError(
                f"the environment names a proxy that cannot be used: {proxy} ({type(error).__name__})",
                allowed="http://HOST:PORT or https://HOST:PORT",
                do=f"correct HTTPS_PROXY or ALL_PROXY, or add {coordinator.host} to NO_PROXY",
            ) from None
        raise Untrusted(
            "the coordinator's CA file holds no certificate",
            do="join again, with the coordinator's invitation.toml",
        ) from None
    bound(client._client, lambda url: largest_part() if url.path.endswith("/pull-object") else ANSWER_BYTES)
    client._client.event_hooks["response"].append(clock.hear)
    return client


class Session:
    """An activated node: calls of the Fleet API, and a heartbeat beside them."""

    @classmethod
    def begin(
        cls,
        client: FleetHttpClient,
        key: ec.EllipticCurvePrivateKey,
        address: str,
        number: int | None,
        clock: Clock,
        pace: Pace | None = None,
    ) -> Session:
        """Activate the node.

        Args:
            client: from `connect`.
            key: the node's private key.
            address: of the coordinator, for what is said when it refuses.
            number: the node's, where it is remembered.
            clock: of the client.
            pace: of the node; default: as if it had just worked.

        Raises: KeyRefused.
        """
        unheard = clock.ahead_s is None
        if number is not None:
            # After a kill the coordinator believes for up to half a minute that the old process lives: end its session.
            with suppress(httpx.HTTPStatusError):
                client.DeactivateNode(DeactivateNodeRequest(node_id=number))
        request = ActivateNodeRequest(public_key=public_key_to_bytes(key.public_key()), heartbeat_interval=BELIEVED_S)
        try:
            return cls(client, client.ActivateNode(request).node_id, pace or Pace())
        except httpx.HTTPStatusError as error:
            if unheard and error.response.status_code == httpx.codes.UNAUTHORIZED and clock.ahead_s is not None:
                return cls.begin(
                    client, key, address, number, clock, pace
                )  # its answer told how far the clocks are apart
            raise refused(error, address, clock) from None

    def __init__(self, client: FleetHttpClient, node_id: int, pace: Pace) -> None:
        self.number, self._pace = node_id, pace
        self._client, self._node = client, PbNode(node_id=node_id)
        self.lost, self._ended = threading.Event(), threading.Event()
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._heart.start()

    def end(self) -> None:
        """Stop the heartbeat and tell the coordinator, as far as it listens."""
        self._ended.set()
        self._heart.join()
        with suppress(httpx.HTTPError, ValueError, WardroundError):
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))

    def poll(self) -> Work | None:
        """The next message, without its content."""
        with _known():
            response = self._client.PullMessages(PullMessagesRequest(node=self._node))
        if not response.messages_list:
            return None
        try:
            return Work(message_from_proto(response.messages_list[0]), response.message_object_trees[0])
        except Exception as error:
            raise ValueError(f"no message ({type(error).__name__})") from None

    def bundle(self, head: Message) -> str:
        """SHA-256 of the bundle of the message's run."""
        with _known():
            response = self._client.GetRun(GetRunRequest(node=self._node, run_id=head.metadata.run_id))
        return response.run.fab_hash

    def fetch(self, work: Work, limit: int) -> dict[str, bytes]:
        """The message's parts, unread, by their SHA-256; the coordinator then forgets them.

        Also done for a message that will be refused. To confirm it without would take the parts away while the
        coordinator may still be pushing them, and fail its run; not to confirm it would fill the coordinator's memory,
        and is done only where the message is too large to be fetched.

        Raises:
            ObjectPullError: a part is no longer there, or did not appear in time.
            MessageError: all parts together are longer than limit, or there are more than a message has.
        """
        wanted = [part.object_id for part in iterate_object_tree(work.tree)]
        if len(wanted) > most_parts(limit):
            raise MessageError(f"a message of {len(wanted)} parts", allowed="as many as its length explains")
        fetch = make_pull_object_fn_protobuf(self._client.PullObject, self._node, work.head.metadata.run_id)
        size = 0

        def limited(object_id: str) -> bytes:
            nonlocal size
            data = fetch(object_id)
            size += len(data)
            if size > limit:
                raise MessageError("a message that goes on", allowed=f"at most {limit} bytes")
            return data

        with _known():
            parts = pull_objects(wanted, limited, initial_backoff=PART_WAIT_S, max_time=PARTS_WAIT_S)
        self._confirm(work)
        return parts

    def _confirm(self, work: Work) -> None:
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, work.head.metadata.run_id
        )
        with _known():
            confirm(work.tree.object_id)

    def push(self, reply: Message) -> None:
        """Deliver a reply with its parts. How long it took is not said: the time may tell of the data."""
        with no_object_id_recompute():
            reply.metadata.__dict__["_message_id"] = reply.object_id  # Flower's own setter for it is private
            head = remove_content_from_message(reply) if reply.has_content() else reply
            with _known():
                response = self._client.PushMessages(
                    PushMessagesRequest(
                        node=self._node,
                        messages_list=[message_to_proto(head)],
                        message_object_trees=[get_object_tree(reply)],
                        clientapp_runtime_list=[0.0],
                    )
                )
            wanted = set(response.objects_to_push)
            parts = ((name, part.deflate()) for name, part in get_all_nested_objects(reply).items() if name in wanted)
            run_id = reply.metadata.run_id
            store = make_push_object_fn_protobuf(self._client.PushObject, self._node, run_id, response.session_id)
            with _known():
                push_object_contents_from_iterable(parts, store)

    def _beat(self) -> None:
        wait_s, request = BEAT_S, SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=BELIEVED_S)
        while not self._ended.wait(wait_s):
            wait_s = self._pace.beat_s()
            try:
                if not self._client.SendNodeHeartbeat(request).success:
                    self.lost.set()
            except httpx.HTTPStatusError as error:
                if error.response.status_code == httpx.codes.UNAUTHORIZED:
                    self.lost.set()
                wait_s = BEAT_S
            except (httpx.HTTPError, ValueError, RuntimeError, WardroundError):
                wait_s = BEAT_S  # the main loop meets the same broken line, and says so
            if self.lost.is_set():
                return


class _Signature:
    """Signs each call with the node's key and the time. Flower's own knows this machine's clock only."""

    def __init__(self, key: ec.EllipticCurvePrivateKey, clock: Clock) -> None:
        self._key, self._clock = key, clock
        self._public = b64encode(public_key_to_bytes(key.public_key())).decode("ascii")

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add the three headers that Flower's SuperLink checks."""
        timestamp = self._clock.for_signatures().isoformat()
        signature = b64encode(sign_message(self._key, timestamp.encode("ascii"))).decode("ascii")
        headers = {
            FLEET_HTTP_PUBLIC_KEY_HEADER: self._public,
            TIMESTAMP_HEADER: timestamp,
            FLEET_HTTP_SIGNATURE_HEADER: signature,
        }
        context.request.headers.update(headers)
        return call_next(context)


class _Version:
    """Tells our version of Flower. Flower's own interceptor ends the whole program when the coordinator says so."""

    def __init__(self) -> None:
        self._headers = dict(RuntimeVersionMetadata.from_local_component("SuperNode").as_metadata())

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Add our version, and look whether it was refused. Raises: FederationError."""
        context.request.headers.update(self._headers)
        response = call_next(context)
        if response.is_error and get_runtime_version_incompatibility_exit_message(response.text):
            raise FederationError(
                f"the coordinator at {context.request.url.host} runs a version of Flower that does not fit",
                do="install the same wardround",
            )
        return response


def content_of(work: Work, parts: dict[str, bytes], limit: int) -> RecordDict | None:
    """The message's content out of its parts; None, when they are not those of a message.

    Raises: MessageError, when it would be longer than limit.
    """
    try:
        check_parts(parts, limit)
        message = inflate_object_from_contents(work.tree.object_id, parts)
        return message.content if isinstance(message, Message) and message.has_content() else None
    except MessageError:
        raise
    except Exception as error:  # somebody else put it together: anything may be wrong with it
        log.warning("a message cannot be read (%s)", type(error).__name__)
        return None


@contextmanager
def _known() -> Iterator[None]:
    """A call of a live session. Raises: Forgotten, when the coordinator does not know it."""
    try:
        yield
    except httpx.HTTPStatusError as error:
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            raise Forgotten from None
        raise
