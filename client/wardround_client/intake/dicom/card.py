"""What a DICOM file is and where it belongs, to put files together: nothing of it is kept beyond an ingest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pydicom.dataset import Dataset

from wardround_client.intake.dicom.attributes import quiet, text
from wardround_client.intake.dicom.container import opened
from wardround_client.intake.dicom.select import KIND, Kind

SEGMENTATION = "1.2.840.10008.5.1.4.1.1.66.4"
LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"  # a segmentation whose segments do not overlap
STRUCTURES = "1.2.840.10008.5.1.4.1.1.481.3"  # RT Structure Set

_KEYWORDS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber", "Modality"),
    *("ReferencedSeriesSequence", "ReferencedFrameOfReferenceSequence", "PerFrameFunctionalGroupsSequence"),
    "SharedFunctionalGroupsSequence",
    "BurnedInAnnotation",
    *KIND,
)
_MOST_INFLATED = 1 << 28


@dataclass(frozen=True)
class Card:
    """Of one file; "" and () where it says nothing.

    key: identifiers by the attribute that a labels CSV may name. kind: what `[select]` and inputs choose by. refers:
    SOP Instance UIDs of the images that a segmentation or a structure set is about, or of their series where it names
    no images.
    """

    path: Path
    sop_class: str
    key: tuple[tuple[str, str], ...]
    kind: Kind
    refers: tuple[str, ...]

    def __getitem__(self, name: str) -> str:
        """An identifier: PatientID, StudyInstanceUID, SeriesInstanceUID, SOPInstanceUID or AccessionNumber."""
        return dict(self.key)[name]

    @property
    def marks(self) -> bool:
        """Whether it says where findings are in other images."""
        return self.sop_class in (SEGMENTATION, LABEL_MAP, STRUCTURES)


IDENTIFIERS = ("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "AccessionNumber")


def card_of(path: Path) -> Card:
    """Of a file. Raises: UnusableError, OSError."""
    with quiet():
        file = opened(path, _KEYWORDS, _MOST_INFLATED)
        dataset = file.dataset
        return Card(
            path=path,
            sop_class=str(file.sop_class),
            key=tuple((name, text(dataset, name)) for name in IDENTIFIERS),
            kind=Kind.of(dataset, file.sop_class),
            refers=tuple(dict.fromkeys(_referred(dataset, str(file.sop_class)))),
        )


def _referred(dataset: Dataset, sop_class: str) -> Iterator[str]:
    """Of a segmentation its series and its frames (PS3.3 C.8.20.2), of a structure set its contours' frames of
    reference (C.8.8.5).
    """
    if sop_class in (SEGMENTATION, LABEL_MAP):
        for series in dataset.get("ReferencedSeriesSequence") or []:
            for one in series.get("ReferencedInstanceSequence") or []:
                yield text(one, "ReferencedSOPInstanceUID")
        for group in (
            *(dataset.get("SharedFunctionalGroupsSequence") or []),
            *(dataset.get("PerFrameFunctionalGroupsSequence") or []),
        ):
            for derived in group.get("DerivationImageSequence") or []:
                for one in derived.get("SourceImageSequence") or []:
                    yield text(one, "ReferencedSOPInstanceUID")
    elif sop_class == STRUCTURES:
        for frame in dataset.get("ReferencedFrameOfReferenceSequence") or []:
            for study in frame.get("RTReferencedStudySequence") or []:
                for series in study.get("RTReferencedSeriesSequence") or []:
                    images = series.get("ContourImageSequence") or []
                    yield from (text(one, "ReferencedSOPInstanceUID") for one in images)
                    if not images:
                        yield text(series, "SeriesInstanceUID")
