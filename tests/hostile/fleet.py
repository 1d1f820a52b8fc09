"""A coordinator that speaks Flower's Fleet API over TLS, records every byte that a hospital sends, and may lie."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

from flwr.app import Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto, recorddict_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeResponse,
    DeactivateNodeResponse,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedResponse,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.message_pb2 import Message as PbMessage
from flwr.proto.message_pb2 import Metadata as PbMetadata
from flwr.proto.run_pb2 import GetRunResponse, Run
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

from wardround_flower import MESSAGE_TYPE, pack, unpack
from wardround_server.network import tls

NODE_ID = 7
DEADLINE_S = 300.0


@dataclass(frozen=True)
class Call:
    """One HTTP request of the node."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Offer:
    """A message for the node. head, tree and parts may be changed before it is sent."""

    head: PbMessage
    tree: ObjectTree
    parts: dict[str, bytes]
    bundle: str


def offer(content: RecordDict | bytes, bundle: str, *, kind: str = MESSAGE_TYPE) -> Offer:
    """An honest message with this blob or content."""
    record = content if isinstance(content, RecordDict) else pack(content)
    metadata = PbMetadata(
        run_id=11,
        message_id="",
        src_node_id=1,
        dst_node_id=NODE_ID,
        ttl=3600.0,
        message_type=kind,
        created_at=time.time(),
    )
    message = message_from_proto(PbMessage(metadata=metadata, content=recorddict_to_proto(record)))
    message.metadata.__dict__["_message_id"] = message.object_id
    parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Offer(message_to_proto(remove_content_from_message(message)), get_object_tree(message), parts, bundle)


@dataclass(frozen=True)
class Reply:
    """What the node pushed: the message's head as protobuf, its blob, and the error's code and text instead of one."""

    head: PbMessage
    blob: bytes | None
    error: tuple[int, str] | None


