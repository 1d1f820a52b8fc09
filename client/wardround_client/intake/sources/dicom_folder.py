"""A folder of DICOM files with all its sub-folders, and a CSV of labels."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import DataError
from wardround.toml import Section
from wardround_client.intake.dicom import instance_of
from wardround_client.intake.gather import Examples
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, Instance, Item, LabelLine, Rejection, Source


@dataclass(frozen=True)
class DicomFile:
    """One entry of a folder. path: absolute. unreadable: why it cannot even be opened, or ""."""

    path: Path
    unreadable: str = ""
    line: int = 0
    labels: None = None

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Path, size and times of change."""
        return "" if self.unreadable else fingerprint(self.path)

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Hash and render the file."""
        if self.unreadable:
            return Rejection("not a regular file or a folder without access", self.unreadable)
        return instance_of(self.path, recipe, pseudonyms)


class DicomFolder(Source):
    """DICOM files below a folder. A label of an image goes before one of its study, and that before its patient's."""

    kind = "image"
    identity = "SOP Instance UID (0008,0018)"

    def __init__(self, asked: Asked, settings: Section) -> None:
        """Check the folder and the CSV. Raises: ConfigError, DataError."""
        self.name, self._root = asked.where, Path(asked.where)
        if not self._root.is_dir():
            raise DataError(f"{asked.where} is not a folder", do="name the folder that holds the DICOM files")
        self._leave_out = (*asked.leave_out, *([asked.labels] if asked.labels else []))
        self._examples = Examples.of(asked)
        self.key, self.label_columns, self.notes = self._examples.key, self._examples.columns, self._examples.notes

    def items(self) -> Iterator[Item]:
        """The files, in an order that depends on their names only; or what belongs together of them."""
        return self._examples.of_files(files_below(self._root, leave_out=self._leave_out))

    def labels(self) -> Iterator[LabelLine]:
        """The lines of the CSV."""
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
