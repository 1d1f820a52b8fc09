"""Where segmentations and structure sets say that findings are: the pixels that they enclose, of their own patient."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.sr.coding import CodedConcept
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from tests.client.intake.dicom_files import KEY, write_dicom

from wardround.planes import classes_in
from wardround.task import Task
from wardround_client.intake.gather import gathered
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, recipe_of
from wardround_client.intake.source import Instance, Rejection
from wardround_client.intake.sources.dicom_folder import files_below

SIZE, SERIES = 16, "1.2.3.5"
TASK = Task(label_column="lesion", classes=("none", "lesion"), labels="mask", image_size_px=SIZE)
SQUARE = [(8, 8), (22, 8), (22, 22), (8, 22)]
"""In mm, of images of 2 mm pixels: 7 x 7 of them."""


def images(folder: Path, many: int = 2, patient: str = "PAT-1") -> list[Path]:
    """Slices of a series, 3 mm apart; the second is marked by the files below."""
    return [
        write_dicom(
            folder / f"{number}.dcm",
            np.full((SIZE, SIZE), 50 + number, np.uint8),
            PatientID=patient, SeriesInstanceUID=SERIES, SOPInstanceUID=f"1.2.9.{number}", FrameOfReferenceUID="1.2.99",
            Modality="CT", ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], WindowCenter=128, WindowWidth=256,
            ImagePositionPatient=[0, 0, 3 * number], ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[2, 2],
            SliceThickness=3, PatientSex="", StudyID="", AccessionNumber="", StudyDate="", StudyTime="",
            ReferringPhysicianName="", SeriesNumber=1,
        )
        for number in range(many)
    ]  # fmt: skip


def mask(inside: float = 1) -> NDArray[np.float32]:
    """Of two slices: 8 x 8 pixels of the second."""
    drawn = np.zeros((2, SIZE, SIZE), np.float32)
    drawn[1, 4:12, 4:12] = inside
    return drawn


def segmentation(of: Sequence[Path], drawn: NDArray[Any], kind: str = "BINARY", **more: Any) -> Dataset:
    code = CodedConcept("49755003", "SCT", "Lesion")
    segment = highdicom.seg.SegmentDescription(1, "lesion", code, code, "MANUAL")
    drawn = drawn.astype(np.float32 if kind == "FRACTIONAL" else np.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return highdicom.seg.Segmentation(
            [pydicom.dcmread(path) for path in of], drawn, kind, [segment], generate_uid(), 9, generate_uid(), 1,
            "maker", "model", "1", "1", **more,
        )  # fmt: skip


def contour(points: Sequence[tuple[float, float]], image: str = "1.2.9.1", kind: str = "CLOSED_PLANAR") -> Dataset:
    made, named = Dataset(), Dataset()
    made.ContourGeometricType, made.NumberOfContourPoints = kind, len(points)
    made.ContourData = [number for x, y in points for number in (x, y, 3)]
    named.ReferencedSOPInstanceUID = image
    made.ContourImageSequence = [named] if image else []
    return made


def structures(contours: Sequence[Dataset], patient: str = "PAT-1", refers: Sequence[str] = ("1.2.9.1",)) -> Dataset:
    made, frame, study, series, roi, drawn = (Dataset() for _ in range(6))
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID, made.SOPInstanceUID, made.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    made.PatientID, made.StudyInstanceUID, made.SeriesInstanceUID = patient, "1.2.3.4", "1.2.3.99"
    series.SeriesInstanceUID, series.ContourImageSequence = SERIES, []
    for uid in refers:
        named = Dataset()
        named.ReferencedSOPInstanceUID = uid
        series.ContourImageSequence.append(named)
    study.RTReferencedSeriesSequence, frame.RTReferencedStudySequence = [series], [study]
    made.ReferencedFrameOfReferenceSequence = [frame]
    roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber, drawn.ContourSequence = 1, "Lesion", 1, list(contours)
    made.StructureSetROISequence, made.ROIContourSequence = [roi], [drawn]
    return made


def save(made: Dataset, folder: Path) -> None:
    made.save_as(folder / "marks.dcm", enforce_file_format=True)


def shown(folder: Path) -> list[int | str]:
    """Of each file by its name, how many pixels of a lesion it has; or why it has none."""
    recipe, out = recipe_of(TASK), list[int | str]()
    assert isinstance(recipe, ImageRecipe)
    items = gathered(files_below(folder), TASK, workers=0)
    for item in sorted(items, key=lambda each: each.name):
        outcome = item.read(replace(recipe, burned_in="ignore"), Pseudonyms(KEY))
        assert isinstance(outcome, Instance | Rejection)
        plane = outcome.rows[0, -1] if isinstance(outcome, Instance) else None
        out.append(int((classes_in(plane, 2) == 1).sum()) if plane is not None else str(outcome.reason))
    return out


@pytest.mark.parametrize("made", [lambda of: segmentation(of, mask()), lambda of: structures([contour(SQUARE)])])
def test_nobody_elses_file_says_what_an_image_shows(made: Any, tmp_path: Path) -> None:
    """UIDs are copied when files are made alike: what a file says is of its own patient."""
    marks = made(images(tmp_path))
    save(marks, tmp_path)
    assert shown(tmp_path)[0] == 0 and isinstance(shown(tmp_path)[1], int)
    marks.PatientID = "PAT-2"
    save(marks, tmp_path)
    assert shown(tmp_path) == ["no mask", "no mask", "the image that a mask is of is not there"]
