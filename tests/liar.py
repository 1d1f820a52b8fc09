"""A DICOMweb service of the tests' own, which may lie in any way that a test asks for."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pydicom
from tests.pacs import store_of

TAGS = {
    "StudyInstanceUID": "0020000D",
    "SeriesInstanceUID": "0020000E",
    "SOPInstanceUID": "00080018",
    "PatientID": "00100020",
    "AccessionNumber": "00080050",
    "SOPClassUID": "00080016",
    "StudyUpdateDateTime": "0008041F",
    "InstanceCreationDate": "00080012",
    "InstanceCreationTime": "00080013",
}
Lie = Callable[["Exchange"], bool]
"""Changes an exchange before it is answered -> whether it answered by itself."""


@dataclass
class Exchange:
    """One request and its answer. found: what QIDO-RS answers; None in WADO-RS. parts: what WADO-RS answers."""

    handler: BaseHTTPRequestHandler
    asked: str
    objects: list[tuple[dict[str, str], bytes]]
    found: list[dict[str, str]] | None = None
    parts: list[bytes] = field(default_factory=list)

    def send(self, status: int, kind: str, body: bytes, **headers: str) -> bool:
        self.handler.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.handler.send_header(name.replace("_", "-"), value)
        self.handler.end_headers()
        self.handler.wfile.write(body)
        return True

    def begin(self, kind: str) -> None:
        """Chunked, without an end in sight."""
        self.handler.send_response(200)
        self.handler.send_header("Content-Type", kind)
        self.handler.send_header("Transfer-Encoding", "chunked")
        self.handler.end_headers()

    def chunk(self, data: bytes) -> None:
        self.handler.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.handler.wfile.flush()


MULTIPART = 'multipart/related; type="application/dicom"; boundary=lie'


def told(data: Any) -> dict[str, str]:
    """What QIDO-RS says of an object."""
    return {name: str(data.get(name, "")) for name in TAGS}


def multipart(parts: list[bytes]) -> bytes:
    return b"".join(b"--lie\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % part for part in parts) + b"--lie--\r\n"


class Liar:
    """Serves the files of a folder. lies: asked at each exchange, in order, until one answers. asked: all paths."""

    def __init__(self, folder: Path) -> None:
        self.objects = []
        for file in store_of(folder):
            data = pydicom.dcmread(file, stop_before_pixels=True)
            self.objects.append((told(data), file.read_bytes()))
        self.lies: list[Lie] = []
        self.asked: list[str] = []
        self.stop = threading.Event()
        liar = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                liar.asked.append(self.path)
                try:
                    liar.answer(self)
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hung up: no traceback beside what a user sees."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/dicom-web"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        url = urlsplit(handler.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        path = dict(re.findall(r"(studies|series|instances)/([^/]+)", url.path))
        of = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}
        wanted = {of[name]: value for name, value in path.items()} | {n: v for n, v in query.items() if n in TAGS}
        matching = [each for each in self.objects if all(each[0][name] == value for name, value in wanted.items())]
        if "multipart" in handler.headers.get("Accept", ""):
            exchange = Exchange(handler, url.path, self.objects, None, [data for _, data in matching])
        else:
            level = of[url.path.rsplit("/", 1)[1]]
            found = {tags[level]: tags for tags, _ in matching}.values()
            first = int(query.get("offset", 0))
            exchange = Exchange(
                handler, url.path, self.objects, list(found)[first : first + int(query.get("limit", 1000))]
            )
        if any(lie(exchange) for lie in self.lies):
            return
        if exchange.found is None:
            exchange.send(200, MULTIPART, multipart(exchange.parts))
        else:
            answer = [{TAGS[n]: {"vr": "LO", "Value": [v]} for n, v in each.items()} for each in exchange.found]
            exchange.send(200, "application/dicom+json", json.dumps(answer).encode())


@contextmanager
def lying(folder: Path) -> Iterator[Liar]:
    liar = Liar(folder)
    thread = threading.Thread(target=liar.server.serve_forever, daemon=True)
    thread.start()
    try:
        yield liar
    finally:
        liar.stop.set()
        liar.server.shutdown()
        liar.server.server_close()
        thread.join()


def on(qido: bool, change: Callable[[Exchange], Any]) -> Lie:
    """A lie in answers of one kind. What `change` returns says whether it answered by itself."""
    return lambda exchange: bool((exchange.found is not None) is qido and change(exchange))


def status(code: int, **headers: str) -> Callable[[Exchange], bool]:
    return lambda exchange: exchange.send(code, "text/html", b"<html>sorry</html>", **headers)
