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
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid
from tests.client.intake.dicom_files import KEY, write_dicom

from wardround.planes import classes_in
from wardround.task import Task
from wardround_client.intake.dicom.marked import inside
from wardround_client.intake.gather import gathered, lookers
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
    items = gathered(files_below(folder), TASK, lookers(0))
    for item in sorted(items, key=lambda each: each.name):
        outcome = item.read(replace(recipe, burned_in="ignore"), Pseudonyms(KEY))
        if isinstance(outcome, Instance):
            out.append(int((classes_in(outcome.rows[0, -1], 2) == 1).sum()))
        else:
            assert isinstance(outcome, Rejection)
            out.append(outcome.reason)
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


SHRUNK = [(12, 12), (18, 12), (18, 18), (12, 18)]
CASES: dict[str, tuple[Any, int | str]] = {
    "a segmentation": (lambda of: segmentation(of, mask()), 64),
    "a label map": (lambda of: segmentation(of, mask(), "LABELMAP"), 64),
    "hardly probable": (lambda of: segmentation(of, mask(0.1), "FRACTIONAL", fractional_type="PROBABILITY"), 0),
    "probable": (lambda of: segmentation(of, mask(0.9), "FRACTIONAL", fractional_type="PROBABILITY"), 64),
    "an outline": (lambda _: structures([contour(SQUARE)]), 49),
    "a hole": (lambda _: structures([contour(SHRUNK), contour(SQUARE)]), 40),
    "a hole by the newer word": (
        lambda _: structures([contour(each, kind="CLOSEDPLANAR_XOR") for each in (SQUARE, SHRUNK)]),
        40,
    ),
    "the same outline twice": (lambda _: structures([contour(SQUARE), contour(SQUARE)]), 49),
    "the series is named, and no image": (lambda _: structures([contour(SQUARE, "")], refers=()), 49),
    "an open line": (lambda _: structures([contour(SQUARE, kind="OPEN_PLANAR")]), "a contour encloses nothing"),
    "a point": (lambda _: structures([contour(SQUARE[:1], kind="POINT")]), "a contour encloses nothing"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_a_file_encloses_is_there(case: str, tmp_path: Path) -> None:
    made, expected = CASES[case]
    save(made(images(tmp_path)), tmp_path)
    assert shown(tmp_path) == [0, expected]


@pytest.mark.parametrize("moved", [[10, 0, 3], [0, 2, 3], [0, 0, 0]])
def test_a_grid_that_lies_elsewhere_is_refused(moved: list[float], tmp_path: Path) -> None:
    made = segmentation(images(tmp_path), mask())
    for group in made.PerFrameFunctionalGroupsSequence:
        group.PlanePositionSequence[0].ImagePositionPatient = moved
    save(made, tmp_path)
    assert shown(tmp_path)[1] == "a segmentation lies elsewhere than its image"
    made = structures([contour(SQUARE)])
    made.ROIContourSequence[0].ContourSequence[0].ContourData[2::3] = [9, 9, 9, 9]
    save(made, tmp_path)
    assert shown(tmp_path)[1] == "a contour lies elsewhere than the image that it names"


corners = st.floats(-6, 26).map(lambda value: round(value, 2))


@given(st.lists(st.tuples(corners, corners), min_size=3, max_size=9))
def test_the_pixels_in_a_polygon_are_those_whose_middle_is(points: list[tuple[float, float]]) -> None:
    """Against the turns that a side makes around a middle, which are odd within (and half a turn more on a side)."""
    middles = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1)
    towards = (np.array(points) - middles[:, :, None]) @ [1, 1j]
    angles = np.angle(np.roll(towards, -1, -1) * towards.conj())
    sure = (np.abs(towards) > 1e-6).all(-1) & (np.abs(angles) < np.pi - 1e-6).all(-1)
    turns = np.rint(angles.sum(-1) / (2 * np.pi)).astype(int)
    assert np.array_equal(inside(np.array(points), (20, 20))[sure], (turns % 2 == 1)[sure])
