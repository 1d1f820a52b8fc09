"""A DICOM file -> the little that wardround may know of it, parsed once and checked: a `Header`."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from wardround_client.intake.dicom.attributes import (
    ALLOWED,
    COLOUR,
    GREY,
    PALETTE,
    PIXEL_DATA,
    UnusableError,
    named,
    number,
    numbers,
    refusing,
    text,
    whole,
)
from wardround_client.intake.recipe import ImageRecipe

COMPUTED = {
    "1.2.840.10008.5.1.4.1.1.66.4",  # Segmentation
    "1.2.840.10008.5.1.4.1.1.66.5",  # Surface Segmentation
    "1.2.840.10008.5.1.4.1.1.66.7",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.30",  # Parametric Map
    "1.2.840.10008.5.1.4.1.1.481.2",  # RT Dose
    "1.2.840.10008.5.1.4.1.1.81.1",  # Ophthalmic Thickness Map
    "1.2.840.10008.5.1.4.1.1.7.1",  # Multi-frame Single Bit Secondary Capture: masks
    *("SEG", "RTDOSE"),
}
"""SOP classes (PS3.4 annex B.5) and modalities whose pixels are not those of an image: masks, doses, maps."""


@dataclass(frozen=True)
class Look:
    """How the stored values of one frame become grey values.

    rescale: slope and intercept; None when the file has neither. window: centre, width and function of the first
    window; None when there is none. aspect: height of a pixel over its width; 1 when neither spacing nor ratio makes
    sense.
    """

    rescale: tuple[float, float] | None
    window: tuple[float, float, str] | None
    aspect: float


@dataclass(frozen=True)
class Header:
    """What may be known of a DICOM file, parsed once and checked.

    patient_id, study_uid ("" when there is none), instance_uid: to be hashed. manufacturer: "" when there is none.
    photometric: in capitals. bits_stored: 0 where the file does not say. unsigned: the stored values have no sign.
    padding: of MONOCHROME, the two ends of what fills the frame (PS3.3 C.7.5.1.1.2), or None. looks: of the frames that
    are used, by index, in order. modality_table, voi_table: whether there are such sequences.
    dataset: for pydicom's decoders and tables, and for nothing else.
    """

    patient_id: str
    study_uid: str
    instance_uid: str
    manufacturer: str
    modality: str
    photometric: str
    syntax: UID
    bits_stored: int
    unsigned: bool
    padding: tuple[float, float] | None
    modality_table: bool
    voi_table: bool
    looks: Mapping[int, Look]
    dataset: Dataset


def read(path: Path, recipe: ImageRecipe) -> Header:
    """The header of a DICOM file (PS3.10 section 7).

    Raises:
        UnusableError: not DICOM, no pixel data, no identity, burned-in text, sizes past the recipe's limits, or values
            that make no sense.
        OSError: the file cannot be read.
    """
    _check_container(path, recipe)
    with refusing("DICOM data set is damaged", passing=OSError):  # a damaged header can make a parser fail in any way
        dataset = pydicom.dcmread(path, specific_tags=[Tag(keyword) for keyword in ALLOWED])
    sop_class = UID(str(dataset.file_meta.get("MediaStorageSOPClassUID", "")))
    if not any(keyword in dataset for keyword in PIXEL_DATA):
        kind = dataset.file_meta.get("MediaStorageSOPClassUID")
        raise UnusableError(f"no {named('PixelData')}", getattr(kind, "name", ""))
    sop_class, modality = (
        UID(str(dataset.file_meta.get("MediaStorageSOPClassUID", ""))),
        text(dataset, "Modality").upper(),
    )
    if sop_class in COMPUTED or modality in COMPUTED:
        raise UnusableError(f"{named('SOPClassUID')} is of a mask, a dose or a map", sop_class.name or modality)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise UnusableError(f"no {named('TransferSyntaxUID')}")
    for keyword in ("PatientID", "SOPInstanceUID"):
        if not text(dataset, keyword):
            raise UnusableError(f"no {named(keyword)}")
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not recipe.allow_burned_in:
        raise UnusableError(f"{named('BurnedInAnnotation')} is YES")
    frames = _checked_frames(dataset, recipe)
    photometric = text(dataset, "PhotometricInterpretation").upper()
    if photometric not in (*GREY, *COLOUR, PALETTE):
        raise UnusableError(f"{named('PhotometricInterpretation')} is not supported", photometric or "absent")
    _check_high_bit(dataset)
    chosen = np.unique(np.linspace(0, frames - 1, min(frames, recipe.frames_per_file)).round().astype(int)).tolist()
    manufacturer = ""
    with suppress(UnusableError):  # the image is as good without it
        manufacturer = text(dataset, "Manufacturer")
    return Header(
        patient_id=text(dataset, "PatientID"),
        study_uid=text(dataset, "StudyInstanceUID"),
        instance_uid=text(dataset, "SOPInstanceUID"),
        manufacturer=manufacturer,
        modality=modality,
        photometric=photometric,
        syntax=UID(str(dataset.file_meta.TransferSyntaxUID)),
        bits_stored=whole(dataset, "BitsStored", least=1) if photometric in COLOUR else _bits(dataset),
        unsigned=number(dataset, "PixelRepresentation") == 0,
        padding=_padding(dataset) if photometric in GREY and "PixelData" in dataset else None,
        modality_table=bool(dataset.get("ModalityLUTSequence")),
        voi_table=bool(dataset.get("VOILUTSequence")),
        looks={index: _look(dataset, index, grey=photometric in GREY) for index in chosen},
        dataset=dataset,
    )


def _bits(dataset: Dataset) -> int:
    return int(number(dataset, "BitsStored") or 0)


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    value, limit = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    return None if value is None else (value, value if limit is None else limit)


def _look(dataset: Dataset, index: int, *, grey: bool) -> Look:
    """An attribute of one frame: its own functional group, else the shared one, else the data set (PS3.3 C.7.6.16)."""
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[index : index + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]

    def within(macro: str, keyword: str) -> Dataset:
        """The nearest data set that holds `keyword`: in the functional group `macro`, or the file itself."""
        for group in groups:
            items = group.get(macro)
            if items and keyword in items[0]:
                return Dataset(items[0])
        return dataset

    rescale = window = None
    if grey and not dataset.get("ModalityLUTSequence"):
        rescale = _rescale(within("PixelValueTransformationSequence", "RescaleSlope"))
    if grey and not dataset.get("VOILUTSequence"):
        window = _window(within("FrameVOILUTSequence", "WindowCenter"))
    spacing = numbers(within("PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing")
    ratio = spacing if len(spacing) == 2 else numbers(dataset, "PixelAspectRatio")
    sensible = len(ratio) == 2 and min(ratio) > 0 and 0.1 <= ratio[0] / ratio[1] <= 10
    return Look(rescale, window, ratio[0] / ratio[1] if sensible else 1.0)


def _rescale(dataset: Dataset) -> tuple[float, float] | None:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    if slope == 0:
        raise UnusableError(f"{named('RescaleSlope')} is 0")
    return (1.0 if slope is None else slope), intercept or 0.0


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """The first window (PS3.3 C.11.2.1.2)."""
    centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    return centre, width, text(dataset, "VOILUTFunction").upper() or "LINEAR"


def _check_high_bit(dataset: Dataset) -> None:
    """High Bit is Bits Stored - 1 (PS3.5 8.1.1); anything else is either ACR-NEMA or a mistake: ambiguous."""
    high, stored = number(dataset, "HighBit"), number(dataset, "BitsStored")
    if high is not None and stored is not None and high != stored - 1:
        raise UnusableError(f"{named('HighBit')} is not {named('BitsStored')} - 1", f"{high:g}, {stored:g}")


def _checked_frames(dataset: Dataset, recipe: ImageRecipe) -> int:
    rows, columns = whole(dataset, "Rows", least=1), whole(dataset, "Columns", least=1)
    if rows * columns > recipe.greatest_pixels:
        limit = f"{rows} x {columns}, limit {recipe.greatest_pixels} pixels"
        raise UnusableError(f"{named('Rows')} x {named('Columns')} is larger than the limit", limit)
    return whole(dataset, "NumberOfFrames", least=1) if number(dataset, "NumberOfFrames") is not None else 1


def _check_container(path: Path, recipe: ImageRecipe) -> None:
    """Refuse what is not DICOM, and what is, or inflates to, too much."""
    if not path.is_file():
        raise UnusableError("not a regular file")
    if path.stat().st_size > recipe.greatest_bytes:
        raise UnusableError(
            "file is larger than the limit", f"{path.stat().st_size} bytes, limit {recipe.greatest_bytes}"
        )
    with path.open("rb") as file:
        head = file.read(4096)
    if head[128:132] != b"DICM":
        raise UnusableError("not DICOM", "no 'DICM' prefix (PS3.10 section 7.1)")
    if DeflatedExplicitVRLittleEndian.encode() in head:
        _check_inflated(path, recipe)


def _check_inflated(path: Path, recipe: ImageRecipe) -> None:
    """A deflated data set (PS3.5 annex A.5) can be a thousand times its file; measure before pydicom inflates it."""
    with refusing("deflated data set is damaged, Transfer Syntax UID (0002,0010)", passing=OSError):
        meta = pydicom.filereader.read_file_meta_info(path)
        start = 144 + int(meta.FileMetaInformationGroupLength)  # preamble, prefix, and the group length element itself
        inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        size = 0
        with path.open("rb") as file:
            file.seek(start)
            while block := file.read(1 << 16):
                while block and size <= recipe.greatest_bytes:
                    size += len(inflater.decompress(block, 1 << 20))
                    block = inflater.unconsumed_tail
    if size > recipe.greatest_bytes:
        raise UnusableError("deflated data set is larger than the limit", f"limit {recipe.greatest_bytes} bytes")
