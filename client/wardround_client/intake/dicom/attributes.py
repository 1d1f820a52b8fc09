"""Which attributes of a DICOM file may be read, and their values, checked; or `UnusableError`, which names the tag."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.tag import Tag

from wardround_client.intake.source import UnusableError as UnusableError

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PALETTE = "PALETTE COLOR"

PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

EQUIPMENT = ("Manufacturer",)
"""Kept beside the images: a hospital judges a model by scanner. The model's name and the serial number are not read."""

APPEARANCE = (
    "Modality",
    "BurnedInAnnotation",
    "ConversionType",
    "SequenceOfUltrasoundRegions",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "PixelAspectRatio",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PresentationLUTShape",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ImagePositionPatient",
    "ImageOrientationPatient",
)
"""What decides how the pixels look, and where a slice of a volume lies."""

UPTAKE = (
    "Units",
    "SUVType",
    "DecayCorrection",
    "PatientWeight",
    "SeriesDate",
    "SeriesTime",
    "AcquisitionDate",
    "AcquisitionTime",
    "RadiopharmaceuticalInformationSequence",
)
"""What turns the activity of PET into SUV. Dates and the weight are used for that sum, and nothing of them is kept."""


def named(keyword: str) -> str:
    """An attribute as the standard writes it: "Rows (0028,0010)"."""
    return f"{dictionary_description(keyword)} {Tag(keyword)}"


@contextmanager
def refusing(reason: str, passing: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """Whatever goes wrong inside refuses the file, but for `passing`, and for memory, which another moment may have."""
    try:
        yield
    except (UnusableError, MemoryError):
        raise
    except Exception as error:  # each parser and each decoder raises its own kinds
        if isinstance(error, passing):
            raise
        raise UnusableError(reason, repr(error)) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Keep pydicom's warnings and logs to ourselves: they quote values, and a cohort's log may be shown to others."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(), config.disable_value_validation():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as stripped text; "" when absent. Raises: UnusableError."""
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip().strip("\0").strip()


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of an attribute as a finite number; None when absent or empty. Raises: UnusableError."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return None
    return _as_number(value, keyword)


def _as_number(value: Any, keyword: str) -> float:
    """Also of a text with a decimal comma, which some devices write against PS3.5 section 6.2."""
    if isinstance(value, str):
        value = value.strip().strip("\0")
        if "." not in value and value.count(",") == 1:
            value = value.replace(",", ".")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise UnusableError(f"{named(keyword)} is not a number", repr(value)) from None
    if not math.isfinite(result):
        raise UnusableError(f"{named(keyword)} is not a finite number")
    return result


def whole(dataset: Dataset, keyword: str, *, least: int) -> int:
    """A required whole number of at least `least`. Raises: UnusableError."""
    value = number(dataset, keyword)
    if value is None:
        raise UnusableError(f"no {named(keyword)}")
    if value != int(value) or value < least:
        raise UnusableError(
            f"{named(keyword)} is less than {least}" if value < least else f"{named(keyword)} is not whole"
        )
    return int(value)


def numbers(dataset: Dataset, keyword: str) -> list[float]:
    """All values of an attribute as finite numbers; [] when absent or empty. Raises: UnusableError."""
    value = _get(dataset, keyword)
    if value is None or value == "":
        return []
    several = value if isinstance(value, list | pydicom.multival.MultiValue) else [value]
    return [_as_number(each, keyword) for each in several]


def groups_of(dataset: Dataset, frame: int, macro: str) -> list[Dataset]:
    """Where an attribute of a frame may stand, the nearest first: its own functional group, the shared one, the file
    (PS3.3 C.7.6.16).
    """
    per_frame = (dataset.get("PerFrameFunctionalGroupsSequence") or [])[frame : frame + 1]
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]
    inner = [items[0] for group in (*per_frame, *shared) if (items := group.get(macro))]
    return [*inner, dataset]


def _value(dataset: Dataset, keyword: str) -> Any:
    value = _get(dataset, keyword)
    if isinstance(value, list | pydicom.multival.MultiValue):
        return value[0] if len(value) else None
    return value


def _get(dataset: Dataset, keyword: str) -> Any:
    with refusing(f"{named(keyword)} cannot be read"):  # values are parsed when first asked for
        return dataset.get(keyword)
