"""Pixel data -> small images as a radiologist would see them.

The order is the standard's (PS3.3 C.11, PS3.4 N.2): decode, modality LUT or rescale, VOI LUT or window, polarity; then
padding to black, resize, channels. A file without any VOI gets a public default, see `_default_window`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi
from pydicom.pixels.utils import iter_pixels
from pydicom.uid import UID

from wardround_client.intake.dicom.read import UnusableError, named, number, numbers, text, whole
from wardround_client.intake.recipe import ImageRecipe

Array = NDArray[Any]
"""Stored values: any integer or float type."""
Floats = NDArray[Any]
"""float32 or float64."""

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G, B in Y of YBR_FULL, PS3.3 C.7.6.3.1.2."""

CT_WINDOW = (40.0, 400.0)
"""Centre and width in HU for CT that brings no window of its own: soft tissue."""


def images_of(dataset: Dataset, recipe: ImageRecipe) -> NDArray[np.uint16]:
    """Every chosen frame of a file, rendered.

    Returns: uint16 [frames, channels, S, S], 0 black, 65535 white. Raises: UnusableError.
    """
    photometric = text(dataset, "PhotometricInterpretation").upper()
    if photometric not in (*GREY, *COLOUR, "PALETTE COLOR"):
        raise UnusableError(f"{named('PhotometricInterpretation')} is not supported", photometric or "absent")
    _check_high_bit(dataset)
    count = whole(dataset, "NumberOfFrames", least=1) if number(dataset, "NumberOfFrames") is not None else 1
    chosen = np.unique(np.linspace(0, count - 1, min(count, recipe.frames_per_file)).round().astype(int)).tolist()
    shape = (len(chosen), recipe.channels, recipe.image_size_px, recipe.image_size_px)
    out = np.zeros(shape, np.uint16)
    for place, (index, frame) in enumerate(_decoded(dataset, chosen)):
        if (frame.ndim == 3) != (photometric in COLOUR):
            raise UnusableError(f"{named('SamplesPerPixel')} does not fit {named('PhotometricInterpretation')}")
        attributes = _FrameAttributes(dataset, index)
        image = grey(frame, attributes) if photometric in GREY else colour(frame, dataset, photometric)
        out[place] = quantise(fit(image, recipe, attributes.aspect()))
    return out


def _decoded(dataset: Dataset, chosen: list[int]) -> Iterator[tuple[int, Array]]:
    """The chosen frames one after the other, decoded; colour as RGB. Raises: UnusableError."""
    syntax = UID(str(dataset.file_meta.TransferSyntaxUID))
    frames = iter_pixels(dataset, indices=chosen)
    for index in chosen:
        try:
            frame = next(frames)
        except Exception as error:  # each plug-in raises its own kinds
            raise _undecodable(dataset, syntax, error) from None
        yield index, frame


def _undecodable(dataset: Dataset, syntax: UID, error: Exception) -> UnusableError:
    for keyword in ("SamplesPerPixel", "BitsAllocated", "BitsStored", "PixelRepresentation"):
        if dataset.get(keyword) is None and "PixelData" in dataset:
            return UnusableError(f"no {named(keyword)}")
    if not syntax.is_private and not syntax.is_transfer_syntax:
        return UnusableError(f"{named('TransferSyntaxUID')} is not known", syntax)
    if syntax.is_private or syntax.is_encapsulated:
        return UnusableError(
            f"cannot decode {'a private transfer syntax' if syntax.is_private else syntax.name} "
            f"with {_decoders(syntax)}",
            error,
        )
    return UnusableError(f"{named('PixelData')} is truncated or does not fit its description", error)


def _decoders(syntax: UID) -> str:
    """The plug-ins that were tried, so that somebody knows what to install."""
    try:
        plugins = get_decoder(syntax).available_plugins
    except NotImplementedError:
        return "any decoder of pydicom"
    return ", ".join(plugins) or "no decoder installed"


def _check_high_bit(dataset: Dataset) -> None:
    """High Bit is Bits Stored - 1 (PS3.5 8.1.1); anything else is either ACR-NEMA or a mistake: ambiguous."""
    high, stored = number(dataset, "HighBit"), number(dataset, "BitsStored")
    if high is not None and stored is not None and high != stored - 1:
        raise UnusableError(f"{named('HighBit')} is not {named('BitsStored')} - 1", f"{high:g}, {stored:g}")


