"""The bytes of one frame after the other, wherever they lie in a file, and never more than one frame in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

from wardround_client.intake.dicom.attributes import UnusableError, named
from wardround_client.intake.dicom.container import CUT_OFF, UNDEFINED, PixelElement

PIXELS = named("PixelData")
_ITEM, _END = b"\xfe\xff\x00\xe0", b"\xfe\xff\xdd\xe0"
_MOST_FRAGMENTS = 1 << 20
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  ")
"""How JPEG and JPEG-LS begin, and JPEG 2000, bare and in its own boxes."""

Fragment = tuple[int, int]
"""Where its bytes begin, and how many they are."""


@dataclass(frozen=True)
class NativeFrames:
    """Frames that lie one behind the other. bits: of one frame, which need not begin at a whole byte."""

    element: PixelElement
    bits: int
    count: int

    def check(self) -> None:
        """Refuse what does not hold the frames that the header describes. Raises: UnusableError."""
        element = self.element
        if element.length is None:
            raise UnusableError(f"{PIXELS} is encapsulated, and {named('TransferSyntaxUID')} is not")
        expected = (self.bits * self.count + 7) // 8
        there = min(element.length, element.size - element.offset)
        if there < expected:
            cut = f"{PIXELS} is truncated: {CUT_OFF}" if there < element.length else f"{PIXELS} is too short"
            raise UnusableError(cut, f"{there} bytes, {self.count} frames need {expected}")
        # A pad is short; half a frame more than there should be is another picture than the header describes.
        if element.length - expected >= max(self.bits // 16, 4096):
            raise UnusableError(f"{PIXELS} is longer than its description", f"{element.length} bytes for {expected}")

    def read(self, stream: BinaryIO, index: int) -> tuple[bytes, int]:
        """Of one frame: its bytes, and how many bits of the first byte are another frame's."""
        start = self.bits * index
        stream.seek(self.element.offset + start // 8)
        odd = start % 8
        return stream.read((odd + self.bits + 7) // 8), odd


@dataclass(frozen=True)
class EncapsulatedFrames:
    """Frames that lie in fragments (PS3.5 annex A.4): for each, where its fragments are."""

    frames: Sequence[Sequence[Fragment]]

    def read(self, stream: BinaryIO, index: int, greatest: int) -> bytes:
        """The codestream of one frame. greatest: most bytes of it. Raises: UnusableError."""
        size = sum(length for _, length in self.frames[index])
        if size > greatest:
            raise UnusableError("a compressed frame is larger than the limit", f"{size} bytes, limit {greatest}")
        parts = []
        for start, length in self.frames[index]:
            stream.seek(start)
            parts.append(stream.read(length))
        return parts[0] if len(parts) == 1 else b"".join(parts)


def encapsulated(element: PixelElement, count: int, extended: bytes | None, *, by_marker: bool) -> EncapsulatedFrames:
    """Find the frames.

    A fragment that begins as a codestream begins a frame, whatever an offset table says: tables are often empty or
    wrong, and a codestream is not.

    Args:
        element: with undefined length.
        count: frames that the header declares.
        extended: the Extended Offset Table (PS3.3 C.7.6.3.1.8), or None.
        by_marker: the syntax is one whose codestreams begin with a marker of their own.

    Raises: UnusableError: cut off, or the frames cannot be told apart.
    """
    if element.length is not None:
        raise UnusableError(f"{PIXELS} is not encapsulated, and {named('TransferSyntaxUID')} is")
    with element.open() as stream:
        items, ended = _items(stream, element)
        stream.seek(items[0][0])
        table = stream.read(min(items[0][1], 4 * count))
        fragments = [item for item in items[1:] if item[1]]
        if len(fragments) < count:
            detail = f"{len(fragments)} fragments, {count} frames"
            raise (
                UnusableError(f"{PIXELS} holds fewer frames than {named('NumberOfFrames')}", detail)
                if ended
                else (UnusableError(CUT_OFF, detail))
            )
        starts = _beginnings(stream, fragments) if by_marker and len(fragments) > 1 else []
    if count == 1 and len(starts) <= 1:
        return EncapsulatedFrames([fragments])
    if len(starts) == count and starts[0] == 0:
        return EncapsulatedFrames(_grouped(fragments, starts))
    if len(starts) > 1:
        known = f"{len(starts)} codestreams, {count} frames"
        raise UnusableError(f"{PIXELS} holds other frames than {named('NumberOfFrames')}", known)
    if len(fragments) == count:
        return EncapsulatedFrames([[fragment] for fragment in fragments])
    for offsets in (_numbers(extended or b"", 8), _numbers(table, 4)):
        places = {at - items[1][0]: number for number, (at, _) in enumerate(fragments)}
        starts = [places[offset] for offset in offsets if offset in places]
        if len(starts) == len(offsets) == count and starts[0] == 0 and sorted(set(starts)) == starts:
            return EncapsulatedFrames(_grouped(fragments, starts))
    known = f"{len(fragments)} fragments, {count} frames"
    raise UnusableError(f"the frames of {PIXELS} cannot be told apart", known)


def _items(stream: BinaryIO, element: PixelElement) -> tuple[list[Fragment], bool]:
    """The Basic Offset Table, the fragments, and whether the delimiter stands behind them."""
    stream.seek(element.offset)
    items: list[Fragment] = []
    while True:
        head = stream.read(8)
        if len(head) < 8 or head[:4] == _END:
            ended = head[:4] == _END
            break
        at, length = stream.tell(), int.from_bytes(head[4:], "little")
        if head[:4] != _ITEM or length == UNDEFINED:
            raise UnusableError(f"the fragments of {PIXELS} are damaged", f"at byte {at - 8}")
        if at + length > element.size:
            raise UnusableError(CUT_OFF, f"within a fragment, {at + length - element.size} bytes are missing")
        items.append((at, length))
        if len(items) > _MOST_FRAGMENTS:
            raise UnusableError(f"{PIXELS} has more fragments than the limit", f"limit {_MOST_FRAGMENTS}")
        stream.seek(length, io.SEEK_CUR)
    if not items:
        raise UnusableError(CUT_OFF if not ended else f"{PIXELS} holds no fragments")
    return items, ended


def _beginnings(stream: BinaryIO, fragments: Sequence[Fragment]) -> list[int]:
    """Which of the fragments begin as a codestream does."""
    found = []
    for number, (start, _) in enumerate(fragments):
        stream.seek(start)
        if stream.read(12).startswith(_STARTS):
            found.append(number)
    return found


def _grouped(fragments: Sequence[Fragment], starts: Sequence[int]) -> list[Sequence[Fragment]]:
    return [fragments[a:b] for a, b in zip(starts, [*starts[1:], len(fragments)], strict=True)]


def _numbers(table: bytes, width: int) -> list[int]:
    return [int.from_bytes(table[at : at + width], "little") for at in range(0, len(table) - width + 1, width)]
