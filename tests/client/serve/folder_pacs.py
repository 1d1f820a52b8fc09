"""A PACS that is a folder, and outlives whoever talks to it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pydicom

from wardround_client.intake.pacs.archive import Found, Recent
from wardround_client.intake.pacs.trouble import trouble


class FolderPacs:
    """new/STUDY/OBJECT is what it has, stored/OBJECT/NUMBER what it was given, how often. ills: what goes wrong with
    each call in turn.
    """

    folder: Path
    ills: Path

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def at(cls, folder: Path) -> None:
        """An empty one."""
        cls.folder, cls.ills = folder, folder / "ills"
        for name in ("new", "stored"):
            (folder / name).mkdir(parents=True)

    @classmethod
    def stored(cls) -> list[pydicom.Dataset]:
        """Each object that it was given, as it was last."""
        return [pydicom.dcmread(max(place.iterdir())) for place in sorted((cls.folder / "stored").iterdir())]

    def recent(self, first: str, last: str) -> Iterator[Recent]:
        self._ill()
        yield from (Recent(path.name, ("CT",), "1") for path in sorted((self.folder / "new").iterdir()))

    def find(self, key: str, value: str) -> Iterator[Found]:
        self._ill()
        for path in sorted((self.folder / "new" / value).iterdir()):
            sop_class = "1.2.840.10008.5.1.4.1.1.2"
            yield Found(value, f"{value}.1", f"{value}.1.{path.name}", self._patient(value), sop_class=sop_class)

    def patients(self, study: str) -> Iterator[str]:
        self._ill()
        if (self.folder / "new" / study).exists():
            yield self._patient(study)

    def _patient(self, study: str) -> str:
        """As it lists a study, whatever the files say, where somebody has corrected it."""
        corrected = self.folder / f"patient-{study}"
        return corrected.read_text() if corrected.exists() else ""

    def fetch(self, found: Sequence[Found], folder: Path, *, whole: bool) -> Iterator[tuple[str, Path | None]]:
        self._ill()
        for each in found:
            path = folder / each.instance
            shutil.copy(self.folder / "new" / each.study / each.instance.rsplit(".", 1)[1], path)
            yield each.instance, path

    def store(self, files: Sequence[Path]) -> Iterator[str]:
        ill = self._ill(tells=True)
        for path in files:
            uid = str(pydicom.dcmread(path).SOPInstanceUID)
            place = self.folder / "stored" / uid
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{len(list(place.iterdir()))}").write_bytes(path.read_bytes())
            if ill == "forgets":
                raise trouble("broken", "it stored it, and did not say so")
            if ill != "silent":
                yield uid

    def _ill(self, *, tells: bool = False) -> str:
        ills = self.ills.read_text().split() if self.ills.exists() else []
        self.ills.write_text(" ".join(ills[1:]))
        ill = ills[0] if ills else "well"
        if ill in ("away", "busy", "broken", "refused", "absent"):
            raise trouble(ill, "it is ill")  # type: ignore[arg-type]
        if ill == "raises":
            raise ValueError("Neu^Person1")
        return ill if tells else ""
