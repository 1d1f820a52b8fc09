"""What a codestream says of itself, read before any decoder sees it, and whether the header says the same.

A decoder that is given another picture than the header describes tears rows apart, runs for minutes, or crashes; and a
codestream that is cut off comes out grey below. So a frame whose codestream and header differ is refused with both
values named, and one without an end is refused at once.
"""

from __future__ import annotations

from dataclasses import dataclass

from wardround_client.intake.dicom.attributes import UnusableError

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7}
BASELINE, EXTENDED, PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC0, 0xC1, 0xC2, 0xC3, 0xF7
JPEG_2000 = 0x4F


@dataclass(frozen=True)
class Codestream:
    """What it says. process: which marker begins its frame (JPEG), or JPEG_2000. signed: its samples have a sign. ybr:
    it says whether its colours were transformed; None where it does not say. undone: its decoder gives RGB in any case.
    tiles: it is cut into. data: without the boxes around it.
    """

    process: int
    rows: int
    columns: int
    components: int
    precision: int
    signed: bool
    ybr: bool | None
    undone: bool
    tiles: int
    data: bytes


def jpeg(data: bytes) -> Codestream:
    """JPEG (ISO 10918-1 annex B) or JPEG-LS (ISO 14495-1 annex C). Raises: UnusableError."""
    if data[:2] != b"\xff\xd8":
        raise UnusableError("a compressed frame does not begin as JPEG does", data[:4].hex())
    adobe, jfif = -1, False
    found: tuple[int, bytes] | None = None
    bare = [data[:2]]
    at = 2
    while True:
        marker, at = _marker(data, at)
        if marker == _SOS:
            break
        if marker in _NO_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        segment = data[at + 2 : at + length]
        if marker == _EOI or length < 2 or len(segment) < length - 2:
            raise UnusableError("a compressed frame is cut off")
        if marker in _FRAMES:
            if found is not None:
                raise UnusableError("a compressed frame describes itself twice")
            found = (marker, segment)
        elif marker == 0xEE and segment[:5] == b"Adobe" and len(segment) >= 12:
            adobe = segment[11]
        elif marker == 0xE0 and segment[:5] == b"JFIF\0":
            jfif = True
        if not 0xE0 <= marker <= 0xEF:
            bare.append(data[at - 2 : at + length])
        at += length
    # The rest is entropy-coded, where no marker can stand but the end (and restarts, which are none of our business).
    if data.rstrip(b"\0")[-2:] != b"\xff\xd9" and b"\xff\xd9" not in data[-64:]:
        raise UnusableError("a compressed frame is cut off", "the end marker of JPEG is missing")
    if found is None or len(found[1]) < 6 + 3 * found[1][5]:
        raise UnusableError("a compressed frame does not describe itself")
    process, frame = found
    ids = bytes(frame[6 + 3 * number] for number in range(frame[5]))
    factors = {frame[7 + 3 * number] for number in range(frame[5])}
    if process in (LOSSLESS, JPEG_LS) and len(factors) > 1:
        raise UnusableError("a compressed frame has components of different sizes")
    # In the order in which libjpeg looks at it; it undoes a transform, unless it is asked for what is stored.
    plain = ids in (b"RGB", b"rgb")
    ybr = True if jfif or adobe == 1 else False if adobe == 0 or plain else None
    if process == LOSSLESS or frame[0] > 8:
        data = b"".join((*bare, data[at - 2 :]))  # gdcm ends the process over some of what stands in the others
    rows, columns = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    return Codestream(process, rows, columns, frame[5], frame[0], False, ybr, ybr is False, 1, data)


def _marker(data: bytes, at: int) -> tuple[int, int]:
    """The next marker, and what stands behind it; fill bytes may stand before it."""
    if at >= len(data) or data[at] != 0xFF:
        raise UnusableError("a compressed frame is damaged", f"no marker at byte {at} of it")
    while at < len(data) and data[at] == 0xFF:
        at += 1
    if at >= len(data):
        raise UnusableError("a compressed frame is cut off")
    return data[at], at + 1


def jpeg_2000(data: bytes) -> Codestream:
    """JPEG 2000 and HTJ2K (ISO 15444-1 annex A). Raises: UnusableError."""
    if data[4:8] == b"jP  ":
        data = _without_boxes(data)
    if data[:4] != b"\xff\x4f\xff\x51" or len(data) < 42:
        raise UnusableError("a compressed frame does not begin as JPEG 2000 does", data[:4].hex())
    if data.rstrip(b"\0")[-2:] != b"\xff\xd9" and b"\xff\xd9" not in data[-64:]:
        raise UnusableError("a compressed frame is cut off", "the end marker of JPEG 2000 is missing")
    length = int.from_bytes(data[4:6], "big")
    width, height, left, top, tile_width, tile_height = (
        int.from_bytes(data[at : at + 4], "big") for at in range(8, 32, 4)
    )
    components = int.from_bytes(data[40:42], "big")
    each = [data[42 + 3 * number : 45 + 3 * number] for number in range(min(components, 5))]
    if length != 38 + 3 * components or not each or any(len(one) < 3 or one != each[0] for one in each):
        raise UnusableError("a compressed frame has components of different kinds")
    if each[0][1:] != b"\x01\x01":
        raise UnusableError("a compressed frame has components of different sizes")
    if left >= width or top >= height or not tile_width or not tile_height:
        raise UnusableError("a compressed frame describes no picture")
    tiles = -(-width // tile_width) * -(-height // tile_height)
    precision = (each[0][0] & 0x7F) + 1
    ybr, signed = _has_transform(data, 4 + length), bool(each[0][0] & 0x80)
    return Codestream(JPEG_2000, height - top, width - left, components, precision, signed, ybr, ybr, tiles, data)


def _has_transform(data: bytes, at: int) -> bool:
    """Whether the main header's coding style says that the components were transformed (annex A.6.1)."""
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] not in (b"\x90", b"\xd9", b""):
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        if data[at + 1] == 0x52:
            return data[at + 8 : at + 9] == b"\x01"
        at += 2 + max(length, 2)
    raise UnusableError("a compressed frame does not describe itself")


def _without_boxes(data: bytes) -> bytes:
    """The codestream in the boxes of a JP2 file (annex I), which do not belong into DICOM and are found there."""
    at = 0
    while at + 8 <= len(data):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        head = 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        if kind == b"jp2c":
            return data[at + head : at + length if length else None]
        if length < head:
            break
        at += length
    raise UnusableError("a compressed frame does not begin as JPEG 2000 does", "boxes without a codestream")
