"""What was sent, by study: HOME/serve/received/STUDY/OBJECT, both names keyed hashes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from wardround.files import private_folder
from wardround_client.config import Serve
from wardround_client.intake.source import Rules
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.serve.queue import LONGEST_WAIT_S, Queue
from wardround_client.serve.reception import PART

_GONE = "gone-"


@dataclass
class Received:
    """The folder. settling: whether there are studies to which something may still be added."""

    folder: Path
    settings: Serve
    queue: Queue
    settling: bool = False

    def __post_init__(self) -> None:
        private_folder(self.folder)

    def settled(self, models: Collection[str]) -> Iterator[bytes]:
        """Studies, by pseudonym, to which nothing was added for settle_s, and which are new for one of these models;
        those that are done are removed.
        """
        self.settling = False
        for folder in sorted(self.folder.iterdir()):
            if folder.name.startswith(_GONE):
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                study = bytes.fromhex(folder.name)
            except ValueError:
                continue  # nobody's
            known = self.queue.of_study(study)
            if any(each.state in ("waiting", "failed") for each in known):
                continue
            if known and set(models) <= {each.model for each in known}:
                self.drop(study)
            elif self._rests(folder):
                yield study
            else:
                self.settling = True

    def _rests(self, folder: Path) -> bool:
        """Also what was added by a clock that was far ahead."""
        since_s, settle_s = time.time() - folder.stat().st_mtime, self.settings.settle_s
        return since_s >= settle_s or since_s < -settle_s - LONGEST_WAIT_S

    def files(self, study: bytes, rules: Rules) -> list[DicomFile]:
        """The objects of a study."""
        folder = self.folder / study.hex()
        paths = sorted(folder.iterdir()) if folder.is_dir() else []
        return [DicomFile(path, rules=rules) for path in paths if not path.name.startswith(PART)]

    def drop(self, study: bytes) -> None:
        """It is done; what is added at this moment is refused, and sent again."""
        folder = self.folder / study.hex()
        with suppress(FileNotFoundError):
            gone = folder.with_name(f"{_GONE}{folder.name}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)
