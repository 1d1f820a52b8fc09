"""The bytes of a frame -> its stored values, with nothing in the bits that are none of theirs.

One decoder for each kind of codestream, so that the same file gives the same values everywhere; and none of them sees a
frame whose header and codestream contradict each other (`codestream`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import BytesIO
from typing import Any

import gdcm
import jpeg_ls
import numpy as np
from numpy.typing import NDArray
from openjpeg.utils import decode as decode_jpeg_2000
from PIL import Image
from pydicom import uid
from rle.utils import decode_pixel_data as decode_rle

from wardround_client.intake.dicom.attributes import COLOUR, GREY, UnusableError, named
from wardround_client.intake.dicom.codestream import (
    BASELINE,
    EXTENDED,
    JPEG_2000,
    JPEG_LS,
    LOSSLESS,
    PROGRESSIVE,
    Codestream,
    jpeg,
    jpeg_2000,
)
from wardround_client.intake.dicom.frames import PIXELS, NativeFrames, encapsulated
from wardround_client.intake.dicom.header import Header

Array = NDArray[Any]
"""Stored values: any integer or float type."""

_LOSSY_JPEG = (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
_PROCESSES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(_LOSSY_JPEG, (BASELINE, EXTENDED, PROGRESSIVE)),
    **dict.fromkeys((uid.JPEGLossless, uid.JPEGLosslessSV1), (LOSSLESS,)),
    **dict.fromkeys(uid.JPEGLSTransferSyntaxes, (JPEG_LS,)),
    **dict.fromkeys((*uid.JPEG2000TransferSyntaxes,), (JPEG_2000,)),
}
"""What codestreams of a transfer syntax may be of (PS3.5 section 8.2)."""

_MOST_TILES = 65535  # ISO 15444-1 annex A.4.2
_IN_JPEG_2000 = ("YBR_ICT", "YBR_RCT")
_FLOATS = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}


def decoded(header: Header) -> Iterator[Array]:
    """The chosen frames one after the other: [H, W] stored values, or [H, W, 3] red, green, blue in their scale.

    Raises: UnusableError.
    """
    _check(header)
    native = not header.syntax.is_private and header.syntax.is_transfer_syntax and not header.syntax.is_encapsulated
    yield from _native(header) if native else _compressed(header)


def _check(header: Header) -> None:
    """The description of the pixels makes sense. Raises: UnusableError."""
    if header.syntax.is_private:
        raise UnusableError("cannot decode a private transfer syntax", header.syntax)
    if not header.syntax.is_transfer_syntax:
        raise UnusableError(f"{named('TransferSyntaxUID')} is not known", header.syntax)
    if header.samples != (3 if header.photometric in COLOUR else 1):
        raise UnusableError(f"{named('SamplesPerPixel')} does not fit {named('PhotometricInterpretation')}")
    if header.photometric not in GREY and not header.unsigned:
        raise UnusableError(f"{named('PixelRepresentation')} gives colours a sign")  # PS3.3 C.7.6.3.1.2
    if header.element.keyword in _FLOATS:
        if header.allocated != _FLOATS[header.element.keyword]:
            raise UnusableError(f"{named('BitsAllocated')} does not fit {named(header.element.keyword)}")
    elif header.allocated not in (1, 8, 16, 32):
        raise UnusableError(f"{named('BitsAllocated')} is not supported", f"{header.allocated}, allowed 1, 8, 16, 32")
    elif not header.stored <= header.allocated:
        raise UnusableError(f"{named('BitsStored')} is more than {named('BitsAllocated')}", header.stored)
    halved = header.photometric == "YBR_FULL_422" and header.syntax.is_encapsulated
    if (header.photometric in _IN_JPEG_2000 and header.syntax not in uid.JPEG2000TransferSyntaxes) or (
        halved and header.syntax not in _LOSSY_JPEG
    ):  # PS3.5 section 8.2
        raise UnusableError(
            f"{named('PhotometricInterpretation')} does not fit {named('TransferSyntaxUID')}",
            f"{header.photometric}, {header.syntax.name}",
        )
    if header.planar not in (0, 1):
        raise UnusableError(f"{named('PlanarConfiguration')} is neither 0 nor 1")


def _native(header: Header) -> Iterator[Array]:
    halved = header.photometric == "YBR_FULL_422"
    if halved and (header.columns % 2 or header.allocated != 8 or header.planar):
        raise UnusableError(f"{named('PhotometricInterpretation')} YBR_FULL_422 needs even columns of 8 bits")
    each = 16 if halved else header.samples * header.allocated
    source = NativeFrames(header.element, header.rows * header.columns * each, header.frames)
    source.check()
    swapped = not header.little_endian and header.allocated == 8 and header.element.vr == "OW"
    # The order of words within a longer value is read one way by some programs, and the other way by others.
    unsure = header.allocated == 1 or (header.allocated == 32 and header.element.keyword == "PixelData")
    if (swapped and source.bits % 16 and header.frames > 1) or (unsure and not header.little_endian):
        raise UnusableError(f"cannot read such pixels in big endian, {named('TransferSyntaxUID')}")
    with header.element.open() as stream:
        for index in header.looks:
            data, odd = source.read(stream, index)
            if header.allocated == 1:
                bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
                yield bits[odd : odd + source.bits].reshape(header.rows, header.columns)
                continue
            if swapped:
                data += stream.read(len(data) % 2)
                data = np.frombuffer(data, ">u2").astype("<u2").tobytes()[: source.bits // 8]
            yield _coloured(_shaped(np.frombuffer(data, _dtype(header)), header, planes=header.planar == 1), header)


def _dtype(header: Header) -> np.dtype[Any]:
    kind = "f" if header.element.keyword in _FLOATS else "u" if header.unsigned else "i"
    return np.dtype(f"{'<' if header.little_endian else '>'}{kind}{header.allocated // 8}")


def _shaped(values: Array, header: Header, *, planes: bool) -> Array:
    """[H, W] or [H, W, 3] of native byte order, which may be written to, without what is no stored value."""
    rows, columns = header.rows, header.columns
    if header.photometric == "YBR_FULL_422" and values.size == 2 * rows * columns:
        pairs = values.reshape(rows, columns // 2, 4)
        frame = np.empty((rows, columns, 3), values.dtype)
        frame[:, 0::2, 0], frame[:, 1::2, 0] = pairs[..., 0], pairs[..., 1]
        frame[..., 1], frame[..., 2] = np.repeat(pairs[..., 2], 2, 1), np.repeat(pairs[..., 3], 2, 1)
        return frame
    if values.size != rows * columns * header.samples:
        raise UnusableError(f"{PIXELS} does not fit its description", f"{values.size} values in {rows} x {columns}")
    if header.samples == 1:
        values = values.reshape(rows, columns)
    elif planes:
        values = values.reshape(header.samples, rows, columns).transpose(1, 2, 0)
    else:
        values = values.reshape(rows, columns, header.samples)
    return _stored(values, header.stored)


def _stored(values: Array, bits: int) -> Array:
    """Only the bits that are stored: overlays may lie above them, and a sign may not be spread (PS3.5 8.1.1)."""
    above = 8 * values.dtype.itemsize - bits
    shifted = above > 0 and values.dtype.kind in "ui"
    values = values.astype(values.dtype.newbyteorder("="), copy=shifted or values.dtype.kind == "f")
    if shifted:
        np.left_shift(values, above, out=values)
        np.right_shift(values, above, out=values)
    return values


def _compressed(header: Header) -> Iterator[Array]:
    is_rle = header.syntax == uid.RLELossless
    if not is_rle and header.syntax not in _PROCESSES:
        raise UnusableError(f"cannot decode {header.syntax.name} with any decoder here")
    source = encapsulated(header.element, header.frames, header.offsets, by_marker=not is_rle)
    with header.element.open() as stream:
        for index in header.looks:
            data = source.read(stream, index, header.greatest_bytes)
            yield _run_length(data, header) if is_rle else _from_codestream(data, header)


def _run_length(data: bytes, header: Header) -> Array:
    """PS3.5 annex G: one segment for each byte of a value, the high one first, plane after plane."""
    segments = int.from_bytes(data[:4], "little")
    expected = header.samples * header.allocated // 8
    if segments != expected or header.allocated == 1:
        raise UnusableError(f"RLE segments do not fit {named('BitsAllocated')}", f"{segments}, not {expected}")
    shape = {"rows": header.rows, "columns": header.columns, "bits_allocated": header.allocated}
    frame = _tried(header, lambda: decode_rle(data, None, 2, **shape))
    values = np.frombuffer(frame, _dtype(header).newbyteorder("<"))
    return _coloured(_shaped(values, header, planes=True), header)


def _from_codestream(data: bytes, header: Header) -> Array:
    stream = jpeg_2000(data) if _PROCESSES[header.syntax] == (JPEG_2000,) else jpeg(data)
    _check_codestream(stream, header)
    if stream.process == JPEG_2000:
        values = np.asarray(_tried(header, lambda: decode_jpeg_2000(stream.data)))
        planes = False
    elif stream.process == JPEG_LS:
        frame, info = _tried(header, lambda: jpeg_ls.decode_pixel_data(stream.data))
        values, planes = np.frombuffer(frame, _container(stream)), info["interleave_mode"] == 0
    elif stream.process == LOSSLESS or stream.precision > 8:
        values, planes = np.frombuffer(_tried(header, lambda: _with_gdcm(stream, header)), _container(stream)), False
    else:
        values, planes = _tried(header, lambda: _with_pillow(stream)), False
    # In as many bytes as the header says, and with a sign where it says so.
    values = values.astype(f"{values.dtype.kind}{header.allocated // 8}").view(_dtype(header).newbyteorder("="))
    return _coloured(_shaped(values.reshape(-1), header, planes=planes), header, stream)


def _check_codestream(stream: Codestream, header: Header) -> None:
    """Header and codestream describe the same picture, or are both named. Raises: UnusableError."""
    if stream.process not in _PROCESSES[header.syntax]:
        raise UnusableError(
            f"the codestream is not of {named('TransferSyntaxUID')}", f"{header.syntax.name}, marker {stream.process:x}"
        )
    said = (header.rows, header.columns, header.samples)
    coded = (stream.rows, stream.columns, stream.components)
    if said != coded:
        raise UnusableError(
            f"{named('Rows')}, {named('Columns')} or {named('SamplesPerPixel')} is not the codestream's",
            f"{said[0]} x {said[1]} x {said[2]}, codestream {coded[0]} x {coded[1]} x {coded[2]}",
        )
    if stream.tiles > _MOST_TILES:
        raise UnusableError(f"the codestream of {PIXELS} has more tiles than the limit", f"limit {_MOST_TILES}")
    bits = f"{header.stored} of {header.allocated}, codestream {stream.precision}"
    if (
        stream.precision > header.allocated
        or (header.allocated == 32 and stream.process != JPEG_2000)
        or (header.photometric in COLOUR and (header.allocated == 8) != (stream.precision <= 8))
        or (header.photometric in COLOUR and stream.precision != header.stored)
        or (not header.unsigned and not stream.signed and stream.precision < header.stored)
    ):
        raise UnusableError(f"{named('BitsStored')} is not the codestream's", bits)
    if stream.signed and header.unsigned:
        raise UnusableError(f"{named('PixelRepresentation')} is not the codestream's", "unsigned, codestream signed")
    if stream.process == JPEG_2000 and stream.ybr and header.photometric not in ("RGB", *_IN_JPEG_2000):
        transform = f"{header.photometric}, codestream with a transform"
        raise UnusableError(f"{named('PhotometricInterpretation')} is not the codestream's", transform)


def _container(stream: Codestream) -> str:
    return "<u1" if stream.precision <= 8 else "<u2"


def _with_pillow(stream: Codestream) -> Array:
    """JPEG of 8 bits, as it is stored."""
    with Image.open(BytesIO(stream.data), formats=("JPEG",)) as image:
        if stream.components == 3 and not stream.undone:
            image.draft("YCbCr", image.size)
        return np.asarray(image)


def _with_gdcm(stream: Codestream, header: Header) -> bytes:
    """JPEG of more than 8 bits, and lossless JPEG."""
    fragment = gdcm.Fragment()
    fragment.SetByteStringValue(stream.data)
    fragments = gdcm.SequenceOfFragments.New()
    fragments.AddFragment(fragment)
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetValue(fragments.__ref__())
    image = gdcm.Image()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((stream.columns, stream.rows, 1))
    image.SetDataElement(element)
    kind = gdcm.PhotometricInterpretation.RGB if stream.components == 3 else gdcm.PhotometricInterpretation.MONOCHROME2
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(kind))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str.__str__(header.syntax))))
    allocated = 8 if stream.precision <= 8 else 16
    image.SetPixelFormat(gdcm.PixelFormat(stream.components, allocated, stream.precision, stream.precision - 1, 0))
    buffer = image.GetBuffer()
    if buffer is None:
        raise ValueError("gdcm gave no pixels")
    return bytes(buffer.encode("utf-8", "surrogateescape"))


def _coloured(frame: Array, header: Header, stream: Codestream | None = None) -> Array:
    """Colours as red, green and blue, of which YBR_FULL is a rotation (PS3.3 C.7.6.3.1.2)."""
    if header.photometric not in COLOUR:
        return frame
    ybr = header.photometric.startswith("YBR_FULL")
    if stream is not None and stream.process in (BASELINE, EXTENDED, PROGRESSIVE) and stream.ybr is not None:
        ybr = stream.ybr  # what a JPEG says of itself goes before a header that often was not corrected after it
    elif stream is not None and stream.process == JPEG_2000 and (stream.ybr or header.photometric in _IN_JPEG_2000):
        ybr = False  # undone by the decoder, or never made
    if not ybr:
        return frame
    y, cb, cr = (frame[..., plane].astype(np.float32) for plane in range(3))
    middle = np.float32(1 << (header.stored - 1))
    cb, cr = cb - middle, cr - middle
    rgb = np.stack((y + 1.402 * cr, y - 0.344136 * cb - 0.714136 * cr, y + 1.772 * cb), -1)
    return np.asarray(np.clip(np.rint(rgb), 0, 2 * middle - 1), np.float32)


def _tried(header: Header, decode: Callable[[], Any]) -> Any:
    """What a decoder gives. Each raises its own kinds; one in Rust panics, which is no Exception (PyO3)."""
    try:
        return decode()
    except (MemoryError, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise UnusableError(f"cannot decode {header.syntax.name}", repr(error)) from None
