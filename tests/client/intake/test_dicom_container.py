"""What lies around the pixels: files without preamble or delimiter, cut off anywhere, of gigabytes, in fragments."""

from __future__ import annotations

import os
import resource
import struct
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydicom.encaps import encapsulate_extended
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGLSLossless,
    RLELossless,
)
from tests.client.intake.dicom_files import images, outcome, reason, write_dicom

from wardround_client.intake.source import Instance, Rejection

FRAMES = np.stack([np.arange(n, n + 256, dtype=np.uint16).reshape(16, 16) for n in (0, 40, 90)])
ITEM, END = struct.pack("<HH", 0xFFFE, 0xE000), struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
LOOK: dict[str, Any] = {"WindowCenter": "200", "WindowWidth": "400", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}
generated = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def compressed(path: Path, syntax: UID = JPEGLSLossless) -> tuple[pydicom.Dataset, list[bytes]]:
    """A file of three compressed frames, and the codestream of each."""
    plain = pydicom.dcmread(write_dicom(path, FRAMES, **LOOK))
    plain.compress(syntax, generate_instance_uid=False)
    return plain, list(pydicom.encaps.generate_frames(plain.PixelData, number_of_frames=3))


def save(data: pydicom.Dataset, path: Path, pixels: bytes) -> Path:
    """The file with these bytes as its encapsulated pixels, and no delimiter behind them."""
    data.PixelData = pixels
    data["PixelData"].is_undefined_length = True
    data.save_as(path)
    content = path.read_bytes()
    assert content.endswith(END)
    path.write_bytes(content[: -len(END)])
    return path


def item(content: bytes) -> bytes:
    return ITEM + struct.pack("<I", len(content)) + content


