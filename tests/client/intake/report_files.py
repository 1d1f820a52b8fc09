"""Structured reports as tests write them: trees of content items, with pydicom alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.utils import pack_bits
from pydicom.uid import ComprehensiveSRStorage, CTImageStorage, ExplicitVRLittleEndian, SegmentationStorage

Code = tuple[str, str, str]

FINDING: Code = ("121071", "DCM", "Finding")
FINDINGS: Code = ("121070", "DCM", "Findings")
HISTORY: Code = ("121060", "DCM", "History")
MEASUREMENTS: Code = ("126010", "DCM", "Imaging Measurements")
GROUP: Code = ("125007", "DCM", "Measurement Group")


def coded(meaning: str, value: str = "", scheme: str = "99TEST") -> Code:
    """A code of a test's own."""
    return value or f"T-{abs(hash(meaning)) % 10000}", scheme, meaning


def _code(code: Code) -> Dataset:
    made = Dataset()
    made.CodeValue, made.CodingSchemeDesignator, made.CodeMeaning = code
    return made


def item(kind: str, name: Code | None, *below: Dataset, relation: str = "CONTAINS") -> Dataset:
    """A content item."""
    made = Dataset()
    made.ValueType, made.RelationshipType = kind, relation
    if name:
        made.ConceptNameCodeSequence = [_code(name)]
    if below:
        made.ContentSequence = list(below)
    return made


def code(name: Code, value: Code, *below: Dataset, relation: str = "CONTAINS") -> Dataset:
    """A coded item."""
    made = item("CODE", name, *below, relation=relation)
    made.ConceptCodeSequence = [_code(value)]
    return made


def finding(meaning: str, *below: Dataset) -> Dataset:
    """Finding: what it is called."""
    return code(FINDING, coded(meaning), *below)


def text(meaning: str) -> Dataset:
    """Free text under the name Finding."""
    made = item("TEXT", FINDING)
    made.TextValue = meaning
    return made


def image(uid: str) -> Dataset:
    """An item that names an image."""
    made = item("IMAGE", None)
    made.ReferencedSOPSequence = [reference(uid)]
    return made


def reference(uid: str) -> Dataset:
    """What names an image."""
    made = Dataset()
    made.ReferencedSOPClassUID, made.ReferencedSOPInstanceUID = CTImageStorage, uid
    return made


def report(*below: Dataset, evidence: Sequence[str] = ()) -> Dataset:
    """The root of a report, with what it was made from."""
    made = item("CONTAINER", ("126000", "DCM", "Imaging Measurement Report"), *below)
    del made.RelationshipType
    if evidence:
        study, series = Dataset(), Dataset()
        series.ReferencedSOPSequence = [reference(uid) for uid in evidence]
        study.ReferencedSeriesSequence = [series]
        made.CurrentRequestedProcedureEvidenceSequence = [study]
    return made


def write_report(path: Path, made: Dataset, *, uid: str, patient: str = "PAT-1", study: str = "1.2.1") -> Path:
    """A file of it."""
    made.SOPClassUID, made.SOPInstanceUID = ComprehensiveSRStorage, uid
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID, made.Modality = patient, study, f"{study}.99", "SR"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path


def write_segmentation(
    path: Path,
    segments: Sequence[str],
    frames: Sequence[tuple[int, str, bool]],
    *,
    uid: str,
    series: Sequence[str] = (),
    patient: str = "PAT-1",
    study: str = "1.2.1",
) -> Path:
    """A segmentation: labels of its segments, of each frame segment (from 1), image and whether anything is there."""
    made, of_series = Dataset(), Dataset()
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = SegmentationStorage, uid, "SEG"
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = patient, study, f"{study}.98"
    made.SegmentationType, made.NumberOfFrames, made.Rows, made.Columns = "BINARY", len(frames), 8, 8
    made.BitsAllocated = made.BitsStored = made.SamplesPerPixel = 1
    made.HighBit = made.PixelRepresentation = 0
    made.PhotometricInterpretation = "MONOCHROME2"
    made.SegmentSequence, made.PerFrameFunctionalGroupsSequence = [], []
    for number, label in enumerate(segments, start=1):
        segment = Dataset()
        segment.SegmentNumber, segment.SegmentLabel = number, label
        segment.SegmentedPropertyTypeCodeSequence = [_code(coded("Tissue"))]
        made.SegmentSequence.append(segment)
    of_series.ReferencedInstanceSequence = [reference(one) for one in series]
    made.ReferencedSeriesSequence = [of_series]
    bits = np.zeros((len(frames), 8, 8), np.uint8)
    for place, (number, image_uid, there) in enumerate(frames):
        group, which, derived = Dataset(), Dataset(), Dataset()
        which.ReferencedSegmentNumber = number
        derived.SourceImageSequence = [reference(image_uid)] if image_uid else []
        group.SegmentIdentificationSequence, group.DerivationImageSequence = [which], [derived]
        made.PerFrameFunctionalGroupsSequence.append(group)
        bits[place, 3, place % 8] = there
    made.PixelData = pack_bits(bits.ravel())
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    path.parent.mkdir(parents=True, exist_ok=True)
    made.save_as(path, enforce_file_format=True)
    return path
