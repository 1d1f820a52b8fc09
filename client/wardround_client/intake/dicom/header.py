"""A DICOM file -> the little that wardround may know of it, parsed once and checked: a `Header`."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID

from wardround_client.intake.dicom.attributes import (
    APPEARANCE,
    COLOUR,
    EQUIPMENT,
    GREY,
    PALETTE,
    UPTAKE,
    UnusableError,
    named,
    number,
    numbers,
    text,
    whole,
)
from wardround_client.intake.dicom.container import Container, PixelElement, opened
from wardround_client.intake.dicom.identity import WHO, Identity
from wardround_client.intake.dicom.select import KIND, Kind, left_out
from wardround_client.intake.dicom.tables import Table, palette_of, table_of
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import DEFAULTS, Rules

ALLOWED = (*WHO, *KIND, *EQUIPMENT, *APPEARANCE, *UPTAKE)
"""The allowlist. The value of any other attribute is skipped while the file is parsed."""

_LEAST, _GREATEST = 1e-15, 1e9  # of a slope or an intercept: what is beyond loses the picture in rounding

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

    modality: a table, or slope and intercept; None when the file has neither. rescale_type: of what they give, "" where
    the file does not say. voi: a table, or centre, width and function of the first window that makes sense; None when
    there is none. aspect: height of a pixel over its width; 1 when neither spacing nor ratio makes sense.
    """

    modality: Table | tuple[float, float] | None
    rescale_type: str
    voi: Table | tuple[float, float, str] | None
    aspect: float


@dataclass(frozen=True)
class Header:
    """What may be known of a DICOM file, parsed once and checked.

    identity: to be hashed. kind: what `[select]` chooses by. manufacturer: "" when there is none.
    photometric: in capitals. inverse: the least value is white (PS3.3 C.11.6). samples, allocated, stored (bits),
    unsigned, planar, frames: of the pixels (PS3.3 C.7.6.3). padding: of MONOCHROME, the two ends of what fills the
    frame (PS3.3 C.7.5.1.1.2), or None. looks: of the frames that are used, by index, in order. palette: of red, green,
    blue. element: where the pixels lie. offsets: the Extended Offset Table. greatest_bytes: of one compressed frame.
    dataset: the attributes that may be read.
    """

    identity: Identity
    kind: Kind
    manufacturer: str
    modality: str
    sop_class: UID
    photometric: str
    inverse: bool
    syntax: UID
    little_endian: bool
    rows: int
    columns: int
    samples: int
    allocated: int
    stored: int
    unsigned: bool
    planar: int
    frames: int
    padding: tuple[float, float] | None
    looks: Mapping[int, Look]
    palette: tuple[Table, Table, Table] | None
    element: PixelElement
    offsets: bytes | None
    greatest_bytes: int
    dataset: Dataset


def read(path: Path, recipe: ImageRecipe, rules: Rules = DEFAULTS) -> Header:
    """The header of a DICOM file (PS3.10 section 7).

    Raises:
        UnusableError: not DICOM, no pixel data, no identity, left out by the rules, burned-in text, sizes past the
            recipe's limits, or values that make no sense.
        OSError: the file cannot be read.
    """
    file = opened(path, ALLOWED, recipe.greatest_bytes)
    dataset, element = file.dataset, file.pixels
    modality = text(dataset, "Modality").upper()
    if element is None:
        raise UnusableError(f"no {named('PixelData')}", getattr(file.sop_class, "name", ""))
    if file.sop_class in COMPUTED or modality in COMPUTED:
        raise UnusableError(f"{named('SOPClassUID')} is of a mask, a dose or a map", file.sop_class.name or modality)
    if not file.syntax:
        raise UnusableError(f"no {named('TransferSyntaxUID')}")
    identity, kind = Identity.of(dataset, rules.patients), Kind.of(dataset, file.sop_class)
    if rejection := left_out(kind, rules.select):
        raise UnusableError(rejection.reason, rejection.detail, by_choice=True)
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not recipe.takes_marked:
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
    samples, allocated = whole(dataset, "SamplesPerPixel", least=1), whole(dataset, "BitsAllocated", least=1)
    whole_numbers = element.keyword == "PixelData"
    unsigned = not whole_numbers or _unsigned(dataset)
    return Header(
        identity=identity,
        kind=kind,
        manufacturer=manufacturer,
        modality=kind.modality,
        sop_class=file.sop_class,
        photometric=photometric,
        inverse=_inverse(dataset, photometric),
        syntax=file.syntax,
        little_endian=file.little_endian,
        rows=whole(dataset, "Rows", least=1),
        columns=whole(dataset, "Columns", least=1),
        samples=samples,
        allocated=allocated,
        stored=whole(dataset, "BitsStored", least=1) if whole_numbers else allocated,
        unsigned=unsigned,
        planar=int(number(dataset, "PlanarConfiguration") or 0) if samples > 1 else 0,
        frames=frames,
        padding=_padding(dataset) if photometric in GREY and whole_numbers else None,
        looks={index: _look(file, index, grey=photometric in GREY, unsigned=unsigned) for index in chosen},
        palette=palette_of(dataset, signed=not unsigned, little_endian=file.little_endian)
        if photometric == PALETTE
        else None,
        element=element,
        offsets=dataset.get("ExtendedOffsetTable"),
        greatest_bytes=recipe.greatest_bytes,
        dataset=dataset,
    )


