"""Studies that are sent: a C-STORE SCP (PS3.4 annex B) of our own, in a process of its own.

What it answers with success lies on the disk, whole and durable, at HOME/serve/received/STUDY/OBJECT: keyed hashes. It
answers "out of resources" (A700) where nothing more is taken, and a sender tries again.
"""

from __future__ import annotations

import logging
import os
import secrets
import ssl
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError
from wardround.files import private_folder, sync_folder
from wardround_client.config import Pacs, Serve
from wardround_client.intake.pacs.secrets import check_private
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.workers import bound_memory, processes

OUT_OF_RESOURCES, ANOTHER_CLASS, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000
PATIENCE_S = 30.0
"""For the next message of a sender."""

LOOK_S = 2.0
"""How often it is looked how much lies there."""

PART = "part-"


@dataclass
class Reception:
    """What becomes of each object that is sent. full: whether nothing more is taken now. told: of what nobody can use:
    (AE title, reason).
    """

    folder: Path
    settings: Serve
    pseudonyms: Pseudonyms
    full: Callable[[], bool]
    told: Callable[[str, str], None]

    def __post_init__(self) -> None:
        private_folder(self.folder)
        for left in self.folder.glob(f"*/{PART}*"):  # of a process that was killed: it was not answered
            left.unlink(missing_ok=True)
        self._lock, self._size, self._looked = threading.Lock(), 0, 0.0

    def store(self, event: Any) -> int:
        """Handle a C-STORE -> its status (PS3.4 B.2.3)."""
        title = str(event.assoc.requestor.ae_title).strip()
        request = event.request
        try:
            if self.full() or self._bytes() > self.settings.gigabytes * 1e9:
                return OUT_OF_RESOURCES
            status, why = self._kept(event, str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID))
        except OSError:
            return OUT_OF_RESOURCES
        except Exception as error:  # whatever a stranger's object does to its reader
            status, why = NOT_UNDERSTOOD, f"it cannot be read ({type(error).__name__})"
        if why:
            self.told(title, why)
        return status

    def _kept(self, event: Any, instance: str, sop_class: str) -> tuple[int, str]:
        from pydicom import dcmread

        source = Path(event.dataset_path)
        size = source.stat().st_size
        if size > self.settings.greatest_study_mb * 1_000_000:
            return OUT_OF_RESOURCES, "it is larger than a study may be"
        found = dcmread(
            source, stop_before_pixels=True, specific_tags=["SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"]
        )
        study = str(found.get("StudyInstanceUID", "") or "")
        if not study or not instance:
            return NOT_UNDERSTOOD, "it names no study"
        if str(found.get("SOPInstanceUID", "")) != instance or str(found.get("SOPClassUID", "")) != sop_class:
            return ANOTHER_CLASS, "it is another object than its message says"
        folder = self.folder / self.pseudonyms.study(study).hex()
        private_folder(folder)
        if sum(1 for _ in folder.iterdir()) >= self.settings.greatest_objects:
            return OUT_OF_RESOURCES, "its study has too many objects"
        part = folder / f"{PART}{secrets.token_hex(8)}"
        try:
            with (
                source.open("rb") as read,
                os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file,
            ):
                while data := read.read(1 << 20):
                    file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, folder / self.pseudonyms.instance(instance).hex())
        finally:
            part.unlink(missing_ok=True)
        sync_folder(folder)
        sync_folder(self.folder)
        with self._lock:
            self._size += size
        return 0x0000, ""

    def _bytes(self) -> int:
        with self._lock:
            if time.monotonic() - self._looked > LOOK_S:
                self._size, self._looked = 0, time.monotonic()
                for path in self.folder.rglob("*"):
                    with suppress(OSError):
                        self._size += path.stat().st_size
            return self._size


