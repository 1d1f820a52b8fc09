"""Grey values that measure: HU and SUV in the range of the agreement, whatever each file would be shown as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import PositronEmissionTomographyImageStorage
from tests.client.intake.dicom_files import images, reason, write_dicom

from wardround.task import Task
from wardround_client.intake.recipe import ImageRecipe, recipe_of

RAMP = np.arange(0, 2560, 10, dtype=np.int16).reshape(16, 16)
HU: dict[str, Any] = {"units": "HU", "window": (40.0, 400.0)}


def drug(**attributes: object) -> Sequence:
    item = Dataset()
    item.RadionuclideTotalDose, item.RadionuclideHalfLife = "370000000", "6586.2"
    item.RadiopharmaceuticalStartTime = "100000"
    for keyword, value in attributes.items():
        setattr(item, keyword, value) if value is not None else delattr(item, keyword)
    return Sequence([item])


def write_pet(path: Path, pixels: np.ndarray[Any, Any] = RAMP, **attributes: Any) -> Path:
    pet: dict[str, Any] = {
        "Modality": "PT",
        "Units": "BQML",
        "DecayCorrection": "START",
        "PatientWeight": "70",
        "SeriesDate": "20240101",
        "SeriesTime": "110000",
        "AcquisitionDate": "20240101",
        "AcquisitionTime": "110500",
        "RescaleSlope": "10",
        "RescaleIntercept": "0",
        "RadiopharmaceuticalInformationSequence": drug(),
        "SOPClassUID": PositronEmissionTomographyImageStorage,
    }
    return write_dicom(path, pixels, **{**pet, **attributes})


def suv(activity: np.ndarray[Any, Any], *, hours: float = 1.0) -> np.ndarray[Any, Any]:
    return np.asarray(activity * 70_000 / (370e6 * 0.5 ** (hours * 3600 / 6586.2)))


def test_pet_is_shown_in_suv_from_0_to_10(tmp_path: Path) -> None:
    np.testing.assert_allclose(images(write_pet(tmp_path / "a"))[0, 0], np.clip(suv(10.0 * RAMP) / 10, 0, 1), atol=1e-4)
    injection = write_pet(tmp_path / "b", DecayCorrection="ADMIN")
    np.testing.assert_allclose(images(injection)[0, 0], np.clip(suv(10.0 * RAMP, hours=0) / 10, 0, 1), atol=1e-4)
    already = write_pet(tmp_path / "c", Units="GML", RescaleSlope="0.005", PatientWeight=None)
    np.testing.assert_allclose(images(already)[0, 0], np.clip(0.005 * RAMP / 10, 0, 1), atol=1e-4)


def test_a_tenth_of_the_uptake_is_a_tenth_as_bright(tmp_path: Path) -> None:
    whole = images(write_pet(tmp_path / "a"))
    tenth = images(write_pet(tmp_path / "b", RescaleSlope="1", WindowCenter="1000", WindowWidth="2000"))
    np.testing.assert_allclose(10 * tenth[whole < 1], whole[whole < 1], atol=1e-3)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"PatientWeight": None}, "SUV needs Patient's Weight (0010,1030)"),
        ({"PatientWeight": "0"}, "Patient's Weight (0010,1030) makes no sense"),
        ({"Units": None}, "SUV needs Units (0054,1001)"),
        ({"Units": "CNTS"}, "SUV needs Units (0054,1001) BQML or GML"),
        ({"Units": "GML", "SUVType": "LBM"}, "SUV Type (0054,1006) is not by body weight"),
        ({"DecayCorrection": "NONE"}, "SUV needs Decay Correction (0054,1102) START or ADMIN"),
        ({"RadiopharmaceuticalInformationSequence": None}, "SUV needs Radiopharmaceutical Information Sequence"),
        (
            {"RadiopharmaceuticalInformationSequence": drug(RadionuclideTotalDose=None)},
            "SUV needs Radionuclide Total Dose (0018,1074)",
        ),
        (
            {"RadiopharmaceuticalInformationSequence": drug(RadionuclideTotalDose="370")},
            "Radionuclide Total Dose (0018,1074) makes no sense",
        ),
        (
            {"RadiopharmaceuticalInformationSequence": drug(RadiopharmaceuticalStartTime=None)},
            "SUV needs Radiopharmaceutical Start Time (0018,1072)",
        ),
        (
            {"SeriesTime": None, "AcquisitionTime": None},
            "SUV needs Series Date (0008,0021) and Series Time",
        ),
    ],
)
def test_what_suv_needs_is_named(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    assert reason(write_pet(tmp_path / "a", **attributes)).startswith(expected)


def test_an_injection_before_midnight_and_a_reconstruction_of_another_day(tmp_path: Path) -> None:
    same = images(write_pet(tmp_path / "a"))
    night = write_pet(
        tmp_path / "b", SeriesTime="003000", AcquisitionTime="003000",
        RadiopharmaceuticalInformationSequence=drug(RadiopharmaceuticalStartTime="233000"),
    )  # fmt: skip
    later = write_pet(
        tmp_path / "c", SeriesDate="20240301", SeriesTime="080000", AcquisitionTime="110000",
        RadiopharmaceuticalInformationSequence=drug(RadiopharmaceuticalStartDateTime="20240101100000.00+0100"),
    )  # fmt: skip
    np.testing.assert_array_equal(images(night), same)
    np.testing.assert_array_equal(images(later), same)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
@given(
    slope=st.sampled_from(["1", "0.5", "2"]),
    intercept=st.sampled_from(["-1024", "0"]),
    width=st.sampled_from([None, "50"]),
    shape=st.sampled_from([None, "INVERSE"]),
)
def test_hu_are_what_the_agreement_shows_whatever_the_file_asks_for(
    tmp_path: Path, slope: str, intercept: str, width: str | None, shape: str | None
) -> None:
    path = write_dicom(tmp_path / "a", RAMP, Modality="CT", RescaleSlope=slope, RescaleIntercept=intercept,
                       WindowCenter=width, WindowWidth=width, PresentationLUTShape=shape)  # fmt: skip
    hounsfield = float(slope) * RAMP + float(intercept)
    np.testing.assert_allclose(images(path, **HU)[0, 0], np.clip((hounsfield - 40) / 400 + 0.5, 0, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"Modality": "MR", "RescaleSlope": "1", "RescaleIntercept": "0"}, "not CT in HU"),
        ({"Modality": "CT"}, "not CT in HU"),
        (
            {"Modality": "CT", "RescaleSlope": "1", "RescaleIntercept": "0", "RescaleType": "US"},
            "Rescale Type",
        ),
    ],
)
def test_what_is_not_in_hu_is_refused_where_hu_are_agreed(
    tmp_path: Path, attributes: dict[str, Any], expected: str
) -> None:
    assert reason(write_dicom(tmp_path / "a", RAMP, **attributes), **HU).startswith(expected)
    ct = write_dicom(tmp_path / "b", RAMP, Modality="CT")
    assert reason(ct, units="SUV", window=(5.0, 10.0)).startswith("not PET")


def test_the_recipe_of_a_cohort_says_what_is_measured() -> None:
    task = Task(label_column="finding", classes=("a", "b"), units="HU", window=(40, 400))
    layout = recipe_of(task).layout
    assert layout.measured == task.measured == "HU from -160 to 240"
    assert ImageRecipe.of(layout.recipe).layout == layout
    assert "units" not in ImageRecipe(64, 1).layout.recipe and ImageRecipe(64, 1).layout.measured == ""


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"units": "HU"}, "needs window"),
        ({"units": "HU", "window": (40,)}, "needs window"),
        ({"units": "SUV", "window": (5, 0)}, "the width more than 0"),
        ({"window": (40, 400)}, "add units"),
        ({"units": "HU", "window": (40, 400), "augment": ("intensity",)}, "changes what units HU measure"),
    ],
)
def test_a_task_says_what_it_measures_wholly_or_not(more: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        Task(label_column="finding", classes=("a", "b"), **more)