def _unsigned(dataset: Dataset) -> bool:
    """Whether the stored values have no sign."""
    value = whole(dataset, "PixelRepresentation", least=0)
    if value > 1:
        raise UnusableError(f"{named('PixelRepresentation')} is neither 0 nor 1", value)
    return not value


def _inverse(dataset: Dataset, photometric: str) -> bool:
    """A Presentation LUT Shape says it in the end (PS3.3 C.11.6); where there is none, the interpretation does."""
    shape = text(dataset, "PresentationLUTShape").upper()
    if shape in ("IDENTITY", "INVERSE"):
        return shape == "INVERSE"
    return photometric == "MONOCHROME1"


def _padding(dataset: Dataset) -> tuple[float, float] | None:
    value, limit = number(dataset, "PixelPaddingValue"), number(dataset, "PixelPaddingRangeLimit")
    return None if value is None else (value, value if limit is None else limit)


def _look(file: Container, index: int, *, grey: bool, unsigned: bool) -> Look:
    """An attribute of one frame: its own functional group, else the shared one, else the data set (PS3.3 C.7.6.16)."""
    dataset, little_endian = file.dataset, file.little_endian
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    groups = [*per_frame[index : index + 1], *(dataset.get("SharedFunctionalGroupsSequence") or [])[:1]]

    def within(macro: str, *keywords: str) -> Dataset:
        """The nearest data set that holds one of the keywords: in the functional group `macro`, or the file itself."""
        for group in groups:
            items = group.get(macro)
            if items and any(keyword in items[0] for keyword in keywords):
                return Dataset(items[0])
        return dataset

    modality: Table | tuple[float, float] | None = None
    voi: Table | tuple[float, float, str] | None = None
    kind = ""
    if grey:
        near = within("PixelValueTransformationSequence", "RescaleSlope", "ModalityLUTSequence")
        modality, kind = _rescale(near), text(near, "RescaleType").upper()
        signed = not unsigned or (isinstance(modality, tuple) and modality[1] < 0)
        if near.get("ModalityLUTSequence"):
            items = near.ModalityLUTSequence
            modality = table_of(items[0], "ModalityLUTSequence", signed=not unsigned, little_endian=little_endian)
            signed = False
        near = within("FrameVOILUTSequence", "WindowCenter", "VOILUTSequence")
        if near.get("VOILUTSequence"):
            voi = table_of(near.VOILUTSequence[0], "VOILUTSequence", signed=signed, little_endian=little_endian)
        else:
            voi = _window(near)
    spacing = numbers(within("PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing")
    if len(spacing) != 2:
        spacing = numbers(dataset, "ImagerPixelSpacing")
    ratio = spacing if len(spacing) == 2 else numbers(dataset, "PixelAspectRatio")
    sensible = len(ratio) == 2 and min(ratio) > 0 and 0.1 <= ratio[0] / ratio[1] <= 10
    return Look(modality, kind, voi, ratio[0] / ratio[1] if sensible else 1.0)


def _rescale(dataset: Dataset) -> tuple[float, float] | None:
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope is None and intercept is None:
        return None
    for keyword, value in (("RescaleSlope", slope), ("RescaleIntercept", intercept)):
        if value is None:  # programs differ in what they make of one without the other
            raise UnusableError(f"no {named(keyword)}")
        if abs(value) > _GREATEST or 0 < abs(value) < _LEAST:
            raise UnusableError(f"{named(keyword)} makes no sense", f"{value:g}")
    if not slope or intercept is None:
        raise UnusableError(f"{named('RescaleSlope')} is 0")
    return slope, intercept


def _window(dataset: Dataset) -> tuple[float, float, str] | None:
    """The first window that makes sense (PS3.3 C.11.2.1.2); one of no width is as good as none."""
    function = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise UnusableError(f"{named('VOILUTFunction')} is not supported", function)
    for centre, width in zip(numbers(dataset, "WindowCenter"), numbers(dataset, "WindowWidth"), strict=False):
        if width >= 1 if function == "LINEAR" else width > 0:
            return centre, width, function
    return None


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
    return whole(dataset, "NumberOfFrames", least=1) if number(dataset, "NumberOfFrames") else 1  # 0: as without