class _FrameAttributes:
    """An attribute of one frame: its own functional group, else the shared one, else the data set (PS3.3 C.7.6.16)."""

    def __init__(self, dataset: Dataset, index: int) -> None:
        self.dataset = dataset
        groups = []
        per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
        if index < len(per_frame):
            groups.append(per_frame[index])
        groups.extend((dataset.get("SharedFunctionalGroupsSequence") or [])[:1])
        self.groups = groups

    def within(self, macro: str, keyword: str) -> Dataset:
        """The nearest data set that holds `keyword`: in the functional group `macro`, or the file itself."""
        for group in self.groups:
            items = group.get(macro)
            if items and keyword in items[0]:
                return Dataset(items[0])
        return self.dataset

    def rescale(self) -> tuple[float, float] | None:
        """Slope and intercept; None when the file has neither."""
        source = self.within("PixelValueTransformationSequence", "RescaleSlope")
        slope, intercept = number(source, "RescaleSlope"), number(source, "RescaleIntercept")
        if slope is None and intercept is None:
            return None
        if slope == 0:
            raise UnusableError(f"{named('RescaleSlope')} is 0")
        return (1.0 if slope is None else slope), intercept or 0.0

    def window(self) -> tuple[float, float, str] | None:
        """Centre, width and function of the first window (PS3.3 C.11.2.1.2); None when there is none."""
        source = self.within("FrameVOILUTSequence", "WindowCenter")
        centre, width = number(source, "WindowCenter"), number(source, "WindowWidth")
        if centre is None or width is None:
            return None
        return centre, width, text(source, "VOILUTFunction").upper() or "LINEAR"

    def aspect(self) -> float:
        """Height of a pixel over its width, from its spacing or its aspect ratio; 1 when neither makes sense."""
        spacing = numbers(self.within("PixelMeasuresSequence", "PixelSpacing"), "PixelSpacing")
        ratio = spacing if len(spacing) == 2 else numbers(self.dataset, "PixelAspectRatio")
        if len(ratio) != 2 or min(ratio) <= 0 or not 0.1 <= ratio[0] / ratio[1] <= 10:
            return 1.0
        return ratio[0] / ratio[1]


def grey(frame: Array, attributes: _FrameAttributes) -> Floats:
    """[H, W] stored values -> float [H, W] in [0, 1], 0 black, whatever the polarity; padding is black."""
    dataset = attributes.dataset
    padding = _padding(frame, dataset)
    values, is_rescaled = _modality(frame, attributes)
    if dataset.get("VOILUTSequence"):
        image = _voi_lut(values, dataset)
    else:
        window = attributes.window()
        if window is not None:
            image = apply_window(values, *window)
        else:
            image = _default_window(values, padding, dataset, is_rescaled)
    if text(dataset, "PhotometricInterpretation").upper() == "MONOCHROME1":
        image = 1 - image
    if padding is not None:
        image[padding] = 0
    return image


def _modality(frame: Array, attributes: _FrameAttributes) -> tuple[Floats, bool]:
    """Stored -> modality values (HU for CT), PS3.3 C.11.1; and whether the file said how."""
    # 16 bits are exact in float32, which is twice as fast.
    precision = np.float32 if frame.dtype.itemsize <= 2 else np.float64
    if attributes.dataset.get("ModalityLUTSequence"):
        return _table(apply_modality_lut, frame, attributes.dataset, "ModalityLUTSequence").astype(precision), True
    values: Floats = frame.astype(precision)
    rescale = attributes.rescale()
    if rescale is None:
        return values, False
    values *= rescale[0]
    values += rescale[1]
    return values, True


def _voi_lut(values: Floats, dataset: Dataset) -> Floats:
    """The first VOI LUT (PS3.3 C.11.2.1.1), scaled by the number of bits that its descriptor declares."""
    mapped = _table(apply_voi, np.rint(values).astype(np.int32), dataset, "VOILUTSequence")
    bits = int(dataset["VOILUTSequence"].value[0].LUTDescriptor[2])
    return np.asarray(np.clip(mapped.astype(np.float32) / ((1 << bits) - 1), 0, 1))


def _table(function: Callable[[Array, Dataset], Array], values: Array, dataset: Dataset, keyword: str) -> Array:
    try:
        return function(values, dataset)
    except Exception as error:
        raise UnusableError(f"{named(keyword)} cannot be applied", repr(error)) from None


def apply_window(values: Floats, centre: float, width: float, function: str = "LINEAR") -> Floats:
    """Modality values -> [0, 1] by a window: equations of PS3.3 C.11.2.1.2.1 and C.11.2.1.3 with y in [0, 1].

    Raises: UnusableError, for a width or a function that the standard does not allow.
    """
    if width < 1 if function == "LINEAR" else width <= 0:
        raise UnusableError(
            f"{named('WindowWidth')} is too small for {named('VOILUTFunction')}", f"{width:g}, {function}"
        )
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(values.dtype)
        out = (values - (centre - 0.5)) / (width - 1)
    elif function == "LINEAR_EXACT":
        out = (values - centre) / width
    elif function == "SIGMOID":
        # Beyond +-50 the sigmoid is 0 or 1 in float32, and exp would overflow.
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))))
    else:
        raise UnusableError(f"{named('VOILUTFunction')} is not supported", function)
    out += 0.5
    return np.asarray(np.clip(out, 0, 1, out=out))


