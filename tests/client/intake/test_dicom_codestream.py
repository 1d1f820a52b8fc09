"""Header and codestream: what both say the same is shown, and what they say differently is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.uid import UID, JPEG2000Lossless, JPEGLSLossless, RLELossless
from tests.client.intake.dicom_files import images, outcome, reason, write_dicom

from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.codestream import Codestream, jpeg, jpeg_2000
from wardround_client.intake.source import Rejection

GREY = (np.arange(64 * 64) % 4096).astype(np.uint16).reshape(64, 64)
COLOUR = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
LOOK: dict[str, Any] = {"WindowCenter": "2048", "WindowWidth": "4096"}
PLUGIN = {JPEGLSLossless: "pyjpegls", JPEG2000Lossless: "pylibjpeg", RLELossless: "pylibjpeg"}


def compressed(path: Path, syntax: UID, pixels: np.ndarray[Any, Any] = GREY, **more: Any) -> pydicom.Dataset:
    grey = LOOK if pixels.ndim == 2 else {}
    data = pydicom.dcmread(
        write_dicom(path, pixels, **grey, **{"BitsStored": 12, **more} if pixels.ndim == 2 else more)
    )
    data.compress(syntax, encoding_plugin=PLUGIN[syntax], generate_instance_uid=False)
    return data


def changed(path: Path, syntax: UID, pixels: np.ndarray[Any, Any] = GREY, **attributes: Any) -> Path:
    """A file whose header says something else than its codestream."""
    data = compressed(path, syntax, pixels)
    for keyword, value in attributes.items():
        setattr(data, keyword, value)
    data.save_as(path)
    return path


CONTRADICTIONS = [
    {"Rows": 32},
    {"Columns": 32},
    {"Rows": 32, "Columns": 128},
    {"Rows": 65},
    {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
    {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB", "PlanarConfiguration": 0},
]


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("attributes", CONTRADICTIONS)
def test_a_header_that_contradicts_its_codestream_is_refused_with_both(
    tmp_path: Path, syntax: UID, attributes: dict[str, Any]
) -> None:
    result = outcome(changed(tmp_path / "a", syntax, **attributes))
    assert (
        isinstance(result, Rejection) and "is not the codestream's" in result.reason and "codestream" in result.detail
    )


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_a_sign_that_the_codestream_does_not_have_room_for_is_refused(tmp_path: Path, syntax: UID) -> None:
    path = changed(tmp_path / "a", syntax, BitsStored=16, HighBit=15, PixelRepresentation=1)
    assert reason(path) == "Bits Stored (0028,0101) is not the codestream's"


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_bits_above_the_stored_ones_are_nobodys(tmp_path: Path, syntax: UID) -> None:
    """An overlay in the high bits may hold a name (PS3.5 8.1.2)."""
    overlaid = GREY | np.where(np.indices(GREY.shape).sum(0) % 3, 0x1000, 0).astype(np.uint16)
    data = compressed(tmp_path / "a", syntax, overlaid, BitsStored=16)
    data.BitsStored, data.HighBit = 12, 11
    data.save_as(tmp_path / "a")
    np.testing.assert_array_equal(
        images(tmp_path / "a"), images(write_dicom(tmp_path / "b", GREY, BitsStored=12, **LOOK))
    )


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_signed_values_come_back(tmp_path: Path, syntax: UID) -> None:
    values = (GREY.astype(np.int16) - 2048).astype(np.int16)
    look: dict[str, Any] = {"WindowCenter": "0", "WindowWidth": "4096", "BitsStored": 12}
    data = pydicom.dcmread(write_dicom(tmp_path / "a", values, **look))
    data.compress(syntax, encoding_plugin=PLUGIN[syntax], generate_instance_uid=False)
    data.save_as(tmp_path / "b")
    np.testing.assert_array_equal(images(tmp_path / "b"), images(tmp_path / "a"))


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless, RLELossless])
def test_colours_come_back_whatever_the_plane_order(tmp_path: Path, syntax: UID) -> None:
    plain = images(write_dicom(tmp_path / "a", COLOUR), channels=3)
    for planar in (0, 1):
        path = changed(tmp_path / "b", syntax, COLOUR, PlanarConfiguration=planar)
        np.testing.assert_array_equal(images(path, channels=3), plain)


@pytest.mark.parametrize("syntax", [JPEGLSLossless, JPEG2000Lossless])
def test_another_transfer_syntax_than_the_codestreams_is_refused(tmp_path: Path, syntax: UID) -> None:
    data = compressed(tmp_path / "a", syntax)
    other = {JPEGLSLossless: pydicom.uid.JPEGBaseline8Bit, JPEG2000Lossless: JPEGLSLossless}[syntax]
    data.file_meta.TransferSyntaxUID = other
    data.save_as(tmp_path / "a")
    assert reason(tmp_path / "a").startswith(("the codestream is not of", "a compressed frame does not begin"))


@pytest.mark.parametrize("photometric", ["YBR_RCT", "YBR_ICT"])
def test_a_transform_of_jpeg_2000_is_nobody_elses(tmp_path: Path, photometric: str) -> None:
    path = write_dicom(tmp_path / "a", COLOUR, PhotometricInterpretation=photometric)
    assert reason(path) == "Photometric Interpretation (0028,0004) does not fit Transfer Syntax UID (0002,0010)"


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data(), syntax=st.sampled_from([JPEGLSLossless, JPEG2000Lossless]))
def test_a_codestream_cut_anywhere_is_refused_unread(tmp_path: Path, data: st.DataObject, syntax: UID) -> None:
    whole = compressed(tmp_path / "a", syntax)
    stream = next(pydicom.encaps.generate_frames(whole.PixelData, number_of_frames=1)).rstrip(b"\0")
    cut = stream[: data.draw(st.integers(0, len(stream) - 2))]
    read: Callable[[bytes], Codestream] = jpeg if syntax == JPEGLSLossless else jpeg_2000
    assert (read(stream).rows, read(stream).columns, read(stream).precision) == (64, 64, 12)
    with pytest.raises(UnusableError):
        read(cut + bytes(len(cut) % 2))


@settings(max_examples=300, deadline=None)
@given(
    content=st.binary(max_size=200), start=st.sampled_from([b"\xff\xd8", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ", b""])
)
def test_no_bytes_break_the_reader(content: bytes, start: bytes) -> None:
    for read in (jpeg, jpeg_2000):
        try:
            found = read(start + content)
        except UnusableError:
            continue
        assert found.components >= 1


def test_jpeg_2000_in_boxes_is_read(tmp_path: Path) -> None:
    data = compressed(tmp_path / "a", JPEG2000Lossless)
    stream = next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1))
    boxed = (
        b"\0\0\0\x0cjP  \r\n\x87\n"
        + b"\0\0\0\x10ftypjp2 \0\0\0\0"
        + (8 + len(stream)).to_bytes(4, "big")
        + b"jp2c"
        + stream
    )
    data.PixelData = pydicom.encaps.encapsulate([boxed])
    data.save_as(tmp_path / "b")
    np.testing.assert_array_equal(
        images(tmp_path / "b"), images(write_dicom(tmp_path / "c", GREY, BitsStored=12, **LOOK))
    )


def test_rle_segments_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    data = compressed(tmp_path / "a", RLELossless)
    stream = bytearray(next(pydicom.encaps.generate_frames(data.PixelData, number_of_frames=1)))
    for count in (0, 1, 3, 15, 1 << 31):
        stream[:4] = count.to_bytes(4, "little")
        data.PixelData = pydicom.encaps.encapsulate([bytes(stream)])
        data.save_as(tmp_path / "b")
        assert reason(tmp_path / "b") == "RLE segments do not fit Bits Allocated (0028,0100)"
