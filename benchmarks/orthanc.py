"""A real PACS on loopback: Debian's Orthanc with its DICOMweb plug-in, on ports of the system's choice."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

ORTHANC = shutil.which("Orthanc", path="/usr/sbin:/usr/bin:/usr/local/bin")
PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")


def installed() -> bool:
    """Whether Debian's packages orthanc and orthanc-dicomweb are."""
    return ORTHANC is not None and PLUGIN.exists()


def free_port() -> int:
    """One of the system's choice that it gives to nobody else for a minute: a server that names it can listen there.

    The end of a connection that closes first keeps its port (TIME_WAIT): no bind to port 0 and no connection from here
    gets it, and a server that sets SO_REUSEADDR, as all of ours and Orthanc's do, may have it at once.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        place: tuple[str, int] = server.getsockname()
        with socket.create_connection(place) as line:
            accepted, _ = server.accept()
            accepted.close()
            line.recv(1)
        return place[1]


@dataclass
class Orthanc:
    """One that runs in `folder`; it keeps what it was given over `kill` and `start`."""

    folder: Path
    settings: dict[str, object] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    dimse: int = field(default_factory=free_port)
    destination: int = field(default_factory=free_port)  # of C-MOVE: where AE title WARDROUND listens
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Of its DICOMweb service."""
        return f"http://127.0.0.1:{self.http}/dicom-web"

    @property
    def rest(self) -> str:
        """Of Orthanc's own interface."""
        return f"http://127.0.0.1:{self.http}"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        configuration = {
            "Name": "WARD",
            "StorageDirectory": str(self.folder / "storage"),
            "IndexDirectory": str(self.folder / "storage"),
            "HttpBindAddresses": ["127.0.0.1"],
            "HttpPort": self.http,
            "DicomAet": "ORTHANC",
            "DicomPort": self.dimse,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowGet": True,
            "DicomAlwaysAllowMove": True,
            "DicomModalities": {"us": ["WARDROUND", "127.0.0.1", self.destination]},
            "RemoteAccessAllowed": True,
            "AuthenticationEnabled": False,
            "StorageCompression": False,
            "Plugins": [str(PLUGIN)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
            "HttpsCACertificates": "",
            **self.settings,
        }
        (self.folder / "orthanc.json").write_text(json.dumps(configuration))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([str(ORTHANC), str(self.folder / "orthanc.json")], stdout=log, stderr=log)
        while True:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            try:
                httpx.get(f"{self.rest}/system", trust_env=False)
                return
            except httpx.TransportError:
                time.sleep(0.05)

    def kill(self) -> None:
        """At once, as a power cut does."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def load(self, files: Iterable[Path]) -> int:
        """Give it files; it refuses what is no DICOM. Returns: how many it took."""
        with httpx.Client(trust_env=False, timeout=60) as client:
            answers = [client.post(f"{self.rest}/instances", content=file.read_bytes()) for file in files]
        return sum(answer.status_code == 200 for answer in answers)
