"""Lookup tables of DICOM (PS3.3 C.11.1, C.11.2, C.7.9 and C.7.6.3.1.5), whichever way their entries were written.

Entries are of 8 to 16 bits, in words or packed, in the byte order of the file or in a list of numbers; up to 65536 of
them; the first belongs to any stored value, also a negative one; a palette may come in segments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from wardround_client.intake.dicom.attributes import UnusableError, named, refusing

Array = NDArray[Any]
_MOST = 1 << 16
_COLOURS = ("Red", "Green", "Blue")


@dataclass(frozen=True)
class Table:
    """A lookup table. entries: uint16. first: the value that maps to the first entry; those below it map there too, and
    those beyond the last entry to the last. bits: of an entry, as declared.
    """

    entries: NDArray[np.uint16]
    first: int
    bits: int

    def of(self, values: Array) -> NDArray[np.uint16]:
        """Each value's entry. values: whole numbers of any type."""
        index = np.clip(np.asarray(values, np.int64) - self.first, 0, len(self.entries) - 1)
        return np.asarray(self.entries[index])

    @property
    def needed(self) -> int:
        """Bits that the entries need, at least 8. Where they are fewer than declared, viewers correct the declaration:
        what it says would be a picture that is dark throughout.
        """
        return min(self.bits, max(8, int(self.entries.max()).bit_length()))


def table_of(item: Dataset, keyword: str, *, signed: bool, little_endian: bool) -> Table:
    """The table in an item of a sequence. signed: its first value may be negative. Raises: UnusableError."""
    with refusing(f"{named(keyword)} cannot be applied"):
        if "LUTDescriptor" not in item or "LUTData" not in item:
            raise UnusableError(f"{named(keyword)} holds no table")
        count, first, bits = _descriptor(item, "LUTDescriptor", signed=signed, little_endian=little_endian)
        entries = _entries(item["LUTData"].value, item["LUTData"].VR, count, bits, little_endian=little_endian)
    return Table(entries, first, bits)


def palette_of(dataset: Dataset, *, signed: bool, little_endian: bool) -> tuple[Table, Table, Table]:
    """The tables of red, green and blue. Raises: UnusableError."""
    red, green, blue = (_colour(dataset, name, signed=signed, little_endian=little_endian) for name in _COLOURS)
    return red, green, blue


def _colour(dataset: Dataset, name: str, *, signed: bool, little_endian: bool) -> Table:
    descriptor, data = f"{name}PaletteColorLookupTableDescriptor", f"{name}PaletteColorLookupTableData"
    with refusing(f"{named(data)} cannot be applied"):
        if descriptor not in dataset:
            raise UnusableError(f"no {named(descriptor)}")
        count, first, bits = _descriptor(dataset, descriptor, signed=signed, little_endian=little_endian)
        if data in dataset:
            entries = _entries(dataset[data].value, dataset[data].VR, count, bits, little_endian=little_endian)
        elif f"Segmented{data}" in dataset:
            element = dataset[f"Segmented{data}"]
            units = _units(element.value, element.VR, bits, little_endian=little_endian)
            entries = _expanded(units, count, 1 if bits <= 8 else 2)
        else:
            raise UnusableError(f"no {named(data)}")
    return Table(entries, first, bits)


def _descriptor(item: Dataset, keyword: str, *, signed: bool, little_endian: bool) -> tuple[int, int, int]:
    """How many entries, the first value, bits of an entry (PS3.3 C.11.1.1.1)."""
    element = item[keyword]
    value = element.value
    if isinstance(value, bytes):
        value = struct.unpack("<3H" if little_endian else ">3H", value)
    count, first, bits = (int(each) for each in value)
    count, first = count & 0xFFFF or _MOST, first & 0xFFFF
    if (signed or element.VR == "SS") and first >= 1 << 15:
        first -= 1 << 16
    if not 1 <= bits <= 16:
        raise UnusableError(f"{named(keyword)} declares entries of {bits} bits")
    return count, first, bits


