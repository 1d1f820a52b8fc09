"""A series is one volume: in the order in which its slices lie in the patient, complete, and of the task's spacing."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tests.client.intake.dicom_files import KEY, write_dicom

from wardround.task import Input, Task
from wardround_client.cohort.store import CohortStore
from wardround_client.intake.dicom.attributes import UnusableError, quiet
from wardround_client.intake.ingest import ingest
from wardround_client.intake.recipe import ImageRecipe, recipe_of
from wardround_client.intake.series import stack_of
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.stack import Stack, volume
from wardround_client.intake.summary import IngestSummary

SIZE = 16


def a_slice(place: float, number: int, **attributes: object) -> dict[str, Any]:
    """Attributes of a slice at that height, mm; its number says nothing of its place."""
    return {
        "Modality": "CT",
        "SeriesInstanceUID": "1.2.3.5",
        "ImagePositionPatient": [0, 0, place],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "PixelSpacing": [2, 2],
        "InstanceNumber": number,
        "WindowCenter": 128,
        "WindowWidth": 256,
        "ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"],
        **attributes,
    }


def write_series(folder: Path, places: list[float], **attributes: object) -> list[Path]:
    """A slice at each place, as bright as it is high, in files whose names are in no order."""
    order = np.random.default_rng(len(places)).permutation(len(places))
    paths = []
    for number, place in zip(order.tolist(), places, strict=True):
        pixels = np.full((SIZE, SIZE), 20 + 5 * int(place), np.uint8)
        paths.append(write_dicom(folder / f"{number}.dcm", pixels, **a_slice(place, number, **attributes)))
    return paths


@given(st.permutations(list(range(7))), st.floats(0.5, 8), st.booleans())
def test_slices_lie_as_they_lie_in_the_patient(order: list[int], distance: float, oblique: bool) -> None:
    """Whatever the order of files; and a tilted series is sorted along its own normal."""
    turned = [0.8, 0.6, 0, 0, 0, -1] if oblique else [1, 0, 0, 0, 1, 0]
    normal = np.cross(turned[:3], turned[3:])
    with TemporaryDirectory() as folder:
        paths = []
        for number in order:
            where = [round(float(each), 6) for each in normal * distance * number]
            pixels = np.full((4, 4), 10 * number + 5, np.uint8)
            about = a_slice(0, number, ImagePositionPatient=where, ImageOrientationPatient=turned)
            paths.append(write_dicom(Path(folder) / f"{order.index(number)}.dcm", pixels, **about))
        with quiet():
            _, stack = stack_of(paths, ImageRecipe(8, 1, depth=4))
            seen = [float(stack.read(number).mean()) for number in range(stack.size)]
    assert seen == sorted(seen) and len(set(seen)) == 7
    assert stack.spacing_mm is not None and abs(stack.spacing_mm[0] - distance) < 1e-4


def refusal(make: Callable[[Path], object], folder: Path) -> str:
    make(folder)
    with pytest.raises(UnusableError) as refused, quiet():
        stack_of(sorted(folder.iterdir()), ImageRecipe(8, 1, depth=4))
    return refused.value.rejection.reason


def test_a_series_that_is_no_volume_is_refused_by_name(tmp_path: Path) -> None:
    def with_another(**attributes: object) -> Callable[[Path], object]:
        def make(folder: Path) -> None:
            write_series(folder, [0, 3, 6])
            place = attributes.pop("place", 9)
            write_dicom(
                folder / "9.dcm", np.zeros((SIZE, SIZE), np.uint8), **a_slice(float(str(place)), 9, **attributes)
            )

        return make

    cases = {
        "slices are missing in a series": lambda folder: write_series(folder, [0, 3, 6, 15]),
        "slices of a series lie at uneven distances": lambda folder: write_series(folder, [0, 2, 4, 9, 14, 19]),
        "slices of different pixel sizes in one series": with_another(PixelSpacing=[2, 3]),
        "two slices of a series lie at one place": with_another(place=6),
        "slices of different orientations in one series": with_another(ImageOrientationPatient=[0, 1, 0, 0, 0, 1]),
        "a series of several patients or studies": with_another(PatientID="PAT-2"),
        "a slice says not where it lies": with_another(ImagePositionPatient=None),
        "a series of one slice is no volume": lambda folder: write_series(folder, [0]),
    }
    for number, (reason, make) in enumerate(cases.items()):
        assert refusal(make, tmp_path / str(number)) == reason


@given(st.floats(-35, 35))
def test_what_is_upright_is_upright_whatever_the_tilt_of_the_gantry(degrees: float) -> None:
    """A rod along the table; a tilted slice lies beside the next one, by the sine of its distance."""
    tilt = np.deg2rad(degrees)
    down, step = np.array([0, np.cos(tilt), -np.sin(tilt)]), np.array([0, 0, 3.0])
    with TemporaryDirectory() as folder:
        paths = []
        for number in range(5):
            # The rod is where y is 16 mm; a row of the slice is 2 mm of `down`, and its first pixel lies at y = 0.
            pixels = np.zeros((32, 32), np.uint8)
            pixels[round(16 / np.cos(tilt) / 2)] = 255
            about = a_slice(
                0, number, ImagePositionPatient=[round(float(each), 5) for each in step * number],
                ImageOrientationPatient=[1, 0, 0, *(round(float(each), 8) for each in down)],
            )  # fmt: skip
            paths.append(write_dicom(Path(folder) / f"{number}.dcm", pixels, **about))
        with quiet():
            _, stack = stack_of(paths, ImageRecipe(8, 1, depth=4))
            rods = [int(stack.read(number).mean(1).argmax()) for number in range(5)]
    normal = np.cross([1, 0, 0], down)
    assert stack.spacing_mm is not None and abs(stack.spacing_mm[0] - step @ normal) < 1e-3
    # On the grid of the middle slice, a point of the rod at height z lies at row (y down_y + z down_z) / 2 mm.
    expected = [(16 / np.cos(tilt) + 3 * (number - 2) * down[2]) / 2 for number in range(5)]
    assert np.abs(np.array(rods) - expected).max() <= 1


def cohort_of(folder: Path, home: Path, task: Task) -> tuple[IngestSummary, CohortStore]:
    source = DicomFolder(Asked(str(folder), folder / "labels.csv", task=task), DicomFolder.Settings())
    summary = ingest(source, home / "cohort", recipe_of(task), key=KEY, workers=0)
    return summary, CohortStore.open(home / "cohort", withdrawn=())


def test_a_folder_becomes_a_cohort_of_volumes(tmp_path: Path) -> None:
    """One patient's series, whole; another's with a gap is set aside once, with all its files."""
    write_series(tmp_path / "data" / "a", [0, 3, 6, 9])
    other: dict[str, Any] = {"PatientID": "PAT-2", "StudyInstanceUID": "1.2.9", "SeriesInstanceUID": "1.2.9.1"}
    write_series(tmp_path / "data" / "b", [0, 3, 30], **other)
    (tmp_path / "data" / "labels.csv").write_text("PatientID,finding\nPAT-1,a\nPAT-2,b\n")
    task = Task(label_column="finding", classes=("a", "b"), kind="volume", depth=4, image_size_px=8)
    summary, store = cohort_of(tmp_path / "data", tmp_path, task)
    assert (summary.used, summary.reasons) == (1, {"slices are missing in a series": 1})
    assert (store.inputs.shape, store.labels("finding")) == ((1, 1, 4, 8, 8), ["a"])
    assert (np.diff(store.inputs[0].mean((0, 2, 3), dtype=np.float64)) > 0).all(), "feet first"


def test_two_patients_with_the_same_uids_both_keep_their_volume(tmp_path: Path) -> None:
    """A patient's volume depends on nobody else's files."""
    for patient in ("PAT-1", "PAT-2"):
        write_series(tmp_path / "data" / patient, [0, 3, 6, 9], PatientID=patient)
    (tmp_path / "data" / "labels.csv").write_text("PatientID,finding\nPAT-1,a\nPAT-2,b\n")
    task = Task(label_column="finding", classes=("a", "b"), kind="volume", depth=4, image_size_px=8)
    summary, store = cohort_of(tmp_path / "data", tmp_path, task)
    assert (summary.used, summary.patients, summary.reasons) == (2, 2, {})
    assert sorted(map(str, store.labels("finding"))) == ["a", "b"]


@pytest.mark.parametrize("tag", [(0x0020, 0x0032), (0x0020, 0x0037), (0x0028, 0x0008)])
@pytest.mark.parametrize("place", [0, 3, 9])
def test_a_slice_that_cannot_be_placed_is_never_left_out_of_its_volume(
    place: int, tag: tuple[int, int], tmp_path: Path
) -> None:
    """Be it the last: fewer slices would be another volume. A damaged Position, Orientation or Number of Frames."""
    for each in (0, 3, 6, 9):
        file = write_series(tmp_path / "data" / str(each), [each], NumberOfFrames="1")[0]
        content, element = file.read_bytes(), struct.pack("<HH", *tag)
        start = content.index(element + (b"IS" if tag[0] == 0x0028 else b"DS")) + 8
        if each == place:
            file.write_bytes(content[:start] + b"x" + content[start + 1 :])
    (tmp_path / "data" / "labels.csv").write_text("PatientID,finding\nPAT-1,a\nPAT-2,b\n")
    task = Task(label_column="finding", classes=("a", "b"), kind="volume", depth=4, image_size_px=8)
    summary, store = cohort_of(tmp_path / "data", tmp_path, task)
    assert len(store) == summary.used == 0 and sum(summary.reasons.values()) == 1, summary.reasons


def test_several_inputs_of_a_study_stand_side_by_side_and_a_missing_one_is_marked(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number, views in enumerate([("PA", "LAT"), ("PA",)]):
        for view in views:
            about: dict[str, Any] = {
                "ViewPosition": view,
                "Modality": "CR",
                "PatientID": f"P{number}",
                "StudyInstanceUID": f"1.2.{number}",
            }
            pixels = np.full((SIZE, SIZE), 200 if view == "PA" else 90, np.uint8)
            write_dicom(data / f"{number}{view}.dcm", pixels, **about)
    (data / "labels.csv").write_text("PatientID,finding,age,weight\nP0,a,61,\nP1,b,44,80\n")
    front, side = (Input(name=name, image_size_px=8, view=view) for name, view in (("front", "pa"), ("side", "L*")))
    table = Input(name="person", kind="table", features=("age", "weight"), centre=(50, 70), spread=(10, 10))
    task = Task(label_column="finding", classes=("a", "b"), kind="inputs", inputs=(front, side, table))
    summary, store = cohort_of(data, tmp_path, task)
    assert (summary.used, summary.quarantined) == (2, 0)
    rows = dict(zip(store.labels("finding"), store.inputs[:], strict=True))
    both, one = rows["a"], rows["b"]
    assert both.shape == (64 + 64 + 2,)
    assert both[:64].mean() > both[64:128].mean() > 0 and both[128] == 61 and np.isnan(both[129])
    assert np.isnan(one[64:128]).all() and one[128:].tolist() == [44, 80]
    assert store.label_columns == ("finding",), "what is an input is no label"


def ramp(size: int) -> NDArray[np.float32]:
    """A body that gets brighter from slice to slice: [size, SIZE, SIZE]."""
    return np.linspace(0.1, 0.9, size, dtype=np.float32)[:, None, None].repeat(SIZE, 1).repeat(SIZE, 2)


@given(st.integers(2, 60), st.integers(2, 40))
def test_a_volume_is_fitted_in_without_losing_brightness(size: int, depth: int) -> None:
    body = ramp(size)
    fitted = volume(Stack(lambda number: body[number], size, None), ImageRecipe(8, 1, depth=depth))[0] / 65535
    means = fitted.mean((1, 2))
    assert (np.diff(means) >= -1e-4).all() and body.min() - 1e-3 <= means.min() and means.max() <= body.max() + 1e-3


@given(st.floats(0.5, 4), st.floats(0.5, 4), st.integers(2, 40))
def test_millimetres_stay_millimetres(between: float, within: float, size: int) -> None:
    """A cube of known size fills what it should of a volume of 2 mm pixels and 3 mm slices."""
    body = np.ones((size, SIZE, SIZE), np.float32)
    stack = Stack(lambda number: body[number], size, (between, within, within))
    made = volume(stack, ImageRecipe(64, 1, depth=64, spacing_mm=(3.0, 2.0)))[0] / 65535
    slices, side = made.max((1, 2)).sum(), np.sqrt((made > made.max() / 2).any(0).sum())
    assert abs(slices - min(64, size * between / 3)) <= 0.01 * size
    assert abs(side - min(64, SIZE * within / 2)) <= 1.5
