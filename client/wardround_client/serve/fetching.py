"""A study's files out of the PACS, in a folder of this process until they are predicted."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from wardround.files import private_folder
from wardround_client.config import Serve
from wardround_client.intake.pacs.archive import UID, Found
from wardround_client.intake.pacs.line import Line
from wardround_client.intake.pacs.trouble import Trouble, TroubleError
from wardround_client.intake.source import Rules
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.serve.study import is_image


class TooLargeError(Exception):
    """A study is larger than hospital.toml allows."""


class Fetched(NamedTuple):
    """The files of a study. patients: PatientIDs under which the PACS lists it; none where it does not say."""

    files: list[DicomFile]
    patients: frozenset[str] = frozenset()


class Fetching:
    """By asking the PACS. folder: emptied before each study."""

    def __init__(self, line: Line, folder: Path, settings: Serve, rules: Rules) -> None:
        self._line, self._folder, self._settings, self._rules = line, folder, settings, rules

    def study(self, uid: str, ours: Collection[str]) -> Fetched:
        """All images that the PACS lists of a study, or none.

        ours: Series Instance UIDs that are not fetched. Raises: TroubleError, TooLargeError, OSError.
        """
        self.empty()
        found = self._listed(uid)
        by_series: dict[str, list[Found]] = {}
        for each in found.values():
            if each.series not in ours and is_image(each.sop_class):
                by_series.setdefault(each.series, []).append(each)
        files = list[DicomFile]()
        for series in by_series.values():
            files += self._series(series, sum(file.path.stat().st_size for file in files))
        return Fetched(files, frozenset(filter(None, (each.patient.strip() for each in found.values()))))

    def _listed(self, uid: str) -> dict[str, Found]:
        found: dict[str, Found] = {}
        for each in self._line.ask("find", "StudyInstanceUID", uid):
            if each.study == uid and UID.fullmatch(each.series) and UID.fullmatch(each.instance):
                found[each.instance] = each
            if len(found) > self._settings.greatest_objects:
                raise TooLargeError(f"it has more than {self._settings.greatest_objects} objects")
        if not found:  # it stands in the list of studies before its objects do
            raise TroubleError(Trouble("broken", "the PACS lists no object of the study"))
        return found

    def _series(self, series: list[Found], size: int) -> list[DicomFile]:
        """size: bytes of what was fetched before."""
        files, wanted = list[DicomFile](), {each.instance for each in series}
        for whole in (True, False) if len(series) > 1 else (False,):  # what is still missing, one by one
            missing = [each for each in series if each.instance in wanted]
            for instance, path in self._line.ask("fetch", missing, self._folder, whole=whole) if missing else ():
                if path is None:
                    continue
                if instance not in wanted:
                    path.unlink()
                    continue
                wanted.discard(instance)
                size += path.stat().st_size
                if size > self._settings.greatest_study_mb * 1_000_000:
                    raise TooLargeError(f"it has more than {self._settings.greatest_study_mb} MB")
                files.append(DicomFile(path, rules=self._rules))
        if wanted:  # half of a volume would be another example
            raise TroubleError(Trouble("broken", "the PACS does not give all objects that it lists of the study"))
        return files

    def empty(self) -> None:
        """Raises: OSError."""
        private_folder(self._folder)
        for path in self._folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