@generated
@given(data=st.data())
def test_frames_are_found_whatever_the_offset_table_says(tmp_path: Path, data: st.DataObject) -> None:
    whole = images(write_dicom(tmp_path / "plain", FRAMES, **LOOK))
    dataset, frames = compressed(tmp_path / "a")
    parts: list[list[bytes]] = []
    for frame in frames:
        cuts = sorted(data.draw(st.sets(st.integers(3, len(frame) // 2), max_size=3)))
        edges = [0, *(2 * cut for cut in cuts if 2 * cut < len(frame)), len(frame)]
        parts.append([frame[a:b] for a, b in pairwise(edges)])
    sizes = [sum(8 + len(part) for part in frame) for frame in parts]
    true = [0, sizes[0], sizes[0] + sizes[1]]
    table = data.draw(st.sampled_from([[], true, [0, 8, 16], [0, 0, 0], true[:2], [4, 5, 6, 7], [2**32 - 1] * 3]))
    content = item(struct.pack(f"<{len(table)}I", *table)) + b"".join(item(part) for frame in parts for part in frame)
    path = save(dataset, tmp_path / "b", content + data.draw(st.sampled_from([b"", END, item(b"") + END])))
    np.testing.assert_array_equal(images(path), whole)


def test_frames_without_a_mark_of_their_own_are_found_by_a_table_that_is_true(tmp_path: Path) -> None:
    whole = images(write_dicom(tmp_path / "plain", FRAMES, **LOOK))
    dataset, frames = compressed(tmp_path / "a", RLELossless)
    halves = [part for frame in frames for part in (frame[:64], frame[64:])]
    starts = [0, *np.cumsum([16 + len(frame) for frame in frames])[:-1].tolist()]
    content = b"".join(map(item, halves)) + END
    np.testing.assert_array_equal(
        images(save(dataset, tmp_path / "b", item(struct.pack("<3I", *starts)) + content)), whole
    )
    assert reason(save(dataset, tmp_path / "c", item(b"") + content)) == (
        "the frames of Pixel Data (7FE0,0010) cannot be told apart"
    )
    dataset.ExtendedOffsetTable = struct.pack("<3Q", *starts)
    np.testing.assert_array_equal(images(save(dataset, tmp_path / "d", item(b"") + content)), whole)
    pixels, offsets, lengths = encapsulate_extended(frames)
    dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = offsets, lengths
    np.testing.assert_array_equal(images(save(dataset, tmp_path / "e", pixels)), whole)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_file_without_preamble_and_a_bare_data_set_are_read(tmp_path: Path, syntax: UID) -> None:
    pixels = FRAMES.astype(">u2" if syntax == ExplicitVRBigEndian else "<u2").tobytes()
    path = write_dicom(tmp_path / "a", FRAMES, syntax=syntax, PixelData=pixels, **LOOK)
    np.testing.assert_array_equal(images(path), images(write_dicom(tmp_path / "b", FRAMES, **LOOK)))
    whole, content = images(path), path.read_bytes()
    (tmp_path / "no-preamble").write_bytes(content[128 + 4 :])
    np.testing.assert_array_equal(images(tmp_path / "no-preamble"), whole)
    start = 144 + int.from_bytes(content[140:144], "little")
    (tmp_path / "bare").write_bytes(content[start:])
    np.testing.assert_array_equal(images(tmp_path / "bare"), whole)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n" + bytes(200),
        b"PatientID,finding\n" * 20,
        b"\x08\0\x05\0CS\x0a\0ISO_IR 100",
        b"\x02\0\0\0UL\x04\0" + bytes(300),
        b"\x08\0\0\0\x04\0\0\0" + bytes(300),
    ],
)
def test_what_only_begins_like_a_data_set_is_not_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert reason(tmp_path / "a").startswith(
        ("not DICOM", "the file is cut off", "no Pixel Data", "no SOP", "DICOM data")
    )


@generated
@given(data=st.data(), syntax=st.sampled_from([ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, JPEGLSLossless]))
def test_a_file_cut_anywhere_is_whole_or_refused(tmp_path: Path, data: st.DataObject, syntax: UID) -> None:
    if syntax == JPEGLSLossless:
        dataset, _ = compressed(tmp_path / "a")
        dataset.save_as(tmp_path / "a")
    else:
        write_dicom(tmp_path / "a", FRAMES, syntax=syntax, **LOOK)
    content = (tmp_path / "a").read_bytes()
    whole = images(tmp_path / "a")
    (tmp_path / "b").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    result = outcome(tmp_path / "b")
    if isinstance(result, Instance):
        np.testing.assert_array_equal(result.rows, np.rint(whole * 65535))
    else:
        assert "cut off" in result.reason or "damaged" in result.reason or result.reason.startswith(("not", "no "))


def test_only_the_delimiter_may_be_missing(tmp_path: Path) -> None:
    dataset, frames = compressed(tmp_path / "a")
    whole = item(b"") + b"".join(map(item, frames))
    assert isinstance(outcome(save(dataset, tmp_path / "b", whole)), Instance)
    assert reason(save(dataset, tmp_path / "c", whole[:-20])) == "the file is cut off"
    assert reason(save(dataset, tmp_path / "d", item(b"") + item(frames[0]) + item(frames[1]))) == "the file is cut off"
    cut = frames[2][: len(frames[2]) // 2]
    assert reason(save(dataset, tmp_path / "e", whole[: -len(frames[2]) - 8] + item(cut) + END)).startswith(
        "a compressed frame is cut off"
    )


def test_a_file_of_gigabytes_is_read_frame_by_frame(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", np.zeros((1, 8, 8), np.uint16), **LOOK)
    side, count = 1024, 2500
    data = pydicom.dcmread(path)
    data.Rows = data.Columns = side
    data.NumberOfFrames = count
    data.PixelData = b""
    data.save_as(path)
    content = path.read_bytes()
    head, size = content[: content.rindex(b"OW") + 4], 2 * side * side * count
    assert size > 1 << 32  # of more bytes than its length can say: the last frames cannot be there
    count = ((1 << 32) - 2) // (2 * side * side)
    data.NumberOfFrames = count
    data.save_as(path)
    content = path.read_bytes()
    head, size = content[: content.rindex(b"OW") + 4], 2 * side * side * count
    with path.open("wb") as file:
        file.write(head + struct.pack("<I", size))
        start = file.tell()
        file.seek(start + size - 2 * side * side)
        file.write(np.full(side * side, 200, "<u2").tobytes())
    assert path.stat().st_size > 4_000_000_000 and path.stat().st_blocks * 512 < 1 << 26  # a file with a hole
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = images(path, frames_per_file=3)
    assert found[:2].max() == 0 and found[2].min() > 0.4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024  # KiB


def test_compressed_pixels_of_gigabytes_are_read_frame_by_frame(tmp_path: Path) -> None:
    """Some of whose frames are refused unread, because each is larger than the limit."""
    dataset, frames = compressed(tmp_path / "a")
    path = save(dataset, tmp_path / "b", item(b"") + item(frames[0]) + item(frames[1]))
    with path.open("r+b") as file:
        file.seek(0, os.SEEK_END)
        file.write(ITEM + struct.pack("<I", 0xFFFFFFF0) + frames[2])
        file.truncate(file.tell() + 0xFFFFFFF0 - len(frames[2]))
    assert outcome(path, frames_per_file=2) == Rejection(
        "a compressed frame is larger than the limit", f"{0xFFFFFFF0} bytes, limit {1 << 30}"
    )
    assert isinstance(outcome(path, frames_per_file=1), Instance)


def test_a_data_set_that_inflates_without_end_is_not_held(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a", FRAMES, syntax=DeflatedExplicitVRLittleEndian, **LOOK)
    content = path.read_bytes()
    start = 144 + int.from_bytes(content[140:144], "little")
    squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    many = b"".join(squeezed.compress(bytes(1 << 20)) for _ in range(64)) + squeezed.flush()
    path.write_bytes(content[:start] + many)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert reason(path, greatest_bytes=1 << 22) == "deflated data set is larger than the limit"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024