class Receiver:
    """The process.

    Args:
        settings, pacs: of hospital.toml; the certificate and key of [pacs] where `tls` is set.
        home: what relative names of files are relative to.
        folder: where objects go.
        key: of the pseudonyms.

    Raises: ConfigError: the port cannot be opened.
    """

    def __init__(self, settings: Serve, pacs: Pacs, home: Path, folder: Path, key: bytes) -> None:
        context = processes()
        self._calls, theirs = context.Pipe()
        self._full = context.Event()
        self._process = context.Process(
            target=_serve, args=(theirs, self._full, settings, pacs, home, folder, key), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            why = self._calls.recv()
        except EOFError:
            why = "its process died"
        if why:
            self.close()
            raise ConfigError(f"[serve] listen {settings.listen} cannot be opened ({why})", do="correct it")

    def full(self, yes: bool) -> None:
        """Whether nothing more is taken."""
        self._full.set() if yes else self._full.clear()

    def refused(self) -> list[tuple[str, str]]:
        """What came since and nobody can use: (AE title, reason)."""
        found = []
        with suppress(EOFError, OSError):
            while self._calls.poll():
                found.append(self._calls.recv())
        return found

    @property
    def alive(self) -> bool:
        """Whether it still listens."""
        return self._process.is_alive()

    def close(self) -> None:
        """End it: nobody is answered any more."""
        self._process.kill()
        self._process.join()
        self._calls.close()


def _serve(calls: Connection, full: Any, settings: Serve, pacs: Pacs, home: Path, folder: Path, key: bytes) -> None:
    with suppress(OSError):
        os.setsid()
    os.umask(0o077)
    bound_memory()
    logging.disable(logging.CRITICAL)  # libraries log what a stranger says
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    lock = threading.Lock()

    def told(title: str, why: str) -> None:
        with lock, suppress(OSError):
            calls.send((title[:16], why))

    reception = Reception(folder, settings, Pseudonyms(key), full.is_set, told)
    scratch = folder.with_name("incoming")
    private_folder(scratch)
    for left in scratch.iterdir():
        left.unlink(missing_ok=True)
    tempfile.tempdir = str(scratch)  # objects are not held in memory
    try:
        listen(settings, pacs, home, reception.store)
    except (OSError, ConfigError) as error:
        calls.send(str(error))
        return
    calls.send("")
    wait([calls])  # nothing is sent to us: it ends with the one that started it
    os._exit(0)


def listen(settings: Serve, pacs: Pacs, home: Path, store: Callable[[Any], int]) -> Any:
    """Open the port -> pynetdicom's server. Raises: OSError, ConfigError."""
    from pynetdicom import AE, AllStoragePresentationContexts, _config, evt
    from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]

    from wardround_client.intake.pacs.archive import MOST_FILE_BYTES
    from wardround_client.intake.sources.dimse import PDU_BYTES, SYNTAXES

    _config.STORE_RECV_CHUNKED_DATASET = True
    ae = AE(ae_title=settings.title)
    ae.require_called_aet, ae.require_calling_aet = True, [*settings.callers]
    ae.maximum_pdu_size, ae.maximum_associations = PDU_BYTES, settings.associations
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = PATIENCE_S
    for context in AllStoragePresentationContexts:
        ae.add_supported_context(str(context.abstract_syntax), SYNTAXES)
    ae.add_supported_context(Verification)
    since: dict[int, int] = {}

    def data(event: Any) -> None:
        """The next object begins after an answer."""
        of = id(event.assoc)
        since[of] = since.get(of, 0) + len(event.data)
        if since[of] > MOST_FILE_BYTES:
            event.assoc.abort()

    def stored(event: Any) -> int:
        since[id(event.assoc)] = 0
        return store(event)

    def closed(event: Any) -> None:
        since.pop(id(event.assoc), None)

    host, _, port = settings.listen.rpartition(":")
    handlers: Sequence[Any] = [(evt.EVT_DATA_RECV, data), (evt.EVT_C_STORE, stored), (evt.EVT_CONN_CLOSE, closed)]
    return ae.start_server(
        (host, int(port)), block=False, evt_handlers=[*handlers], ssl_context=_tls(pacs, home) if pacs.tls else None
    )


def _tls(pacs: Pacs, home: Path) -> ssl.SSLContext:
    """Both sides show a certificate of [pacs] ca_file. Raises: ConfigError."""
    try:
        check_private(home / pacs.key_file)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(home / pacs.ca_file))
        context.load_cert_chain(home / pacs.certificate_file, home / pacs.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"[pacs]: a certificate or key cannot be used ({error.strerror or error})") from None
    context.verify_mode, context.minimum_version = ssl.CERT_REQUIRED, ssl.TLSVersion.TLSv1_2
    return context