@dataclass
class HostileFleet:
    """The server, as a context manager.

    override: path -> what is answered there instead, raw; None goes on honestly.
    """

    folder: Path
    override: dict[str, Callable[[BaseHTTPRequestHandler, bytes], bool]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    waiting: list[Offer] = field(default_factory=list)
    current: Offer | None = None

    def __enter__(self) -> Self:
        files = tls.create(self.folder / "tls", ["127.0.0.1"])
        self.ca = files.ca
        self._changed = threading.Condition()
        self._pushed: tuple[PbMessage, set[str], dict[str, bytes]] | None = None
        fleet = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = DEADLINE_S
            disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                fleet._serve(self, body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # the node hangs up on an answer that is too long

        self._server = Server(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.certificate, files.key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def send(self, message: Offer) -> None:
        """Have the node pull this message next."""
        with self._changed:
            self.waiting.append(message)

    def ask(self, message: Offer) -> Reply:
        """Send a message and wait for its reply."""
        with self._changed:
            self.waiting.append(message)
            count = len(self.replies)
            assert self._changed.wait_for(lambda: bool(self._to(message, count)), DEADLINE_S), self.paths()[-20:]
            return self._to(message, count)[0]

    def _to(self, message: Offer, since: int) -> list[Reply]:
        asked = message.head.metadata.message_id
        return [reply for reply in self.replies[since:] if reply.head.metadata.reply_to_message_id == asked]

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait until it holds; looked at after each call."""
        with self._changed:
            assert self._changed.wait_for(condition, DEADLINE_S), self.paths()

    def wake(self) -> None:
        """Have `until` look again."""
        with self._changed:
            self._changed.notify_all()

    def paths(self) -> list[str]:
        """The paths that were called, in order."""
        return [call.path for call in self.calls]

    def _serve(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        with self._changed:
            self.calls.append(Call(handler.path, {k.lower(): v for k, v in handler.headers.items()}, body))
        name = handler.path.rpartition("/")[2]
        if name in self.override and self.override[name](handler, body):
            with self._changed:
                self._changed.notify_all()
            return
        with self._changed:
            answer = getattr(self, "_" + name.replace("-", "_"))(body)
        send(handler, answer.SerializeToString())
        with self._changed:
            self._changed.notify_all()

    # The calls of the Fleet API, honestly.

    def _activate_node(self, body: bytes) -> ActivateNodeResponse:
        return ActivateNodeResponse(node_id=NODE_ID)

    def _deactivate_node(self, body: bytes) -> DeactivateNodeResponse:
        return DeactivateNodeResponse()

    def _send_node_heartbeat(self, body: bytes) -> SendNodeHeartbeatResponse:
        return SendNodeHeartbeatResponse(success=True)

    def _pull_messages(self, body: bytes) -> PullMessagesResponse:
        if not self.waiting:
            return PullMessagesResponse()
        self.current = self.waiting.pop(0)
        return PullMessagesResponse(messages_list=[self.current.head], message_object_trees=[self.current.tree])

    def _get_run(self, body: bytes) -> GetRunResponse:
        assert self.current is not None
        return GetRunResponse(run=Run(run_id=11, fab_hash=self.current.bundle))

    def _pull_object(self, body: bytes) -> PullObjectResponse:
        assert self.current is not None
        content = self.current.parts.get(PullObjectRequest.FromString(body).object_id)
        if content is None:
            return PullObjectResponse(object_found=False)
        return PullObjectResponse(object_found=True, object_available=True, object_content=content)

    def _confirm_message_received(self, body: bytes) -> ConfirmMessageReceivedResponse:
        return ConfirmMessageReceivedResponse()

    def _push_messages(self, body: bytes) -> PushMessagesResponse:
        request = PushMessagesRequest.FromString(body)
        (head,), (tree,) = request.messages_list, request.message_object_trees
        wanted = [part.object_id for part in iterate_object_tree(tree)]
        self._pushed = head, set(wanted), {}
        if head.HasField("error"):
            self.replies.append(Reply(head, None, (head.error.code, head.error.reason)))
        return PushMessagesResponse(objects_to_push=wanted, session_id="s")

    def _push_object(self, body: bytes) -> PushObjectResponse:
        assert self._pushed is not None
        request = PushObjectRequest.FromString(body)
        head, wanted, parts = self._pushed
        parts[request.object_id] = request.object_content
        if set(parts) == wanted and not head.HasField("error"):
            message = inflate_object_from_contents(head.metadata.message_id, dict(parts))
            assert isinstance(message, Message)
            self.replies.append(Reply(head, unpack(message.content), None))
        return PushObjectResponse(stored=True)


def send(handler: BaseHTTPRequestHandler, body: bytes, *, status: int = 200, **headers: str) -> bool:
    """Answer with these bytes."""
    handler.send_response(status)
    handler.send_header("content-type", "application/x-protobuf")
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


def send_zeros(handler: BaseHTTPRequestHandler, size: int, *, prefix: bytes = b"", chunked: bool = False) -> int:
    """Answer with `size` zero bytes after a prefix, as far as the node listens -> how many were taken."""
    handler.send_response(200)
    handler.send_header("content-type", "application/x-protobuf")
    if chunked:
        handler.send_header("transfer-encoding", "chunked")
    else:
        handler.send_header("content-length", str(len(prefix) + size))
    handler.end_headers()
    handler.close_connection = True
    block, sent = bytes(1 << 20), 0
    with suppress(OSError):
        for piece in _pieces(prefix, block, size):
            handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
            sent += len(piece)
        if chunked:
            handler.wfile.write(b"0\r\n\r\n")
    return sent


def _pieces(prefix: bytes, block: bytes, size: int) -> Iterator[bytes]:
    if prefix:
        yield prefix
    for _ in range(size // len(block)):
        yield block


def varint(number: int) -> bytes:
    """As protobuf writes a length."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])
