"""Objects of a PACS as items of an intake. What was sent must be what was asked for: a worker process looks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wardround_client.intake.dicom import instance_of
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.card import card_of
from wardround_client.intake.gather import OTHER, Look
from wardround_client.intake.pacs.archive import Found
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Item, Labels, Rejection
from wardround_client.intake.sources.dicom_folder import DicomFile

NOT_FETCHED = "the PACS did not give it"
ANOTHER = "the PACS gave another object than was asked for"
WAITS = Rejection("another object that belongs to it did not come, or cannot be read", passing=True)
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
        """Its identity, and when it was made and its study updated, as far as the PACS tells: an object that is
        corrected should get another UID (PS3.4 annex B), but archives do change patients and pixels in place.
        """
        found = self.found._replace(sop_class="")
        return "\0".join(("pacs", *found, self.key, self.wanted, self.rules.text))

    def refused(self) -> Rejection | None:
        """Why it is not put together with others: it did not come, or is another object than was asked for."""
        if self.unreadable:
            return Rejection(NOT_FETCHED, self.unreadable, passing=True)
        try:
            why = self.another()
        except UnusableError as error:
            return error.rejection
        return Rejection(ANOTHER, why, passing=True) if why else None

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As a file of a folder; and it must be what was asked for, and what the worklist names."""
        if self.unreadable:
            return Rejection(NOT_FETCHED, self.unreadable, passing=True)
        made = instance_of(self.path, recipe, pseudonyms, self.rules)
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
        if not card["AccessionNumber"]:  # as segmentations and reports often are; the study is the right one
            wanted.pop("AccessionNumber", None)
        return next((name for name, value in wanted.items() if card[name] != value.strip()), "")


@dataclass(frozen=True)
class Arrival(Look):
    """A file that came, to be looked at before it is put together with others."""

    file: PacsFile

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Rejection:
        """Why it cannot be put together with others, or `OTHER`: nothing speaks against it."""
        return self.file.refused() or OTHER


@dataclass(frozen=True)
class PacsStudy:
    """A study, or all of a patient's, before it is fetched, where a task puts files together: what its examples are
    shows only then.
    """

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
    """What a task makes of files of one study. why: it waits for a file that did not come. whole: for the last example
    of it, the study: all its files are read then.
    """

    example: Any
    why: Rejection | None = None
    whole: PacsStudy | None = None

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
        return self.whole.fingerprint() if self.whole and not self.why else ""

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """As of a folder."""
        if self.why:
            return self.why
        made: Instance | Rejection = self.example.read(recipe, pseudonyms)
        return made


def files_of(item: Item) -> tuple[PacsFile, ...]:
    """The files that are of no more use after an item."""
    if isinstance(item, PacsFile):
        return (item,)
    whole = item.whole if isinstance(item, PacsExample) else item
    return whole.files if isinstance(whole, PacsStudy) else ()
