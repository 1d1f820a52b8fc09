"""Objects of a PACS as items of an intake. What was sent must be what was asked for: a worker process looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.card import card_of
from wardround_client.intake.pacs.archive import Found
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Item, Labels, Rejection
from wardround_client.intake.sources.dicom_folder import DicomFile

NOT_FETCHED = "the PACS did not give it"
ANOTHER = "the PACS gave another object than was asked for"
NOTHING = Found("", "", "")

FIELDS = {
    "PatientID": "patient",
    "AccessionNumber": "accession",
    "StudyInstanceUID": "study",
    "SeriesInstanceUID": "series",
    "SOPInstanceUID": "instance",
}
"""By the key of a worklist, the field of `Found` that it names."""


@dataclass(frozen=True)
class PacsFile(DicomFile):
    """An object of a PACS. path: in the spool, once it is fetched. key, wanted: why it is asked for."""

    found: Found = NOTHING
    key: str = ""
    wanted: str = ""

    @property
    def name(self) -> str:
        """Its UIDs: of the study, the series and itself."""
        return "/".join(self.found[:3])

    def fingerprint(self) -> str:
        """Its identity, as the PACS tells it: an object that is corrected gets another UID (PS3.4 annex B)."""
        return "\0".join(("pacs", *self.found[:5], self.key, self.wanted, self.rules.text))

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As a file of a folder; and it must be what was asked for, and what the worklist names."""
        if self.unreadable:
            return Rejection(NOT_FETCHED, self.unreadable, passing=True)
        made = super().read(recipe, pseudonyms)
        if isinstance(made, Rejection):
            return made
        if made.study != pseudonyms.study(self.found.study):
            return Rejection(ANOTHER, "Study Instance UID (0020,000D)")
        if made.instance != pseudonyms.instance(self.found.instance):
            return Rejection(ANOTHER, "SOP Instance UID (0008,0018)")
        if self.key == "PatientID" and made.bare != pseudonyms.patient(self.wanted):
            return Rejection(ANOTHER, "Patient ID (0010,0020)")
        if self.key in ("AccessionNumber", "SeriesInstanceUID"):
            return Rejection(ANOTHER, why) if (why := self.another()) else made
        return made

    def another(self) -> str:
        """By which attribute the file is another object than was asked for, or "". Raises: UnusableError, OSError."""
        card = card_of(self.path)
        wanted = {"StudyInstanceUID": self.found.study, "SOPInstanceUID": self.found.instance, self.key: self.wanted}
        return next((name for name, value in wanted.items() if card[name] != value.strip()), "")


@dataclass(frozen=True)
class PacsStudy:
    """A study before it is fetched, where a task puts its files together: what its examples are shows only then."""

    files: tuple[PacsFile, ...]
    line: int = 0
    labels: None = None

    @property
    def name(self) -> str:
        """The study's UID."""
        return self.files[0].found.study

    def fingerprint(self) -> str:
        """Of all its objects: one more, and it is fetched again."""
        return "\0".join(file.fingerprint() for file in self.files)

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """It is never read as it is."""
        raise NotImplementedError


@dataclass(frozen=True)
class PacsExample:
    """What a task makes of files of one study. study: its fingerprint, for the last example of it."""

    example: Any
    study: str = ""

    @property
    def name(self) -> str:
        """As the example says."""
        return str(self.example.name)

    @property
    def line(self) -> int:
        """As the example says."""
        return int(self.example.line)

    @property
    def labels(self) -> Labels | None:
        """As the example says."""
        labels: Labels | None = self.example.labels
        return labels

    def fingerprint(self) -> str:
        """Of the study, when everything before it is stored."""
        return self.study

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As of a folder, when all its files are what was asked for."""
        for file in files_of(self.example):
            if file.unreadable:
                return Rejection(NOT_FETCHED, file.unreadable, passing=True)
            try:
                if why := file.another():
                    return Rejection(ANOTHER, why)
            except UnusableError as error:
                return error.rejection
        made: Instance | Rejection = self.example.read(recipe, pseudonyms)
        return made


def files_of(item: Item) -> tuple[PacsFile, ...]:
    """The files that an item is made of."""
    if isinstance(item, PacsFile):
        return (item,)
    if isinstance(item, PacsExample):
        return files_of(item.example)
    return tuple(file for file in getattr(item, "files", ()) if isinstance(file, PacsFile))
