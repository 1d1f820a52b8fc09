"""What becomes of an object that is sent: it lies whole and durable at HOME/serve/received/STUDY/OBJECT, both keyed
hashes, or it is refused. Where nothing more is taken the answer is "out of resources" (A700), and a sender tries again.
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.files import private_folder, sync_folder
from wardround_client.config import Serve
from wardround_client.intake.dicom.attributes import UnusableError, text
from wardround_client.intake.dicom.container import opened
from wardround_client.intake.pseudonyms import Pseudonyms

OUT_OF_RESOURCES, ANOTHER_CLASS, NOT_UNDERSTOOD = 0xA700, 0xA900, 0xC000
GREATEST_INFLATED = 1 << 27
"""Bytes of a deflated data set."""

LOOK_S = 2.0
"""How often it is looked how much lies there."""

STALE_S = 120.0
"""What is on its way and did not grow for so long is of a sender that is gone (listening.py cuts it off before)."""

PART = "part-"


@dataclass
class Reception:
    """folder: of studies. scratch: of objects on their way; None: nobody else's files are there. full: whether nothing
    more is taken now. told: of what nobody can use: (AE title, reason).
    """

    folder: Path
    settings: Serve
    pseudonyms: Pseudonyms
    full: Callable[[], bool]
    told: Callable[[str, str], None]
    scratch: Path | None = None

    def __post_init__(self) -> None:
        private_folder(self.folder)
        for left in self.folder.glob(f"*/{PART}*"):  # of a process that was killed: it was not answered
            left.unlink(missing_ok=True)
        self._lock, self._looked = threading.Lock(), float("-inf")
        self._studies: dict[str, list[int]] = {}  # objects and bytes of each

    def store(self, event: Any) -> int:
        """Handle a C-STORE -> its status (PS3.4 B.2.3)."""
        title = str(event.assoc.requestor.ae_title).strip()
        request = event.request
        try:
            if self.full() or self._bytes() > self.settings.gigabytes * 1e9:
                return OUT_OF_RESOURCES
            status, why = self._kept(
                Path(event.dataset_path), str(request.AffectedSOPInstanceUID), str(request.AffectedSOPClassUID)
            )
        except OSError:
            return OUT_OF_RESOURCES
        except UnusableError as error:
            status, why = NOT_UNDERSTOOD, f"it cannot be read: {error.rejection.reason}"
        except Exception as error:  # whatever a stranger's object does to its reader
            status, why = NOT_UNDERSTOOD, f"it cannot be read ({type(error).__name__})"
        if why:
            self.told(title, why)
        return status

    def _kept(self, source: Path, instance: str, sop_class: str) -> tuple[int, str]:
        size = source.stat().st_size
        head = opened(source, ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID"), GREATEST_INFLATED)
        study = text(head.dataset, "StudyInstanceUID")
        if not study or not instance:
            return NOT_UNDERSTOOD, "it names no study"
        if text(head.dataset, "SOPInstanceUID") != instance or text(head.dataset, "SOPClassUID") != sop_class:
            return ANOTHER_CLASS, "it is another object than its message says"
        folder = self.folder / self.pseudonyms.study(study).hex()
        with self._lock:
            if folder.name not in self._studies and len(self._studies) >= self.settings.most_waiting:
                return OUT_OF_RESOURCES, ""
            held = self._studies.setdefault(folder.name, [0, 0])
            if held[0] >= self.settings.greatest_objects:
                return OUT_OF_RESOURCES, "its study has too many objects"
            if held[1] + size > self.settings.greatest_study_mb * 1_000_000:
                return OUT_OF_RESOURCES, "it is larger than a study may be"
            held[0], held[1] = held[0] + 1, held[1] + size
        private_folder(folder)
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
            os.replace(part, folder / self.pseudonyms.instance(instance).hex())  # who sends it again corrects it
        finally:
            part.unlink(missing_ok=True)
        sync_folder(folder)
        sync_folder(self.folder)
        return 0x0000, ""

    def _bytes(self) -> int:
        with self._lock:
            if time.monotonic() - self._looked > LOOK_S:
                self._looked = time.monotonic()
                self._studies = {each.name: _held(each) for each in self.folder.iterdir()}
                if self.scratch is not None:
                    _tidy(self.scratch)
            return sum(size for _, size in self._studies.values())


def _held(folder: Path) -> list[int]:
    """Objects, and bytes of them."""
    count = size = 0
    with suppress(OSError):  # it is removed when its study is done
        for path in folder.iterdir():
            with suppress(OSError):
                size += path.stat().st_size
                count += 1
    return [count, size]


def _tidy(scratch: Path) -> None:
    """Remove what nobody goes on with: an association that ends within an object leaves it."""
    for path in scratch.iterdir():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > STALE_S:
                path.unlink()
