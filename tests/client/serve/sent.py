"""A port that studies are sent to, in this process, and who sends."""

from __future__ import annotations

import gc
import ssl
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from pydicom.dataset import Dataset
from pynetdicom import AE, _config, build_context
from tests.client.intake.dicom_files import KEY

from orthanc import free_port
from wardround_client.config import Pacs, Serve
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.serve.listening import listen
from wardround_client.serve.reception import Reception

CT = "1.2.840.10008.5.1.4.1.1.2"


def send(
    port: int, *objects: Dataset, caller: str = "PACS", called: str = "WARDROUND", tls: ssl.SSLContext | None = None
) -> list[int | None]:
    """The statuses; [] where the association is refused."""
    ae = AE(ae_title=caller)
    ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 60
    of_tls = (tls, "localhost") if tls else None
    association = ae.associate("127.0.0.1", port, [build_context(CT)], ae_title=called, tls_args=of_tls)
    line = association.dul.socket
    try:
        codes = [association.send_c_store(each).get("Status") for each in objects if association.is_established]
        association.release()
        return codes
    finally:
        if line is not None and line.socket is not None:  # pynetdicom leaves it open where the other side has ended it
            line.socket.close()


@contextmanager
def listening(
    folder: Path, pacs: Pacs | None = None, **serve: object
) -> Iterator[tuple[int, Path, list[tuple[str, str]], threading.Event]]:
    """In this process -> port, folder, what was refused, and what makes it full."""
    port, told, full = free_port(), list[tuple[str, str]](), threading.Event()
    chosen = Serve.model_validate({"listen": f"127.0.0.1:{port}", "callers": ("PACS",), **serve})
    scratch, before = folder.with_name("incoming"), tempfile.tempdir
    scratch.mkdir(exist_ok=True)
    tempfile.tempdir = str(scratch)
    reception = Reception(folder, chosen, Pseudonyms(KEY), full.is_set, lambda *line: told.append(line), scratch)
    whole = _config.STORE_RECV_CHUNKED_DATASET  # the process that listens has it for itself; here others fetch, too
    running = listen(chosen, pacs or Pacs(), folder, reception.store)
    try:
        yield port, folder, told, full
    finally:
        running.shutdown()
        _config.STORE_RECV_CHUNKED_DATASET = whole
        tempfile.tempdir = before
        gc.collect()  # what strangers left behind, here and not in another test


def objects(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def stored(reception: Reception, path: Path, sop_class: str, instance: str) -> int:
    """The status of an object that is sent without a port."""
    request = SimpleNamespace(AffectedSOPClassUID=sop_class, AffectedSOPInstanceUID=instance)
    requestor = SimpleNamespace(ae_title="PACS")
    return reception.store(
        SimpleNamespace(assoc=SimpleNamespace(requestor=requestor), request=request, dataset_path=path)
    )
