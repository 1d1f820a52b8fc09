"""A DICOM file -> the few attributes that wardround may know, checked; or `UnusableError`, which names the tag."""

from __future__ import annotations

import logging
import math
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pydicom
from pydicom import config
from pydicom.datadict import dictionary_description
from pydicom.dataset import Dataset
from pydicom.tag import Tag
from pydicom.uid import DeflatedExplicitVRLittleEndian

from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Rejection

IDENTITY = ("PatientID", "StudyInstanceUID", "SOPInstanceUID")
"""Read to be hashed with the hospital's key, and for nothing else."""

PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

EQUIPMENT = ("Manufacturer",)
"""Kept beside the images: a hospital judges a model by scanner. The model's name and the serial number are not read."""

APPEARANCE = (
    "Modality",
    "BurnedInAnnotation",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "PixelAspectRatio",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
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
)
"""What decides how the pixels look."""

ALLOWED = (*IDENTITY, *EQUIPMENT, *APPEARANCE, *PIXEL_DATA)
"""The allowlist. The value of any other attribute is skipped while the file is parsed."""


class UnusableError(Exception):
    """The file cannot be used; caught in `deidentify.instance_of`, never seen by a user."""

    def __init__(self, reason: str, detail: object = "") -> None:
        self.rejection = Rejection(reason, " ".join(str(detail).split())[:500])
        super().__init__(reason)


def named(keyword: str) -> str:
    """An attribute as the standard writes it: "Rows (0028,0010)"."""
    return f"{dictionary_description(keyword)} {Tag(keyword)}"


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


def read(path: Path, recipe: ImageRecipe) -> Dataset:
    """The allowed attributes of a DICOM file (PS3.10 section 7).

    Raises:
        UnusableError: not DICOM, no pixel data, no identity, burned-in text, or sizes past the recipe's limits.
        OSError: the file cannot be read.
    """
    _check_container(path, recipe)
    try:
        dataset = pydicom.dcmread(path, specific_tags=[Tag(keyword) for keyword in ALLOWED])
    except OSError:
        raise
    except Exception as error:  # any kind: a damaged header can make a parser fail in any way
        raise UnusableError("DICOM data set is damaged", repr(error)) from None
    if not any(keyword in dataset for keyword in PIXEL_DATA):
        kind = dataset.file_meta.get("MediaStorageSOPClassUID")
        raise UnusableError(f"no {named('PixelData')}", getattr(kind, "name", ""))
    if not dataset.file_meta.get("TransferSyntaxUID"):
        raise UnusableError(f"no {named('TransferSyntaxUID')}")
    for keyword in ("PatientID", "SOPInstanceUID"):
        if not text(dataset, keyword):
            raise UnusableError(f"no {named(keyword)}")
    if text(dataset, "BurnedInAnnotation").upper() == "YES" and not recipe.allow_burned_in:
        raise UnusableError(f"{named('BurnedInAnnotation')} is YES")
    _check_sizes(dataset, recipe)
    return dataset


def text(dataset: Dataset, keyword: str) -> str:
    """The first value of an attribute as stripped text; "" when absent. Raises: UnusableError."""
    value = _value(dataset, keyword)
    return "" if value is None else str(value).strip().strip("\0").strip()


def number(dataset: Dataset, keyword: str) -> float | None:
    """The first value of an attribute as a finite number; None when absent or empty. Raises: UnusableError."""
    value = _value(dataset, keyword)
    if value is None or value == "":
        return None
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
    try:
        result = [float(v) for v in value] if isinstance(value, list | pydicom.multival.MultiValue) else [float(value)]
    except (TypeError, ValueError):
        raise UnusableError(f"{named(keyword)} is not a number", repr(value)) from None
    if not all(map(math.isfinite, result)):
        raise UnusableError(f"{named(keyword)} is not a finite number")
    return result


def _value(dataset: Dataset, keyword: str) -> Any:
    value = _get(dataset, keyword)
    if isinstance(value, list | pydicom.multival.MultiValue):
        return value[0] if len(value) else None
    return value


def _get(dataset: Dataset, keyword: str) -> Any:
    try:
        return dataset.get(keyword)
    except Exception as error:  # values are parsed when first asked for
        raise UnusableError(f"{named(keyword)} cannot be read", repr(error)) from None


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
    try:
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
    except OSError:
        raise
    except Exception as error:
        raise UnusableError("deflated data set is damaged, Transfer Syntax UID (0002,0010)", repr(error)) from None
    if size > recipe.greatest_bytes:
        raise UnusableError("deflated data set is larger than the limit", f"limit {recipe.greatest_bytes} bytes")


def _check_sizes(dataset: Dataset, recipe: ImageRecipe) -> None:
    rows, columns = whole(dataset, "Rows", least=1), whole(dataset, "Columns", least=1)
    if rows * columns > recipe.greatest_pixels:
        limit = f"{rows} x {columns}, limit {recipe.greatest_pixels} pixels"
        raise UnusableError(f"{named('Rows')} x {named('Columns')} is larger than the limit", limit)
    if number(dataset, "NumberOfFrames") is not None:
        whole(dataset, "NumberOfFrames", least=1)
