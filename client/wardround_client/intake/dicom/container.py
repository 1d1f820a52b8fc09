"""A file -> its data set without the pixels, and where the pixels lie: nothing of a file is read that nobody needs.

The pixels stay on the disk, so a file of many gigabytes costs no more memory than one of its frames.
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag, Tag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from wardround_client.intake.dicom.attributes import PIXEL_DATA, UnusableError, named, refusing, text
from wardround_client.intake.dicom.identity import WHO

CUT_OFF = "the file is cut off"
UNDEFINED = 0xFFFFFFFF
GREATEST_HEADER = 1 << 28
"""Bytes of what stands before the pixels: tables, functional groups, sequences."""

_DELIMITER, _DELIMITER_BIG = b"\xfe\xff\xdd\xe0", b"\xff\xfe\xe0\xdd"
_PIXEL_TAGS = {Tag(keyword): keyword for keyword in PIXEL_DATA}
_IDENTITY = {Tag(keyword): keyword for keyword in WHO}
_VALUE_KINDS = {
    *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"OB", b"OD", b"OF", b"OL"),
    *(b"OV", b"OW", b"PN", b"SH", b"SL", b"SQ", b"SS", b"ST", b"SV", b"TM", b"UC", b"UI", b"UL", b"UN", b"UR", b"US"),
    *(b"UT", b"UV"),
}


@dataclass(frozen=True)
class PixelElement:
    """Where the pixels lie. keyword: which of the three kinds. vr: "" where it is implicit. length: in bytes, or None
    where it is undefined: encapsulated (PS3.5 annex A.4). size: of all that can be read.
    """

    keyword: str
    vr: str
    offset: int
    length: int | None
    size: int
    path: Path
    inflated: bytes | None

    def open(self) -> BinaryIO:
        """What `offset` counts in. Raises: OSError."""
        return self.path.open("rb") if self.inflated is None else io.BytesIO(self.inflated)


@dataclass(frozen=True)
class Container:
    """A file (PS3.10 section 7). dataset: the attributes asked for that stand before the pixels. syntax: "" where the
    file does not say and it cannot be told. little_endian: of the data set.
    """

    dataset: Dataset
    sop_class: UID
    syntax: UID
    little_endian: bool
    pixels: PixelElement | None


def opened(path: Path, keywords: Sequence[str], greatest_inflated: int) -> Container:
    """Read the header. keywords: of the attributes to keep. greatest_inflated: most bytes of a deflated data set.

    Raises:
        UnusableError: not DICOM, damaged, cut off, or too large.
        OSError: the file cannot be read.
    """
    if not path.is_file():
        raise UnusableError("not a regular file")
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        meta = _meta(file)
        syntax = UID(text(meta, "TransferSyntaxUID"))
        stream: BinaryIO = file
        inflated = None
        if syntax == DeflatedExplicitVRLittleEndian:
            inflated = _inflated(file, meta, greatest_inflated)
            stream, size = io.BytesIO(inflated), len(inflated)
        implicit, little_endian = _encoding(stream, syntax)
        found: list[tuple[int, BaseTag, str | None, int]] = []
        lengths: list[int] = []  # the last one
        tags, seen = [Tag(keyword) for keyword in keywords], set[BaseTag]()

        def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
            at = stream.tell()
            lengths[:] = [length]
            if tag in _PIXEL_TAGS:
                found.append((at, tag, vr, length))
                return True
            if length != UNDEFINED and at + length > size:
                raise UnusableError(CUT_OFF, f"within {tag}, {at + length - size} bytes are missing")
            if tag in seen and tag in _IDENTITY:  # programs differ in which they believe
                raise UnusableError(f"{named(_IDENTITY[tag])} stands twice in the file")
            seen.add(tag)
            if at > GREATEST_HEADER:
                raise UnusableError("the header is larger than the limit", f"limit {GREATEST_HEADER} bytes")
            return False

        with refusing("DICOM data set is damaged", passing=OSError):  # a damaged header can fail in any way
            dataset = read_dataset(stream, implicit, little_endian, stop_when=stop, specific_tags=list(tags))
        if not found and lengths[-1:] == [UNDEFINED]:  # pydicom gives up silently where a sequence ends too early
            stream.seek(max(0, size - 8))
            if stream.read(4) != (_DELIMITER if dataset.original_encoding[1] else _DELIMITER_BIG):
                raise UnusableError(CUT_OFF, "within the header")
    pixels = None
    if found:
        at, tag, vr, length = found[-1]
        defined = None if length == UNDEFINED else length
        pixels = PixelElement(_PIXEL_TAGS[tag], vr or "", at, defined, size, path, inflated)
    if not syntax and pixels and pixels.length is not None:
        syntax = _native(implicit=dataset.original_encoding[0] is True, little_endian=little_endian)
    sop_class = UID(text(dataset, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID"))
    if not meta and not (sop_class.startswith("1.2.840.10008.5.1.4.") and "SOPInstanceUID" in dataset):
        raise UnusableError("not DICOM", f"no 'DICM' prefix (PS3.10 section 7.1), and no {named('SOPClassUID')}")
    return Container(dataset, sop_class, syntax, little_endian, pixels)


def _meta(file: BinaryIO) -> Dataset:
    """The file meta information, and the file left behind it; empty where a data set stands bare (PS3.10 7.1)."""
    file.seek(0)
    head = file.read(140)
    start = 132 if head[128:132] == b"DICM" else 0
    if not start and not _looks_like_elements(head):
        raise UnusableError("not DICOM", "no 'DICM' prefix (PS3.10 section 7.1)")
    file.seek(start)
    with refusing("DICOM data set is damaged", passing=OSError):
        meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if "FileMetaInformationGroupLength" in meta and text(meta, "TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        with refusing("DICOM data set is damaged", passing=OSError):  # what follows is no element
            file.seek(start + 12 + int(meta.FileMetaInformationGroupLength))
    return meta


def _looks_like_elements(head: bytes) -> bool:
    """Whether a file without a prefix begins as data sets do: with group 2 or 8, and a kind of value or a length."""
    if len(head) < 16:
        return False
    little, big = int.from_bytes(head[:2], "little"), int.from_bytes(head[:2], "big")
    if head[4:6] in _VALUE_KINDS:
        return little in (2, 8) or big == 8
    length = int.from_bytes(head[4:8], "little")
    return little == 8 and head[3] == 0 and length <= 64 and length % 2 == 0


def _encoding(stream: BinaryIO, syntax: UID) -> tuple[bool, bool]:
    """(implicit, little endian) of a data set; looked at where the file does not say (PS3.5 section 7.1)."""
    if syntax:
        return syntax == ImplicitVRLittleEndian, syntax != ExplicitVRBigEndian
    at = stream.tell()
    head = stream.read(6)
    stream.seek(at)
    explicit = head[4:6] in _VALUE_KINDS
    return not explicit, not (explicit and head[:1] == b"\0" and head[1:2] != b"\0")


def _native(*, implicit: bool, little_endian: bool) -> UID:
    if implicit:
        return ImplicitVRLittleEndian
    return ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian


def _inflated(file: BinaryIO, meta: Dataset, greatest: int) -> bytes:
    """A deflated data set (PS3.5 annex A.5) can be a thousand times its file: it is inflated up to a limit."""
    if "FileMetaInformationGroupLength" not in meta:
        raise UnusableError(f"no {named('FileMetaInformationGroupLength')}, and the data set is deflated")
    inflater, out, size = zlib.decompressobj(-zlib.MAX_WBITS), [], 0
    with refusing("deflated data set is damaged, Transfer Syntax UID (0002,0010)", passing=OSError):
        while block := file.read(1 << 16):
            while block and size <= greatest:
                out.append(inflater.decompress(block, 1 << 20))
                size += len(out[-1])
                block = inflater.unconsumed_tail
            if size > greatest:
                raise UnusableError("deflated data set is larger than the limit", f"limit {greatest} bytes")
    if not inflater.eof:
        raise UnusableError(CUT_OFF, "within the deflated data set")
    return b"".join(out)