def _default_window(values: Floats, padding: NDArray[np.bool_] | None, dataset: Dataset, is_rescaled: bool) -> Floats:
    """How files without VOI are shown; each rule is public and looks at one image only.

    CT in HU has a fixed window; up to 8 bits are shown whole; else the image's own 0.5 and 99.5 percentiles (padding
    left out) become black and white.
    """
    if is_rescaled and text(dataset, "Modality").upper() == "CT":
        return apply_window(values, *CT_WINDOW)
    stored = number(dataset, "BitsStored") or 0
    if 0 < stored <= 8 and not is_rescaled and number(dataset, "PixelRepresentation") == 0:
        return np.asarray(np.clip(values / (2**stored - 1), 0, 1))
    shown = values if padding is None else values[~padding]
    if not shown.size:
        return np.zeros_like(values)
    low, high = np.percentile(shown, [0.5, 99.5])
    if high <= low:
        low, high = shown.min(), shown.max()
    return np.asarray(np.clip((values - low) / ((high - low) or 1), 0, 1))


def _padding(frame: Array, dataset: Dataset) -> NDArray[np.bool_] | None:
    """Pixels that fill the frame where nothing was imaged (PS3.3 C.7.5.1.1.2), and those that are not numbers."""
    if frame.dtype.kind == "f":
        mask = ~np.isfinite(frame)
        if mask.any():
            frame[mask] = 0
        return mask
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(dataset, "PixelPaddingRangeLimit")
    ends = sorted(_as_stored(v, frame.dtype) for v in (value, value if limit is None else limit))
    return np.asarray((frame >= ends[0]) & (frame <= ends[1]))


def _as_stored(value: float, dtype: np.dtype[np.generic]) -> int:
    """A padding value written unsigned for signed pixels (a common mistake), or the reverse, means the same bits."""
    span = 1 << (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return int(value) - span
    if dtype.kind == "u" and value < 0:
        return int(value) + span
    return int(value)


def colour(frame: Array, dataset: Dataset, photometric: str) -> Floats:
    """[H, W, 3] RGB, or [H, W] indices of a palette -> float32 [H, W, 3] in [0, 1]."""
    if photometric == "PALETTE COLOR":
        try:
            frame = apply_color_lut(frame, dataset)[..., :3]
        except Exception as error:
            raise UnusableError(f"{named('RedPaletteColorLookupTableData')} cannot be applied", repr(error)) from None
        top = float(np.iinfo(frame.dtype).max)
    else:
        top = 2.0 ** whole(dataset, "BitsStored", least=1) - 1
    return np.asarray(np.clip(frame.astype(np.float32) / np.float32(top), 0, 1))


def fit(image: Floats, recipe: ImageRecipe, aspect: float = 1.0) -> Floats:
    """Resize into the middle of a black square, anatomy in proportion, with an anti-aliased filter.

    Pillow's bilinear filter is a triangle as wide as the reduction, so it averages over every source pixel, and it
    never overshoots [0, 1].

    Args:
        image: [H, W] or [H, W, 3] in [0, 1].
        recipe: size and channels.
        aspect: height of a pixel over its width.

    Returns: float32 [channels, S, S].
    """
    if image.ndim == 3 and recipe.channels == 1:
        # Plane by plane: a matrix product rounds by its place in memory and the number of threads.
        image = image[..., 0] * LUMINANCE[0] + image[..., 1] * LUMINANCE[1] + image[..., 2] * LUMINANCE[2]
    size = recipe.image_size_px
    height, width = image.shape[0] * aspect, float(image.shape[1])
    inner_height, inner_width = (max(1, round(size * side / max(height, width))) for side in (height, width))
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    out = np.zeros((recipe.channels, size, size), np.float32)
    planes = [image] if image.ndim == 2 else [image[..., c] for c in range(3)]
    for channel, plane in enumerate(planes):
        source = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
        small = source.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
        out[channel, top : top + inner_height, left : left + inner_width] = np.asarray(small)
    if len(planes) < recipe.channels:
        out[1:] = out[0]
    return out


def quantise(image: Floats) -> NDArray[np.uint16]:
    """[0, 1] -> 0..65535."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 65535), np.uint16)
