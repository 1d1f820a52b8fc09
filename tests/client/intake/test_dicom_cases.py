"""Files that real systems wrote and other programs stumbled over: the right picture, or the right refusal.

Each stands in a folder of the shared data with a README: what it is, what is right, and the report that it comes from.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tests.client.intake.dicom_files import KEY, images, outcome, reason

from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Rejection
from wardround_client.intake.sources.dicom_folder import files_below
from wardround_client.intake.workers import outcomes

LOSSY = {"c03_jpext12": 2e-3}  # another rounding of the cosine transform
REFUSED = {
    "k05_truncated_last": "the file is cut off",
    "k06_jls_truncated_stream": "a compressed frame is cut off",
    "k11_dims_jls_larger": "Rows (0028,0010), Columns (0028,0011) or Samples per Pixel (0028,0002) is not the",
    "k14_dims_jpeg_transposed": "Rows (0028,0010), Columns (0028,0011) or Samples per Pixel (0028,0002) is not the",
    "q01_pet_bqml": "SUV needs Patient's Weight (0010,1030)",
    "q02_pet_bqml_tenth": "SUV needs Patient's Weight (0010,1030)",
    "s01_seg": "SOP Class UID (0008,0016) is of a mask",
    "s02_rtdose": "SOP Class UID (0008,0016) is of a mask",
    "z01_rle_zero_block": "cannot decode RLE Lossless",
}


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> dict[str, Path]:
    """The file of each case that is about one file."""
    folder = shared_data / "dicom_cases"
    if not folder.is_dir():
        pytest.skip("the cases are not here")
    files = [path for path in sorted(folder.glob("*/*file.dcm")) if path.parent.name[0] not in "ix"]
    return {
        path.parent.name if path.name == "file.dcm" else path.name.removesuffix("__file.dcm"): path for path in files
    }


def test_the_pictures_are_right(cases: dict[str, Path]) -> None:
    compared = 0
    for name, path in cases.items():
        right = path.with_name(path.name.replace("file.dcm", "expected.npy"))
        if right.exists():
            expected = np.load(right)
            channels = expected.shape[-1] if expected.ndim == 3 and expected.shape[-1] == 3 else 1
            if channels == 3:
                expected = expected.transpose(2, 0, 1)
            found = images(path, expected.shape[-1], channels)
            assert np.abs(found - expected.reshape(found.shape)).max() <= LOSSY.get(name, 1e-4), name
            compared += 1
    assert compared >= 15


def test_what_cannot_be_right_is_refused(cases: dict[str, Path]) -> None:
    for name, expected in REFUSED.items():
        if name in cases:
            assert reason(cases[name]).startswith(expected), name


def test_no_case_ends_an_ingest(cases: dict[str, Path], tmp_path: Path) -> None:
    for path in cases.values():
        (tmp_path / f"{path.parent.name}-{path.name}").symlink_to(path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "one").symlink_to("other")
    (tmp_path / "other").symlink_to("one")
    (tmp_path / "up").symlink_to(tmp_path)
    found = list(outcomes(files_below(tmp_path), ImageRecipe(64, 1), Pseudonyms(KEY), 2))
    assert len(found) == len(cases) + 4
    for item, result in found:
        if item.path.name in ("self", "one", "other", "up"):
            assert (isinstance(result, Rejection) and "regular file" in result.reason) or "folder" in str(result)


def test_a_tenth_of_the_uptake_is_another_picture_or_none(cases: dict[str, Path]) -> None:
    both = [outcome(cases[name]) for name in ("q01_pet_bqml", "q02_pet_bqml_tenth") if name in cases]
    assert all(isinstance(each, Rejection) for each in both)
