"""A folder of DICOM files with all its sub-folders, and a CSV of labels, or what beside the images brings them."""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from wardround.errors import DataError
from wardround.toml import Section
from wardround_client.intake.dicom import instance_of, series_of
from wardround_client.intake.gather import Examples, lookers
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.reported import From, check, labelled
from wardround_client.intake.source import DEFAULTS, Asked, Instance, Item, LabelLine, Labels, Rejection, Rules, Source


@dataclass(frozen=True)
class DicomFile:
    """One entry of a folder. path: absolute. unreadable: why it cannot even be opened, or "". rules: the hospital's.
    slices: how many images of the folder are of its series; None where nobody asked.
    """

    path: Path
    unreadable: str = ""
    line: int = 0
    labels: Labels | None = None
    rules: Rules = DEFAULTS
    slices: int | None = None

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Path, size and times of change, and the rules."""
        of_file = "" if self.unreadable else fingerprint(self.path)
        return f"{of_file}\0{self.rules.text}\0{self.slices}" if of_file else ""

    def refused(self) -> Rejection | None:
        """Why it is not even opened, or None."""
        if self.unreadable:
            return Rejection("not a regular file or a folder without access", self.unreadable, passing=True)
        select, slices = self.rules.select, self.slices
        if slices is not None and not select.least_slices <= slices <= (select.greatest_slices or slices):
            return Rejection("[select] leaves out: number of slices", f"{slices}", by_choice=True)
        return None

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Hash and render the file."""
        return self.refused() or instance_of(self.path, recipe, pseudonyms, self.rules)


class FolderSettings(Section):
    """labels_from: "sr": structured reports beside the images bring the labels; "seg": segmentations do."""

    labels_from: From | None = None


class DicomFolder(Source):
    """DICOM files below a folder; all of them, or those that a CSV with a column `file` names."""

    Settings = FolderSettings
    kind = "image"
    identity = "SOP Instance UID (0008,0018)"

    def __init__(self, asked: Asked, settings: FolderSettings) -> None:
        """Check the folder and the CSV. Raises: ConfigError, DataError."""
        self.name, self._root = asked.where, Path(asked.where)
        if not self._root.is_dir():
            raise DataError(f"{asked.where} is not a folder", do="name the folder that holds the DICOM files")
        self._leave_out = (*asked.leave_out, *([asked.labels] if asked.labels else []))
        self._from, self._rules = settings.labels_from, asked.rules
        if self._from:
            self._task = check(asked.task, csv=asked.labels is not None)
            self._examples = Examples(self._task, None)
        else:
            self._examples = Examples.of(asked)
        self.key, self.label_columns, self.notes = self._examples.key, self._examples.columns, self._examples.notes
        if self._from:
            self.label_columns = (self._task.label_column,)
        elif self._examples.unlabelled:
            self.tells, self.notes = False, ("no labels were given: new images are taken in without one",)
        select = asked.rules.select
        self._counted = bool(select.least_slices or select.greatest_slices)

    def items(self) -> Iterator[Item]:
        """The files, in an order that depends on their names only; or those that the CSV names, in its order; or what
        belongs together of them. Reports and segmentations that bring labels are looked into once.
        """
        return iter(self._labelled) if self._from else self._examples.of_files(self._all())

    @cached_property
    def _labelled(self) -> list[Item]:
        assert self._from is not None
        with closing(lookers()) as readers:
            return labelled(self._all(), self._task, self._from, self._examples.of_files, readers)

    def _all(self) -> Iterator[DicomFile]:
        slices = self._slices if self._counted else {}
        return (replace(file, rules=self._rules, slices=slices.get(file.path)) for file in self._files())

    def _files(self) -> Iterator[DicomFile]:
        """Those below the folder, or those that the CSV names."""
        if self._examples.named is None:
            yield from files_below(self._root, leave_out=self._leave_out)
            return
        none: Labels = (None,) * len(self.label_columns)
        for line in self._examples.named.lines():
            name = posixpath.normpath(line.value.replace("\\", "/")) if line.value else ""
            why = "" if name else f"line {line.line} of the CSV names no file, or has too few or too many cells"
            yield DicomFile(self._root.absolute() / name, why, line.line, line.labels or none)

    @cached_property
    def _slices(self) -> dict[Path, int]:
        """Of each file that names a series, how many images that series has below the folder; headers only are read."""
        series = {}
        for file in self._files():
            if found := series_of(file.path):
                series[file.path] = found
        images = Counter[bytes]()
        for name, count in series.values():
            images[name] += count
        return {path: images[name] for path, (name, _) in series.items()}

    def labels(self) -> Iterator[LabelLine]:
        """The lines of the CSV, where they name no files."""
        return self._examples.labels()


def files_below(folder: Path, *, leave_out: Sequence[Path] = ()) -> Iterator[DicomFile]:
    """Every file below a folder, in an order that depends on the names only; nothing is left out silently.

    A sub-folder that cannot be opened is listed as one unreadable entry. Links to folders are not followed.
    """
    root = folder.absolute()
    skipped = {os.path.realpath(path) for path in leave_out}
    unreadable: list[DicomFile] = []

    def note(error: OSError) -> None:
        unreadable.append(DicomFile(Path(error.filename or root), f"folder cannot be read: {error.strerror}"))

    for here, folders, names in os.walk(root, onerror=note):
        at = Path(here)
        yield from _drain(unreadable)
        links = [name for name in folders if (at / name).is_symlink()]
        folders[:] = sorted(n for n in folders if n not in links and os.path.realpath(at / n) not in skipped)
        for name in sorted(names):
            if os.path.realpath(at / name) not in skipped:  # Path.resolve fails at a link to itself
                yield DicomFile(at / name)
        for name in sorted(links):
            yield DicomFile(at / name, "link to a folder, not followed")
    yield from _drain(unreadable)


def fingerprint(path: Path) -> str:
    """Changes whenever the file might have; "" when nobody can tell."""
    try:
        stat = path.stat()
    except OSError:
        return ""
    return f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\0{stat.st_ctime_ns}"


def _drain(entries: list[DicomFile]) -> Iterator[DicomFile]:
    while entries:
        yield entries.pop(0)


source = DicomFolder
