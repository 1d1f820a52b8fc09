"""The files of one study: whose they are, which of them count, and what results take over from their headers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom.dataset import Dataset

from wardround_client.config import Select
from wardround_client.intake.dicom.attributes import UnusableError, quiet, text
from wardround_client.intake.dicom.container import GREATEST_HEADER, opened
from wardround_client.intake.dicom.identity import WHO, Identity
from wardround_client.intake.gather import Look
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rejection
from wardround_client.intake.sources.dicom_folder import DicomFile
from wardround_client.intake.workers import Readers
from wardround_client.personal.original import OF_SOURCE

MAKER = "wardround"
"""Manufacturer of what is made here: it is known by that again, and not predicted for."""

MADE_HERE = Rejection("it holds results of wardround alone")
ANOTHER_STUDY = Rejection("the PACS gave another study than was asked for")
SEVERAL = Rejection("its files name several patients")
NOTHING = Rejection("it has no image")
MOVED = Rejection("the PACS lists the study under another patient than its images name")

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_NO_IMAGES = tuple(f"{_STORAGE}{part}." for part in ("11", "66", "67", "88", "104", "9", "481.3"))
"""Presentation states, segmentations and registrations, value maps, reports, documents, waveforms (PS3.4 B.5)."""


@dataclass(frozen=True)
class Headed:
    """A file with an image. source: what results take over, with its SOP Class UID. identity: whose it is."""

    path: Path
    identity: Identity
    source: Dataset


@dataclass(frozen=True)
class _Head(Look):
    """A file whose header is read, in a worker process: a stranger may have made it."""

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Any:
        try:
            with quiet():
                found = opened(self.file.path, (*OF_SOURCE, *WHO, "Manufacturer"), GREATEST_HEADER)
                if text(found.dataset, "Manufacturer") == MAKER:  # under whatever UIDs the PACS keeps it now
                    return MADE_HERE
                if found.pixels is None or not is_image(found.sop_class):
                    return NOTHING
                found.dataset.SOPClassUID = found.sop_class
                return Headed(self.file.path, Identity.of(found.dataset, self.file.rules.patients), found.dataset)
        except UnusableError as error:
            return error.rejection


@dataclass(frozen=True)
class Study:
    """Files of one patient, all of which have an image. refused: why others do not count, and how often."""

    uid: str
    files: tuple[Headed, ...]
    refused: Counter[str]

    @property
    def identity(self) -> Identity:
        """Whose it is."""
        return self.files[0].identity

    def header(self, path: Path) -> Dataset:
        """Of one of its files."""
        return next(file.source for file in self.files if file.path == path)


def read_study(
    uid: str, files: Sequence[DicomFile], readers: Readers, select: Select, patients: Collection[str] = ()
) -> Study | Rejection:
    """Look into the files of a study.

    uid: its Study Instance UID, or "" where the files say it. patients: PatientIDs under which the PACS lists it; none
    where it does not say.
    """
    found, refused = list[Headed](), Counter[str]()
    for _, head in readers.outcomes([_Head(file) for file in files]):
        if isinstance(head, Headed):
            found.append(head)
        elif isinstance(head, Rejection):
            refused[head.reason] += 1
    if not found:
        return Rejection(refused.most_common(1)[0][0]) if refused else NOTHING
    uid = uid or found[0].identity.study
    if any(each.identity.study != uid for each in found):
        return ANOTHER_STUDY
    if len({(each.identity.patient_id, each.identity.issuer) for each in found}) > 1:
        return SEVERAL
    if patients and found[0].identity.patient_id not in patients:
        return MOVED
    images = Counter[str]()
    for each in found:
        images[each.identity.series] += frames_of(each.source)
    for each in list(found):
        count = images[each.identity.series]
        if not select.least_slices <= count <= (select.greatest_slices or count):
            found.remove(each)
            refused["[select] leaves out: number of slices"] += 1
    if not found:
        return Rejection(refused.most_common(1)[0][0])
    return Study(uid, tuple(found), refused)


def frames_of(source: Dataset) -> int:
    """How many images a file has."""
    try:
        return max(1, int(source.get("NumberOfFrames") or 1))
    except (ValueError, TypeError):
        return 1


def is_image(sop_class: str) -> bool:
    """Whether a SOP class may be of images: reports and segmentations are not fetched. "" is not known."""
    return not sop_class.startswith(_NO_IMAGES)
