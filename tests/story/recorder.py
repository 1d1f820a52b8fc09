"""A proxy that ends TLS with the coordinator's own certificate, so that a test can read every byte that crosses."""

from __future__ import annotations

import asyncio
import base64
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class Recorder:
    """Everything that hospitals sent (`outbound`) and received (`inbound`), in plain text, all connections joined."""

    def __init__(self, target_port: int, tls: Path) -> None:
        self.target_port = target_port
        self.outbound, self.inbound = bytearray(), bytearray()
        self.port = 0
        self._server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._server_side.load_cert_chain(tls / "server.crt", tls / "server.key")
        self._client_side = ssl.create_default_context(cafile=str(tls / "ca.crt"))
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(300)

    def close(self) -> None:
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(300)
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._server_side)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self.target_port, ssl=self._client_side)
        except OSError:  # the coordinator is down: the hospital sees a closed connection
            writer.transport.abort()
            return
        await asyncio.gather(
            _copy(reader, up_writer, self.outbound), _copy(up_reader, writer, self.inbound), return_exceptions=True
        )


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, record: bytearray) -> None:
    try:
        while data := await reader.read(65536):
            record += data
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        pass
    finally:
        writer.transport.abort()


@contextmanager
def recording(target_port: int, tls: Path) -> Iterator[Recorder]:
    recorder = Recorder(target_port, tls)
    recorder.start()
    try:
        yield recorder
    finally:
        recorder.close()


def encodings(secret: bytes) -> Iterator[bytes]:
    """The secret as it is, and as text encodings would carry it (base64 at each of its three alignments)."""
    yield secret
    yield secret.hex().encode()
    yield secret.hex().upper().encode()
    for shift in range(3):
        # Only the characters that neighbouring bytes cannot change: those all of whose 6 bits are the secret's.
        determined = slice(-(-8 * shift // 6), 8 * (shift + len(secret)) // 6)
        yield base64.b64encode(b"\0" * shift + secret)[determined]
        yield base64.urlsafe_b64encode(b"\0" * shift + secret)[determined]
    try:
        text = secret.decode("ascii")
    except UnicodeDecodeError:
        return
    yield text.encode("utf-16-le")
    yield text[::-1].encode()


def found(record: bytes, secret: bytes) -> bool:
    """Whether the secret crossed, in any of the encodings."""
    return any(form in record for form in encodings(secret))