def _entries(value: Any, vr: str, count: int, bits: int, *, little_endian: bool) -> NDArray[np.uint16]:
    """uint16 [count]. Of 8 bits there may be one in a word, or two (PS3.3 C.11.1.1.1)."""
    if isinstance(value, bytes):
        if bits <= 8 and count <= len(value) < 2 * count:
            return _packed(value, vr, little_endian=little_endian)[:count].astype(np.uint16)
        words = np.frombuffer(value[: len(value) // 2 * 2], "<u2" if little_endian else ">u2")
    else:
        listed = value if isinstance(value, MultiValue | list) else [value]
        words = np.array([int(each) & 0xFFFF for each in listed], np.uint16)
        if bits <= 8 and (count + 1) // 2 <= len(words) < count:
            words = _packed(words.astype("<u2").tobytes(), "OB", little_endian=True)
    if len(words) < count:
        raise UnusableError("a lookup table is shorter than its description", f"{len(words)} of {count} entries")
    words = words[:count].astype(np.uint16)
    if words.max() >= 1 << bits:
        if bits > 8 or (words >> 8 != words & 0xFF).any():
            raise UnusableError(
                "a lookup table has entries of more bits than it declares", f"{words.max()}, {bits} bits"
            )
        words &= 0xFF  # each value twice in its word, as 16-bit screens want it
    return words


def _packed(value: bytes, vr: str, *, little_endian: bool) -> NDArray[np.uint8]:
    data = np.frombuffer(value, np.uint8)
    if little_endian or vr == "OB":
        return data
    return data[: len(data) // 2 * 2].reshape(-1, 2)[:, ::-1].reshape(-1)


def _units(value: Any, vr: str, bits: int, *, little_endian: bool) -> list[int]:
    """The numbers that segments are made of: words, or bytes where an entry is one."""
    if not isinstance(value, bytes):
        return [int(each) & 0xFFFF for each in (value if isinstance(value, MultiValue | list) else [value])]
    if bits <= 8:
        return [int(each) for each in _packed(value, vr, little_endian=little_endian)]
    return [int(each) for each in np.frombuffer(value[: len(value) // 2 * 2], "<u2" if little_endian else ">u2")]


def _expanded(units: Sequence[int], count: int, width: int) -> NDArray[np.uint16]:
    """Segments -> entries (PS3.3 C.7.9.2): discrete values, a straight line, or earlier segments again.

    width: bytes of a unit.
    """
    out: list[int] = []
    at = 0
    while at + 1 < len(units) and len(out) < count:
        if units[at] == 2:
            # How many segments, and where they begin: in bytes, the low part first.
            parts = units[at + 2 : at + 2 + 4 // width]
            place, odd = divmod(sum(part << (8 * width * number) for number, part in enumerate(parts)), width)
            if odd or place >= at:
                raise UnusableError("a segmented lookup table points outside of itself")
            for _ in range(units[at + 1]):
                place = _segment(units, place, out)
            at += 2 + 4 // width
        else:
            at = _segment(units, at, out)
    if len(out) < count:
        raise UnusableError("a lookup table is shorter than its description", f"{len(out)} of {count} entries")
    return np.array(out[:count], np.uint16)


def _segment(units: Sequence[int], at: int, out: list[int]) -> int:
    """Append a discrete or linear segment -> where the next one begins."""
    kind, length = units[at], units[at + 1]
    if len(out) > _MOST:
        raise UnusableError("a lookup table is longer than its description")
    if kind == 0:
        out.extend(units[at + 2 : at + 2 + length])
        return at + 2 + length
    if kind != 1 or not out:
        raise UnusableError(f"a segmented lookup table has a segment of kind {kind} where none can be")
    start, end = out[-1], units[at + 2]
    out.extend(round(start + (end - start) * step / length) for step in range(1, length + 1))
    return at + 3
