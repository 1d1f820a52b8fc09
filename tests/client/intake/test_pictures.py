"""Pictures as scanners, phones and offices write them: the pixels that a person would see."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.pictures import opened, picture, rows_of
from wardround_client.intake.recipe import ImageRecipe

RECIPE = ImageRecipe(8, 1)
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
