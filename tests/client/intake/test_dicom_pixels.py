"""Pixels come out as a radiologist sees them: HU, windows, polarity, colour, frames, padding, proportions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_windowing
from pydicom.sequence import Sequence
from pydicom.uid import RLELossless
from tests.client.intake.dicom_files import images, reason, write_dicom

from wardround_client.intake.dicom.pixels import apply_window, fit
from wardround_client.intake.recipe import ImageRecipe

RAMP = np.arange(256, dtype=np.int16).reshape(16, 16)


def bundled(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


@given(
    centre=st.floats(-2000, 3000),
    width=st.floats(1, 4000),
    function=st.sampled_from(["LINEAR", "LINEAR_EXACT", "SIGMOID"]),
)
def test_a_window_is_what_pydicom_computes(centre: float, width: float, function: str) -> None:
    values = np.arange(-2048, 2048, 7, dtype=np.int16)
    data = Dataset()
    data.PhotometricInterpretation, data.BitsStored, data.PixelRepresentation = "MONOCHROME2", 12, 1
    data.WindowCenter, data.WindowWidth, data.VOILUTFunction = float(f"{centre:.6g}"), float(f"{width:.6g}"), function
    with np.errstate(over="ignore"):
        expected = (apply_windowing(values, data) + 2048) / 4095
    got = apply_window(values.astype(np.float64), data.WindowCenter, data.WindowWidth, function)
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_rescale_gives_hounsfield_units_to_the_window(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a", RAMP, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=100, WindowWidth=200,
        VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    np.testing.assert_allclose(images(path)[0, 0], np.clip((2.0 * RAMP - 100) / 200, 0, 1), atol=1e-4)


def test_ct_without_a_window_gets_the_public_one() -> None:
    stored = images(bundled("CT_small.dcm"), size_px=128)[0, 0]
    hounsfield = pydicom.dcmread(bundled("CT_small.dcm")).pixel_array - 1024.0
    assert (hounsfield.min(), hounsfield.max()) == (-896, 1167)
    np.testing.assert_allclose(stored, np.clip((hounsfield - 39.5) / 399 + 0.5, 0, 1), atol=1e-4)


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    one = write_dicom(tmp_path / "a", RAMP, WindowCenter=100, WindowWidth=50)
    two = write_dicom(tmp_path / "b", RAMP, WindowCenter=[100, 3], WindowWidth=[50, 9])
    np.testing.assert_array_equal(images(one), images(two))


def test_monochrome1_is_monochrome2_of_the_complement(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.uint8)
    plain = write_dicom(tmp_path / "a", pixels)
    inverted = write_dicom(tmp_path / "b", 255 - pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_allclose(images(plain), images(inverted), atol=1e-4)
    assert images(plain)[0, 0, 0, 0] < images(plain)[0, 0, -1, -1]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_whatever_the_polarity(tmp_path: Path, photometric: str) -> None:
    pixels = np.where(RAMP < 64, -2000, RAMP).astype(np.int16)
    path = write_dicom(tmp_path / "a", pixels, PhotometricInterpretation=photometric, PixelPaddingValue=-2000)
    image = images(path)[0, 0]
    assert (image[RAMP < 64] == 0).all()
    assert image[RAMP >= 64].max() == 1  # the percentiles were taken without the padding


def test_signed_pixels_with_rubbish_in_the_unused_bits(tmp_path: Path) -> None:
    values = (RAMP - 128).astype(np.int16)
    dirty = (values & 0x0FFF).astype(np.int16)  # 12 bits stored, sign not extended
    kwargs: dict[str, Any] = {"WindowCenter": 0, "WindowWidth": 256}
    clean = write_dicom(tmp_path / "a", values, **kwargs)
    path = write_dicom(tmp_path / "b", dirty, BitsStored=12, **kwargs)
    np.testing.assert_array_equal(images(clean), images(path))


def test_modality_and_voi_luts_are_applied(tmp_path: Path) -> None:
    pixels = RAMP.astype(np.uint8)
    item = Dataset()
    item.LUTDescriptor = [256, 0, 16]
    item.add_new("LUTData", "OW", (65535 - 257 * np.arange(256)).astype("<u2").tobytes())
    voi = write_dicom(tmp_path / "a", pixels, VOILUTSequence=Sequence([item]), WindowCenter=3, WindowWidth=3)
    np.testing.assert_allclose(images(voi)[0, 0], 1 - RAMP / 255, atol=1e-4)
    item.ModalityLUTType = "US"
    modality = write_dicom(tmp_path / "b", pixels, ModalityLUTSequence=Sequence([item]), WindowCenter=32767.5,
                           WindowWidth=65535, VOILUTFunction="LINEAR_EXACT")  # fmt: skip
    np.testing.assert_allclose(images(modality)[0, 0], 1 - RAMP / 255, atol=1e-4)


def test_enhanced_frames_bring_their_own_rescale_and_window(tmp_path: Path) -> None:
    def groups(slope: float, centre: float) -> Dataset:
        item, transformation, voi = Dataset(), Dataset(), Dataset()
        transformation.RescaleSlope, transformation.RescaleIntercept = slope, 0
        voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = centre, 255 * slope, "LINEAR_EXACT"
        item.PixelValueTransformationSequence, item.FrameVOILUTSequence = Sequence([transformation]), Sequence([voi])
        return item

    path = write_dicom(
        tmp_path / "a", np.stack([RAMP, RAMP]),
        PerFrameFunctionalGroupsSequence=Sequence([groups(1, 127.5), groups(4, 510)]),
    )  # fmt: skip
    first, second = images(path)[:, 0]
    np.testing.assert_allclose(first, RAMP / 255, atol=1e-4)
    np.testing.assert_array_equal(first, second)


def test_a_multi_frame_file_gives_evenly_spaced_frames(tmp_path: Path) -> None:
    frames = np.stack([np.full((8, 8), 10 * i, np.uint8) for i in range(21)])
    path = write_dicom(tmp_path / "a", frames)
    assert images(path).shape == (21, 1, 16, 16)
    np.testing.assert_allclose(images(path, frames_per_file=3)[:, 0, 0, 0] * 255, [0, 100, 200], atol=0.01)


def test_rgb_to_grey_is_luminance_and_grey_to_rgb_repeats(tmp_path: Path) -> None:
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    path = write_dicom(tmp_path / "a", red)
    np.testing.assert_allclose(images(path), 0.299, atol=1e-4)
    np.testing.assert_allclose(images(path, channels=3)[0].mean((1, 2)), [1, 0, 0], atol=1e-4)
    grey = images(write_dicom(tmp_path / "b", RAMP), channels=3)[0]
    assert (grey[0] == grey[1]).all() and (grey[0] == grey[2]).all()


def test_planes_and_pixels_interleaved_are_the_same_picture(tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    by_plane = picture.transpose(2, 0, 1).tobytes()
    pixel = write_dicom(tmp_path / "a", picture)
    plane = write_dicom(tmp_path / "b", picture, PlanarConfiguration=1, PixelData=by_plane)
    np.testing.assert_array_equal(images(pixel, channels=3), images(plane, channels=3))


def test_a_palette_is_its_colours() -> None:
    data = pydicom.dcmread(bundled("examples_palette.dcm"))
    # The bundled palette image is 16 bits a colour.
    expected = apply_color_lut(data.pixel_array, data)[..., :3] / 65535
    got = images(bundled("examples_palette.dcm"), size_px=800, channels=3)[0]
    np.testing.assert_allclose(got[:, 225:575], expected.transpose(2, 0, 1), atol=1e-4)


@pytest.mark.parametrize("twin", ["RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian", "implicit", "expb", "padded"])
def test_every_lossless_encoding_of_an_image_is_the_same_image(twin: str) -> None:
    np.testing.assert_array_equal(images(bundled(f"MR_small_{twin}.dcm")), images(bundled("MR_small.dcm")))


@pytest.mark.parametrize(
    "twin", ["SC_rgb_jpeg_lossy_gdcm.dcm", "SC_rgb_jpeg_dcmtk.dcm", "SC_rgb_gdcm_KY.dcm", "SC_rgb_jpeg_gdcm.dcm"]
)
def test_lossy_encodings_are_close(twin: str) -> None:
    difference = images(bundled(twin), channels=3) - images(bundled("SC_rgb_rle.dcm"), channels=3)
    assert np.abs(difference).mean() < 0.01


def test_rle_made_here_equals_its_uncompressed_twin(tmp_path: Path) -> None:
    plain = write_dicom(tmp_path / "a", RAMP)
    data = pydicom.dcmread(plain)
    data.compress(RLELossless, generate_instance_uid=False)
    data.save_as(tmp_path / "b")
    np.testing.assert_array_equal(images(plain), images(tmp_path / "b"))


def test_proportions_are_kept_and_the_rest_is_black(tmp_path: Path) -> None:
    white = np.full((8, 32), 255, np.uint8)
    image = images(write_dicom(tmp_path / "a", white))[0, 0]
    assert (image[6:10] == 1).all() and image.sum() == 4 * 16
    tall = images(write_dicom(tmp_path / "b", white, PixelSpacing=[4.0, 1.0]))[0, 0]
    assert (tall == 1).all()  # pixels four times as high as wide


def test_the_resize_averages_a_checkerboard_to_grey() -> None:
    board = (np.indices((512, 512)).sum(0) % 2).astype(np.float32)
    np.testing.assert_allclose(fit(board, ImageRecipe(32, 1))[0, 2:-2, 2:-2], 0.5, atol=0.01)


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([8, 33]), st.sampled_from([1, 3]))
def test_any_shape_fits_and_stays_in_range(height: int, width: int, size_px: int, channels: int) -> None:
    image = np.random.default_rng(height).random((height, width), np.float32)
    out = fit(image, ImageRecipe(size_px, channels))
    assert out.shape == (channels, size_px, size_px) and out.min() >= 0 and out.max() <= 1


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"WindowCenter": 40, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "VOI LUT Function (0028,1056)"),
        ({"RescaleSlope": 0, "RescaleIntercept": 0}, "Rescale Slope (0028,1053)"),
        ({"PhotometricInterpretation": "HSV"}, "Photometric Interpretation (0028,0004)"),
        ({"PhotometricInterpretation": "RGB"}, "Photometric Interpretation (0028,0004)"),
        ({"BitsStored": 12, "HighBit": 15}, "High Bit (0028,0102)"),
        ({"PixelData": RAMP.tobytes()[:100]}, "Pixel Data (7FE0,0010)"),
        ({"VOILUTSequence": Sequence([Dataset()])}, "VOI LUT Sequence (0028,3010)"),
        ({"SamplesPerPixel": None}, "Samples per Pixel (0028,0002)"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "Palette Color"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_its_tag(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    assert expected in reason(write_dicom(tmp_path / "a", RAMP, **attributes))
