"""The port that studies are sent to (PS3.4 annex B): who may speak, how much, and for how long.

An AE title is no secret and TLS comes after the connection, so nobody is trusted before an object is whole: each
address has a share of the connections, and whoever sends too little for too long is cut off.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from weakref import WeakSet

from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]
from pynetdicom.transport import ThreadedAssociationServer

from wardround.errors import ConfigError
from wardround_client.config import Pacs, Serve
from wardround_client.intake.pacs.archive import MOST_FILE_BYTES
from wardround_client.intake.pacs.line import PIECE
from wardround_client.intake.pacs.secrets import check_private
from wardround_client.intake.sources.dimse import PDU_BYTES, SYNTAXES

PATIENCE_S = 30.0
"""For the next message of a sender, for `PIECE` bytes of it, and for the association before that."""

MOST_PDU_BYTES = 1 << 20
"""Of one unit: more than we say that we take (PS3.8 D.1.1), and more than any association is asked for with."""

MOST_CONNECTIONS = 64
"""At once, of all addresses."""


class _Bounded(socket.socket):
    """A connection that ends where too little comes for too long, or one unit is too long. A sender may rest between
    two messages (then pynetdicom's own patience counts).
    """

    def begin(self, address: str) -> None:
        """It counts from now on."""
        self.address = address
        self._until: float | None = time.monotonic() + PATIENCE_S
        self._came = self._unit = 0

    def unit(self) -> None:
        """One is whole."""
        self._unit = 0

    def message(self) -> None:
        """One is whole."""
        self._until = None

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Raises: OSError: it is cut off."""
        now, until = time.monotonic(), self._until
        if until is None:
            until = self._until = now + PATIENCE_S
            self._came = 0
        if now >= until or self._unit > MOST_PDU_BYTES:
            raise TimeoutError
        self.settimeout(until - now)
        data = super().recv(size, flags)
        self._unit += len(data)
        self._came += len(data)
        if self._came >= PIECE:
            self._until = None
        return data

    def shutdown(self, how: int) -> None:
        """Of a connection that the other side has ended already too: pynetdicom would not close it."""
        with suppress(OSError):
            super().shutdown(how)


class _Tls(_Bounded, ssl.SSLSocket):  # type: ignore[misc]
    pass


class _Server(ThreadedAssociationServer):
    """most: connections of one address."""

    most = 1
    request_queue_size = MOST_CONNECTIONS

    def server_activate(self) -> None:
        """Listen."""
        self._lines = WeakSet[Any]()
        super().server_activate()

    def get_request(self) -> tuple[socket.socket, tuple[str, int]]:
        """Accept without a word: pynetdicom would shake hands here, and whoever is silent would keep all others out."""
        assert self.socket is not None
        accepted, address = self.socket.accept()
        if self.ssl_context is None:
            line: Any = _Bounded(accepted.family, accepted.type, accepted.proto, fileno=accepted.detach())
        else:
            line = self.ssl_context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False)
        line.begin(address[0])
        return line, address

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more of this address."""
        held = Counter(line.address for line in self._lines if line.fileno() != -1)
        if held[request.address] >= self.most or held.total() >= MOST_CONNECTIONS:
            return False
        self._lines.add(request)
        return True

    def shutdown(self) -> None:
        """Close the port."""
        BaseServer.shutdown(self)
        self.server_close()


def listen(settings: Serve, pacs: Pacs, home: Path, store: Callable[[Any], int]) -> Any:
    """Open the port -> pynetdicom's server. Raises: OSError, ConfigError."""
    _config.STORE_RECV_CHUNKED_DATASET = True
    ae = AE(ae_title=settings.title)
    ae.require_called_aet, ae.require_calling_aet = True, [*settings.callers]
    ae.maximum_pdu_size, ae.maximum_associations = PDU_BYTES, MOST_CONNECTIONS
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), SYNTAXES)
    ae.add_supported_context(Verification)
    greatest = min(MOST_FILE_BYTES, settings.greatest_study_mb * 1_000_000 + MOST_PDU_BYTES)
    since: dict[int, int] = {}

    def line(event: Any) -> Any:
        return event.assoc.dul.socket.socket

    def data(event: Any) -> None:
        """The next object begins after an answer."""
        of = id(event.assoc)
        since[of] = since.get(of, 0) + len(event.data)
        line(event).unit()
        if since[of] > greatest:
            event.assoc.abort()

    def message(event: Any) -> None:
        since[id(event.assoc)] = 0
        line(event).message()

    def closed(event: Any) -> None:
        since.pop(id(event.assoc), None)

    host, _, port = settings.listen.rpartition(":")
    handlers: Sequence[Any] = [
        *((evt.EVT_DATA_RECV, data), (evt.EVT_ACCEPTED, message), (evt.EVT_DIMSE_RECV, message)),
        *((evt.EVT_C_STORE, store), (evt.EVT_CONN_CLOSE, closed)),
    ]
    server_class = type("_Shared", (_Server,), {"most": settings.associations})
    tls = _tls(pacs, home) if pacs.tls else None
    server: Any = ae.make_server(
        (host, int(port)), ssl_context=tls, evt_handlers=[*handlers], server_class=server_class
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def _tls(pacs: Pacs, home: Path) -> ssl.SSLContext:
    """Both sides show a certificate of [pacs] ca_file. Raises: ConfigError."""
    try:
        check_private(home / pacs.key_file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(home / pacs.ca_file))
        context.load_cert_chain(home / pacs.certificate_file, home / pacs.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[pacs]: a certificate or key cannot be used ({error.strerror or error})") from None
    context.verify_mode, context.minimum_version = ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_2
    context.sslsocket_class = _Tls
    return context
