"""Lookup tables, however their entries were written; where they stand; and what goes before what."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian
from tests.client.intake.dicom_files import images, reason, write_dicom

from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.tables import Table, palette_of, table_of

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
SEGMENTED = "SegmentedRedPaletteColorLookupTableData"
generated = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def written(entries: NDArray[np.uint16], bits: int, way: str) -> tuple[str, Any, bool]:
    """The same entries in each of the ways that are met: (kind of value, value, little endian)."""
    big = way.startswith("big")
    if way.endswith("packed"):
        octets = entries.astype(np.uint8).tobytes()
        octets += b"\0" * (len(octets) % 2)
        if way == "big packed":  # in words of the other order
            octets = np.frombuffer(octets, "<u2").astype(">u2").tobytes()
        return ("OB" if way == "bytes packed" else "OW"), octets, not big
    if way == "numbers":
        return "US", [int(each) for each in entries], True
    return "OW", entries.astype(">u2" if big else "<u2").tobytes(), not big


@generated
@given(data=st.data())
def test_a_table_is_its_entries_whatever_way_they_are_written(data: st.DataObject) -> None:
    bits = data.draw(st.integers(8, 16))
    count = data.draw(st.sampled_from([2, 3, 255, 256, 257, 4096, 65535, 65536]))
    first = data.draw(st.sampled_from([0, 5, -1024, -32768, 40000]))
    ways = ["words", "big words", "numbers", *(["packed", "bytes packed", "big packed"] if bits == 8 else [])]
    way = data.draw(st.sampled_from(ways))
    entries = np.random.default_rng(count).integers(0, 1 << bits, count).astype(np.uint16)
    vr, value, little_endian = written(entries, bits, way)
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [count & 0xFFFF, first & 0xFFFF, bits])
    item.add_new("LUTData", vr, value)
    found = table_of(item, "VOILUTSequence", signed=first < 0, little_endian=little_endian)
    np.testing.assert_array_equal(found.entries, entries)
    values = np.array([first - 7, first, first + 1, first + count - 1, first + count, first + count + 70000])
    np.testing.assert_array_equal(found.of(values), entries[[0, 0, 1, count - 1, count - 1, count - 1]])


@pytest.mark.parametrize(
    ("descriptor", "value", "expected"),
    [
        ([4, 0, 16], [1, 2, 3], "shorter than its description"),
        ([4, 0, 12], [1, 2, 3, 5000], "more bits than it declares"),
        ([4, 0, 8], [1, 2, 3, 300], "more bits than it declares"),
        ([4, 0, 0], [1, 2, 3, 4], "declares entries of 0 bits"),
        ([4, 0, 32], [1, 2, 3, 4], "declares entries of 32 bits"),
    ],
)
def test_a_table_that_is_not_what_it_declares_is_refused(
    descriptor: list[int], value: list[int], expected: str
) -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", descriptor)
    item.add_new("LUTData", "US", value)
    with pytest.raises(UnusableError, match=expected):
        table_of(item, "VOILUTSequence", signed=False, little_endian=True)


def test_eight_bits_twice_in_a_word_are_eight_bits() -> None:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [256, 0, 8])
    item.add_new("LUTData", "US", [257 * each for each in range(256)])
    found = table_of(item, "VOILUTSequence", signed=False, little_endian=True)
    np.testing.assert_array_equal(found.entries, np.arange(256))


def segmented(units: list[int], count: int, bits: int, *, little_endian: bool = True) -> Table:
    data = Dataset()
    order = "<" if little_endian else ">"
    for name in ("Red", "Green", "Blue"):
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [count, 0, bits])
        raw = struct.pack(f"{order}{len(units)}{'B' if bits == 8 else 'H'}", *units)
        data.add_new(f"Segmented{name}PaletteColorLookupTableData", "OW", raw)
    return palette_of(data, signed=False, little_endian=little_endian)[0]


def test_segments_are_values_lines_and_what_was_before() -> None:
    expected = [7, 9, 20, 30, 40, 7, 9, 20, 30, 40, 0]
    of_words = [0, 2, 7, 9, 1, 1, 20, 1, 2, 40, 2, 3, 0, 0, 0, 1, 0]  # three segments again, from byte 0
    for little_endian in (True, False):
        found = segmented(of_words, len(expected), 16, little_endian=little_endian)
        np.testing.assert_array_equal(found.entries, expected)
    of_bytes = [0, 2, 7, 9, 1, 1, 20, 1, 2, 40, 2, 3, 0, 0, 0, 0, 0, 1, 0, 0]
    np.testing.assert_array_equal(segmented(of_bytes, len(expected), 8).entries, expected)


@generated
@given(units=st.lists(st.integers(0, 65535), max_size=40), bits=st.sampled_from([8, 16]))
def test_no_segments_run_for_ever_or_out_of_memory(units: list[int], bits: int) -> None:
    try:
        found = segmented([each % 256 for each in units] if bits == 8 else units, 64, bits)
    except UnusableError:
        return
    assert len(found.entries) == 64


def lut(entries: NDArray[Any], bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    item.ModalityLUTType = "US"
    return item


def group(macro: str, **attributes: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for keyword, value in attributes.items():
        setattr(inner, keyword, value)
    setattr(outer, macro, Sequence([inner]))
    return outer


FALLING = lut(65535 - 257 * np.arange(256), 16)
RISING = lut(257 * np.arange(256), 16)


@pytest.mark.parametrize(
    ("shared", "own", "top", "falls"),
    [
        ({"VOILUTSequence": Sequence([FALLING])}, {}, {}, True),
        ({"VOILUTSequence": Sequence([RISING])}, {"VOILUTSequence": Sequence([FALLING])}, {}, True),
        ({}, {"VOILUTSequence": Sequence([FALLING])}, {"VOILUTSequence": Sequence([RISING])}, True),
        ({"VOILUTSequence": Sequence([FALLING])}, {"WindowCenter": "128", "WindowWidth": "256"}, {}, False),
        ({"WindowCenter": "128", "WindowWidth": "256"}, {"VOILUTSequence": Sequence([FALLING])}, {}, True),
        ({"WindowCenter": "128", "WindowWidth": "256"}, {}, {"VOILUTSequence": Sequence([FALLING])}, False),
        ({"WindowCenter": "9", "WindowWidth": "1", "VOILUTSequence": Sequence([FALLING])}, {}, {}, True),
    ],
)
def test_the_nearest_voi_goes_first(
    tmp_path: Path, shared: dict[str, Any], own: dict[str, Any], top: dict[str, Any], falls: bool
) -> None:
    groups: dict[str, Any] = {
        "SharedFunctionalGroupsSequence": Sequence([group("FrameVOILUTSequence", **shared)]),
        "PerFrameFunctionalGroupsSequence": Sequence([group("FrameVOILUTSequence", **own)]),
    }
    image = images(write_dicom(tmp_path / "a", RAMP, **groups, **top))[0, 0]
    np.testing.assert_allclose(image, 1 - RAMP / 255 if falls else RAMP / 255, atol=3e-3)


def test_a_modality_table_in_a_functional_group_is_applied(tmp_path: Path) -> None:
    groups = Sequence([group("PixelValueTransformationSequence", ModalityLUTSequence=Sequence([FALLING]))])
    path = write_dicom(
        tmp_path / "a", RAMP, SharedFunctionalGroupsSequence=groups, WindowCenter="32767.5", WindowWidth="65535",
        VOILUTFunction="LINEAR_EXACT",
    )  # fmt: skip
    np.testing.assert_allclose(images(path)[0, 0], 1 - RAMP / 255, atol=1e-3)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("declared", [8, 16])
def test_palettes_of_both_orders_and_widths(tmp_path: Path, syntax: Any, bits: int, declared: int) -> None:
    if bits > declared:
        return
    order = ">u2" if syntax == ExplicitVRBigEndian else "<u2"
    scale = 257 if bits == 16 else 1
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name, entries in (("Red", np.arange(256)), ("Green", np.arange(256)[::-1]), ("Blue", np.zeros(256, int))):
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, declared]
        attributes[f"{name}PaletteColorLookupTableData"] = (scale * entries).astype(order).tobytes()
    indices = RAMP.astype(np.uint8)
    image = images(write_dicom(tmp_path / "a", indices, syntax=syntax, **attributes), channels=3)[0]
    expected = np.stack([RAMP / 255, 1 - RAMP / 255, np.zeros((16, 16))])
    np.testing.assert_allclose(image, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("photometric", "shape", "falls"),
    [
        ("MONOCHROME2", None, False),
        ("MONOCHROME1", None, True),
        ("MONOCHROME2", "IDENTITY", False),
        ("MONOCHROME2", "INVERSE", True),
        ("MONOCHROME1", "INVERSE", True),
        ("MONOCHROME1", "IDENTITY", False),
    ],
)
def test_the_presentation_shape_has_the_last_word(
    tmp_path: Path, photometric: str, shape: str | None, falls: bool
) -> None:
    path = write_dicom(
        tmp_path / "a", RAMP, PhotometricInterpretation=photometric, PresentationLUTShape=shape, WindowCenter="128",
        WindowWidth="256",
    )  # fmt: skip
    image = images(path)[0, 0]
    assert bool(image[0, 0] > image[-1, -1]) is falls


@pytest.mark.parametrize("width", ["0", "-400", "0.5"])
def test_a_window_of_no_width_is_none_and_the_next_counts(tmp_path: Path, width: str) -> None:
    plain = images(write_dicom(tmp_path / "a", RAMP))
    np.testing.assert_array_equal(images(write_dicom(tmp_path / "b", RAMP, WindowCenter="9", WindowWidth=width)), plain)
    second = write_dicom(tmp_path / "c", RAMP, WindowCenter=["9", "128"], WindowWidth=[width, "256"])
    other = images(write_dicom(tmp_path / "d", RAMP, WindowCenter="128", WindowWidth="256"))
    np.testing.assert_array_equal(images(second), other)


def test_decimal_commas_are_read_where_nothing_else_can_be_meant(tmp_path: Path) -> None:
    one = write_dicom(tmp_path / "a", RAMP, WindowCenter="100.5", WindowWidth="50.5")
    content = one.read_bytes()
    assert content.count(b"100.5 ") == 1 and content.count(b"50.5") == 1
    (tmp_path / "b").write_bytes(content.replace(b"100.5 ", b"100,5 ").replace(b"50.5", b"50,5"))
    np.testing.assert_array_equal(images(tmp_path / "b"), images(one))
    (tmp_path / "c").write_bytes(content.replace(b"100.5 ", b"1,00.5"))
    assert reason(tmp_path / "c") == "Window Center (0028,1050) is not a number"


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({"RescaleSlope": "2"}, "no Rescale Intercept (0028,1052)"),
        ({"RescaleIntercept": "2"}, "no Rescale Slope (0028,1053)"),
        ({"RescaleSlope": "1", "RescaleIntercept": "1e300"}, "Rescale Intercept (0028,1052) makes no sense"),
        ({"PixelRepresentation": 2}, "Pixel Representation (0028,0103) is neither 0 nor 1"),
    ],
)
def test_what_programs_read_differently_is_refused(tmp_path: Path, attributes: dict[str, Any], expected: str) -> None:
    assert reason(write_dicom(tmp_path / "a", RAMP, **attributes)) == expected
