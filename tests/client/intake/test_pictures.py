"""Pictures as scanners, phones and offices write them: the pixels that a person would see."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from wardround.task import Task
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.pictures import nifti, opened, picture, rows_of, spacing_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, recipe_of
from wardround_client.intake.source import Asked, Rejection
from wardround_client.intake.source import opened as opened_source
from wardround_client.intake.workers import Readers

RECIPE = ImageRecipe(8, 1)
nib: Any = nibabel  # has no types
SIDES = st.integers(1, 12)
TURNED: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90,
}  # fmt: skip
"""What a viewer does with what is stored, by Orientation (Exif 2.3, tag 0x0112)."""


def read(path: Path) -> NDArray[np.float32]:
    with opened(path, RECIPE) as image:
        return picture(image, RECIPE)


def saved(image: Image.Image, format: str, **options: Any) -> NDArray[np.float32]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{format}"
        image.save(path, **options)
        return read(path)


@given(data=st.data(), height=SIDES, width=SIDES, orientation=st.sampled_from(sorted(TURNED)), deep=st.booleans(),
       format=st.sampled_from(["png", "tiff"]))  # fmt: skip
def test_grey_of_8_and_16_bits_turned_as_it_says(
    data: st.DataObject, height: int, width: int, orientation: int, deep: bool, format: str
) -> None:
    stored = data.draw(arrays(np.uint16 if deep else np.uint8, (height, width)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    shown = saved(Image.fromarray(stored), format, exif=exif)
    white = np.float32(65535 if deep else 255)
    np.testing.assert_array_equal(shown, TURNED[orientation](stored).astype(np.float32) / white)


@given(data=st.data(), deep=st.booleans(), white_is_zero=st.booleans())
def test_tiff_says_whether_white_is_zero(data: st.DataObject, deep: bool, white_is_zero: bool) -> None:
    stored = data.draw(arrays(np.uint16 if deep else np.uint8, (5, 7)))
    white = 65535 if deep else 255
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.tiff"
        Image.fromarray(stored).save(path)
        blob = path.read_bytes()
        entry = blob.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")  # PhotometricInterpretation, a short
        path.write_bytes(blob[: entry + 8] + bytes([not white_is_zero]) + blob[entry + 9 :])
        shown = read(path)
    wanted = white - stored.astype(np.int32) if white_is_zero else stored
    np.testing.assert_array_equal(shown, wanted.astype(np.float32) / np.float32(white))


@given(pages=st.lists(arrays(np.uint8, (4, 6)), min_size=2, max_size=5), most=st.integers(1, 6))
def test_each_page_is_an_image(pages: list[NDArray[np.uint8]], most: int) -> None:
    recipe = ImageRecipe(8, 1, frames_per_file=most)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pages.tiff"
        first, *others = map(Image.fromarray, pages)
        first.save(path, save_all=True, append_images=others)
        rows = rows_of(path, recipe)
    numbers = np.unique(np.linspace(0, len(pages) - 1, min(len(pages), most)).round().astype(int))
    wanted = [quantise(fit(pages[n].astype(np.float32) / np.float32(255), recipe)) for n in numbers]
    np.testing.assert_array_equal(rows, wanted)


@given(data=st.data())
def test_palettes_and_transparency_on_black(data: st.DataObject) -> None:
    indices = data.draw(arrays(np.uint8, (5, 4), elements=st.integers(0, 7)))
    palette = data.draw(arrays(np.uint8, (8, 3)))
    opaque = data.draw(arrays(np.uint8, (8,)))
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    np.testing.assert_array_equal(saved(image, "png"), palette[indices].astype(np.float32) / np.float32(255))
    shown = saved(image, "png", transparency=opaque.tobytes())
    alpha = opaque[indices][..., None].astype(np.float32) / 255
    assert np.abs(shown - palette[indices] / 255 * alpha).max() <= 1.01 / 255


@given(data=st.data(), format=st.sampled_from(["tiff", "jpeg"]))
def test_cmyk_is_the_colour_that_is_printed(data: st.DataObject, format: str) -> None:
    ink = data.draw(arrays(np.uint8, (4,)))
    image = Image.new("CMYK", (8, 8), tuple(ink.tolist()))
    wanted = (1 - ink[:3] / 255) * (1 - ink[3] / 255)
    options = {"quality": 100, "subsampling": 0} if format == "jpeg" else {}
    assert np.abs(saved(image, format, **options) - wanted).max() < 0.02


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_values_without_a_white_are_refused(dtype: Any) -> None:
    with pytest.raises(UnusableError, match="no white"):
        saved(Image.fromarray(np.ones((4, 4), dtype)), "tiff")


def test_the_second_picture_of_a_camera_is_none(tmp_path: Path) -> None:
    first = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4)
    first.save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=[Image.new("L", (8, 8))])
    first.save(tmp_path / "b.jpg")
    np.testing.assert_array_equal(rows_of(tmp_path / "a.jpg", RECIPE), rows_of(tmp_path / "b.jpg", RECIPE))


MARKED = replace(RECIPE, marks=("none", "lesion"))
HU = replace(RECIPE, units="HU", window=(40.0, 400.0))


def volumes(folder: Path) -> None:
    """Beside a picture, NIfTI volumes: CT, and a mask that lies there, and another that lies mirrored."""
    rng, place = np.random.default_rng(0), np.diag([-2.0, 2, 2, 1])
    values, mask = rng.integers(-1000, 1000, (8, 8, 4)).astype(np.int16), (rng.random((8, 8, 4)) < 0.2).astype(np.uint8)
    written: dict[str, tuple[NDArray[Any], NDArray[Any]]] = {
        "ct": (values, place), "mask": (mask, place), "mirrored": (mask, np.diag([2.0, 2, 2, 1])),
        "grey": (values + 1000, place), "complex": (values.astype(np.complex64), place),
    }  # fmt: skip
    for name, (array, affine) in written.items():
        nib.save(nib.Nifti1Image(array, affine), folder / f"{name}.nii")
    Image.new("L", (8, 8)).save(folder / "a.png")
    Image.merge("LA", [Image.new("L", (8, 8), 255), Image.new("L", (8, 8), 0)]).save(folder / "alpha.png")


@pytest.mark.parametrize(
    ("file", "recipe", "mark", "reason"),
    [
        ("ct.nii", MARKED, "mask.nii", ""),
        ("ct.nii", MARKED, "mirrored.nii", "a mask lies elsewhere than its image"),
        ("a.png", MARKED, "alpha.png", "a mask is transparent in part"),
        ("a.png", HU, "", "a picture, and the images are measured in HU"),
        ("grey.nii", HU, "", "not CT in HU, and the images are measured in HU"),
        ("ct.nii", replace(HU, units="SUV"), "", "not CT in HU, and the images are measured in SUV"),
        ("complex.nii", RECIPE, "", "a NIfTI file of colours or complex numbers"),
    ],
)
def test_what_would_be_another_thing_is_refused(
    file: str, recipe: ImageRecipe, mark: str, reason: str, tmp_path: Path
) -> None:
    volumes(tmp_path)
    if not reason:
        assert (rows_of(tmp_path / file, recipe, mark, tmp_path)[:, -1] > 0).any()
        return
    with pytest.raises(UnusableError, match=reason):
        rows_of(tmp_path / file, recipe, mark, tmp_path)


def test_hounsfield_units_of_nifti_are_shown_as_agreed(tmp_path: Path) -> None:
    for name, values in (("a", [-160, 240]), ("b", [-60, 140])):
        array = np.repeat(np.array(values, np.int16), 64).reshape(2, 8, 8).transpose(2, 1, 0)
        nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / f"{name}.nii")
    means: Any = [rows_of(tmp_path / f"{name}.nii", HU).mean((1, 2, 3)) / 65535 for name in "ab"]
    np.testing.assert_allclose(means, [[0.0, 1.0], [0.25, 0.75]], atol=1e-4)


@pytest.mark.parametrize(("unit", "side"), [("mm", 2.0), ("meter", 0.002), ("micron", 2000.0)])
def test_the_size_of_a_voxel_is_what_its_place_says(unit: str, side: float, tmp_path: Path) -> None:
    image = nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), np.diag([side, side, side, 1]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[80:92] = np.ones(3, np.float32).tobytes()  # pixdim, of which the sform says something else
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_allclose(spacing_of(nifti(tmp_path / "a.nii", RECIPE)[1]), 2, rtol=1e-5)


def listed(folder: Path, labels: str, *lines: str) -> list[Rejection | int]:
    """What becomes of the lines of a CSV: how many findings each picture has, or why it has none."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32)).astype(np.uint8)).save(folder / "a.png")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:500])
    (folder / "labels.csv").write_text("\n".join(["file,PatientID,spots", *lines]))
    task = Task(label_column="spots", classes=("none", "spot"), labels=labels, image_size_px=32)
    out = list[Rejection | int]()
    for item in opened_source("image-folder", Asked(str(folder), folder / "labels.csv", task=task), {}).items():
        recipe = recipe_of(task)
        assert isinstance(recipe, ImageRecipe)
        recipe = replace(recipe, burned_in="ignore")
        found = next(iter(Readers(recipe, Pseudonyms(bytes(16)), 0).outcomes([item])))[1]
        out.append(found if isinstance(found, Rejection) else len(np.unique(found.rows[0, -1])) - 1)
    return out


def test_a_line_for_each_finding_is_what_one_line_with_all_says(tmp_path: Path) -> None:
    lines = "a.png,1,spot 2 2 4 4", "a.png,1,spot 20 20 4 4"
    assert listed(tmp_path, "points", *lines) == [2] == listed(tmp_path, "points", "; ".join([lines[0], lines[1][8:]]))
    assert [getattr(each, "reason", "") for each in listed(tmp_path, "points", lines[0], "a.png,1,none")] == [
        "where a finding is cannot be read"
    ]
    assert listed(tmp_path, "points", lines[0], "a.png,1,") == [1]
    assert all(isinstance(each, Rejection) for each in listed(tmp_path, "mask", "a.png,1,a.png", "a.png,1,b.png"))


def test_a_picture_that_is_cut_off_is_damaged(tmp_path: Path) -> None:
    (found,) = listed(tmp_path, "points", "cut.png,1,none")
    assert isinstance(found, Rejection) and not found.passing and found.reason.startswith("damaged")
