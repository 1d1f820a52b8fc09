"""What of a DICOM file's header says that text may stand in its pixels, and where an ultrasound's image lies."""

from __future__ import annotations

from wardround_client.intake.dicom.attributes import number, text
from wardround_client.intake.dicom.header import Header
from wardround_client.intake.text_detection import Box

_STORAGE = "1.2.840.10008.5.1.4.1.1."
_CLASSES = {
    "7": "SC",  # Secondary Capture, also multi-frame
    "6": "US",
    "3": "US",  # Ultrasound Multi-frame
    "12.1": "XA",
    "12.3": "XA",  # bi-plane, retired
    "12.2": "RF",
    "77.1.1": "ES",
    "77.1.4": "XC",
}
"""SOP classes (PS3.4 annex B.5), and those below them: a wrong or empty Modality hides none."""


def kinds_of(header: Header) -> set[str]:
    """Modality, and "SC" and "multi-frame" where they are true."""
    kinds = {header.modality}
    kinds |= {
        kind
        for number, kind in _CLASSES.items()
        if header.sop_class == _STORAGE + number or header.sop_class.startswith(f"{_STORAGE}{number}.")
    }
    if text(header.dataset, "ConversionType"):  # PS3.3 C.8.6.1: only of what was captured elsewhere, or of film
        kinds.add("SC")
    if header.frames > 1:
        kinds.add("multi-frame")
    return kinds


def is_marked(header: Header) -> bool:
    """Burned In Annotation says YES."""
    return text(header.dataset, "BurnedInAnnotation").upper() == "YES"


def careful(header: Header) -> list[bool]:
    """Of the frames that are used: the first and the last of the file, where a machine writes what stays."""
    return [frame in (0, header.frames - 1) for frame in header.looks]


def regions_of(header: Header) -> list[Box]:
    """Of Sequence of Ultrasound Regions (PS3.3 C.8.5.5), those that lie in the image."""
    found = []
    for item in header.dataset.get("SequenceOfUltrasoundRegions") or []:
        ends = [number(item, f"RegionLocation{name}") for name in ("MinY0", "MaxY1", "MinX0", "MaxX1")]
        if None in ends:
            continue
        top, bottom, left, right = (int(end) for end in ends if end is not None)
        box = Box(max(0, top), min(header.rows, bottom + 1), max(0, left), min(header.columns, right + 1))
        if box.top < box.bottom and box.left < box.right:
            found.append(box)
    return found
