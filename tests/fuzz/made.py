"""DICOM files made up: every way to store a picture that can be written here, each choice drawn by whoever asks.

`Choose` takes a list and gives one of it: a random generator's `choice`, or one of hypothesis, which can then shrink.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    SecondaryCaptureImageStorage,
)

Choose = Callable[[Sequence[Any]], Any]

NATIVE = (ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian)
COMPRESSED = (RLELossless, JPEGLSLossless, JPEG2000Lossless)


def made(choose: Choose, syntaxes: Sequence[UID] = (*NATIVE, *COMPRESSED)) -> bytes:
    """A file, whose description is true."""
    data = Dataset()
    data.SOPClassUID, data.SOPInstanceUID = SecondaryCaptureImageStorage, UID("1.2.826.0.1.3680043.8.498.1")
    data.StudyInstanceUID, data.PatientID, data.Modality = UID("1.2.3"), "P1", choose(["OT", "CT", "MR"])
    syntax = choose(list(syntaxes))
    photometric = choose(["MONOCHROME2", "MONOCHROME2", "MONOCHROME1", "PALETTE COLOR", "RGB", "YBR_FULL"])
    if syntax in (JPEGLSLossless, JPEG2000Lossless) and photometric == "YBR_FULL":
        photometric = "RGB"
    colour = photometric in ("RGB", "YBR_FULL")
    least = 32 if syntax == JPEG2000Lossless else 5  # which its encoder needs
    data.Rows, data.Columns = least + choose([3, 0, 8, 27]), least + choose([3, 1, 10, 27])
    data.SamplesPerPixel, data.PhotometricInterpretation = 3 if colour else 1, photometric
    frames = choose([1, 1, 1, 3])
    if frames > 1:
        data.NumberOfFrames = frames
    allocated = (
        8 if colour else choose([16, 8] if photometric == "PALETTE COLOR" or syntax in COMPRESSED else [16, 8, 32])
    )
    # Older CharLS, and dcmtk's is one, reads 6 and 7 bits wrongly.
    least_bits = 8 if syntax == JPEGLSLossless else 6
    bits = [each for each in (16, 12, 10, 8, 6) if least_bits <= each <= allocated]
    stored = allocated if colour or allocated == 32 else choose(bits)
    signed = 0 if colour or photometric == "PALETTE COLOR" or syntax in COMPRESSED else choose([0, 1])
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = allocated, stored, stored - 1, signed
    values = _values(choose, data, frames)
    _display(choose, data)
    data.file_meta = FileMetaDataset()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    _pixels(choose, data, values, syntax)
    return written(data)


def written(data: Dataset) -> bytes:
    """The bytes of its file."""
    out = io.BytesIO()
    pydicom.dcmwrite(out, data, enforce_file_format=True)
    return out.getvalue()


def _values(choose: Choose, data: Dataset, frames: int) -> NDArray[Any]:
    """Stored values [frames, H, W(, 3)]: a slope with noise, over all that can be stored or a part of it."""
    bits, signed = data.BitsStored, data.PixelRepresentation
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    if bits > 16:
        low, high = (-(1 << 20), 1 << 20) if signed else (0, 1 << 20)
    if choose([False, True]):
        high = low + max(1, (high - low) // 3)
    rng = np.random.default_rng(choose(list(range(100))))
    shape = (frames, data.Rows, data.Columns, *([3] if data.SamplesPerPixel == 3 else []))
    values = np.linspace(low, high, int(np.prod(shape))).reshape(shape) + rng.normal(0, (high - low) / 20 + 1, shape)
    return np.clip(np.rint(values), low, high).astype(f"{'i' if signed else 'u'}{data.BitsAllocated // 8}")


def _pixels(choose: Choose, data: Dataset, values: NDArray[Any], syntax: UID) -> None:
    big = syntax == ExplicitVRBigEndian
    if syntax in COMPRESSED:
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if data.SamplesPerPixel == 3:
            data.PlanarConfiguration = 0
        data.PixelData = values.astype(values.dtype.newbyteorder("<")).tobytes()
        data["PixelData"].VR = "OW" if data.BitsAllocated > 8 else "OB"
        with_plugin = "pyjpegls" if syntax == JPEGLSLossless else "pylibjpeg"
        data.compress(syntax, encoding_plugin=with_plugin, generate_instance_uid=False)
        return
    data.file_meta.TransferSyntaxUID = syntax
    above = data.BitsAllocated - data.BitsStored
    if above and choose([False, True]):  # rubbish above the stored bits: an overlay, or a sign that is not spread
        unsigned = values.view(f"u{values.dtype.itemsize}") & ((1 << data.BitsStored) - 1)
        rubbish = np.random.default_rng(1).integers(0, 1 << above, values.shape) << data.BitsStored
        values = (unsigned | rubbish.astype(unsigned.dtype)).view(values.dtype)
    if data.SamplesPerPixel == 3:
        data.PlanarConfiguration = choose([0, 1])
        if data.PlanarConfiguration:
            values = np.moveaxis(values, -1, 1)
    raw = values.astype(values.dtype.newbyteorder(">" if big else "<")).tobytes()
    raw += b"\0" * (len(raw) % 2)
    vr = "OW" if data.BitsAllocated > 8 else "OB" if syntax != ImplicitVRLittleEndian else "OW"
    data.add_new("PixelData", vr, raw)


def _display(choose: Choose, data: Dataset) -> None:
    big = False  # tables are written as numbers (US), so that their order is the file's
    if data.PhotometricInterpretation == "PALETTE COLOR":
        _palette(choose, data)
    if data.PhotometricInterpretation not in ("MONOCHROME1", "MONOCHROME2"):
        return
    low = -(1 << (data.BitsStored - 1)) if data.PixelRepresentation else 0
    span = 1 << min(data.BitsStored, 16)
    match choose(["none", "rescale", "rescale", "table"]):
        case "rescale":
            # dcmtk's own arithmetic wraps where 8 bits are stretched, and rounds where slopes are not whole.
            slopes = ["1"] if data.BitsAllocated == 8 else ["1", "2", "3", "0.5", "2.5"]
            data.RescaleSlope, data.RescaleIntercept = choose(slopes), choose(["0", "-1024", "-12"])
            low = int(low * float(data.RescaleSlope) + float(data.RescaleIntercept))
            span = int(span * float(data.RescaleSlope))
        case "table" if data.BitsAllocated < 32:
            item = _table(choose, low, span, signed=bool(data.PixelRepresentation), big=big)
            item.ModalityLUTType = "US"
            data.ModalityLUTSequence = Items([item])
            low, span = 0, 1 << item.LUTDescriptor[2]
    match choose(["none", "window", "window", "windows", "table"]):
        case "window":
            data.WindowCenter, data.WindowWidth = f"{low + span / 2:.6g}", f"{max(1, span / choose([1, 2, 7])):.6g}"
            if choose([False, True]):
                data.VOILUTFunction = choose(["LINEAR", "SIGMOID", "LINEAR_EXACT"])
        case "windows":
            data.WindowCenter, data.WindowWidth = [f"{low + span / 3:.6g}", "3"], [f"{max(1, span / 2):.6g}", "9"]
        case "table" if span <= 1 << 16 and "." not in str(data.get("RescaleSlope", "1")):
            signed = low < 0
            data.VOILUTSequence = Items([_table(choose, low, span, signed=signed, big=big)])
    if choose([False, False, True]):
        data.PresentationLUTShape = choose(["IDENTITY", "INVERSE"])


def _table(choose: Choose, low: int, span: int, *, signed: bool, big: bool) -> Dataset:
    """A curve over the values from `low` on, of fewer or more entries than there are values."""
    count = int(min(32_767, max(2, span // choose([1, 2]))))
    bits = choose([16, 12, 10, 8])
    curve = np.linspace(0, 1, count) ** choose([1, 2, 0.5])
    entries = np.rint(curve * ((1 << bits) - 1)).astype("<u2")
    item = Dataset()
    first = max(low, -32768)
    item.add_new("LUTDescriptor", "SS" if signed and count < 32768 else "US", _descriptor(count, first, bits, signed))
    if bits == 8 and choose([False, True]):
        packed = entries.astype(np.uint8).tobytes()
        words = np.frombuffer(packed + b"\0" * (len(packed) % 2), "<u2")
        item.add_new("LUTData", "US", [int(each) for each in words])
    else:
        item.add_new("LUTData", "US", [int(each) for each in entries])
    return item


def _descriptor(count: int, first: int, bits: int, signed: bool) -> list[int]:
    if signed and count < 32768:
        return [count, first, bits]
    return [count & 0xFFFF, first & 0xFFFF, bits]


def _palette(choose: Choose, data: Dataset) -> None:
    bits = choose([16, 8])
    count = min(1 << data.BitsStored, choose([256, 300]))
    for number, name in enumerate(("Red", "Green", "Blue")):
        curve = np.roll(np.linspace(0, 1, count), 30 * number)
        entries = np.rint(curve * ((1 << bits) - 1)).astype("<u2")
        data.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [count & 0xFFFF, 0, bits])
        if bits == 8 and choose([False, True]):
            packed = entries.astype(np.uint8).tobytes()
            entries = np.frombuffer(packed + b"\0" * (len(packed) % 2), "<u2")
        data.add_new(f"{name}PaletteColorLookupTableData", "US", [int(each) for each in entries])


def described(content: bytes) -> Dataset:
    """A file's data set, whatever it is worth."""
    return cast(Dataset, pydicom.dcmread(io.BytesIO(content), force=True))
