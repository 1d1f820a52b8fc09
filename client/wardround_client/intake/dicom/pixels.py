"""Stored values -> small images as a radiologist would see them, or as an agreement measures them.

The order is the standard's (PS3.3 C.11, PS3.4 N.2): modality LUT or rescale, VOI LUT or window, polarity; then padding
to black, resize, channels. A file without any VOI gets a public default, see `_default_window`. Where the values are a
quantity that was agreed on (`quantities`), nothing of the file decides how bright it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from wardround_client.intake.burned_in_text import without_text
from wardround_client.intake.dicom.attributes import GREY
from wardround_client.intake.dicom.decode import Array, decoded
from wardround_client.intake.dicom.header import Header, Look
from wardround_client.intake.dicom.kinds import careful, is_marked, kinds_of, regions_of
from wardround_client.intake.dicom.quantities import Scale, scale_of
from wardround_client.intake.dicom.tables import Table
from wardround_client.intake.recipe import ImageRecipe

Floats = NDArray[Any]
"""float32 or float64."""

LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of R, G, B in Y of YBR_FULL, PS3.3 C.7.6.3.1.2."""

CT_WINDOW = (40.0, 400.0)
"""Centre and width in HU for CT that brings no window of its own: soft tissue."""


def images_of(header: Header, recipe: ImageRecipe) -> NDArray[np.uint16]:
    """Every chosen frame of a file, rendered.

    Returns: uint16 [frames, channels, S, S], 0 black, 65535 white. Raises: UnusableError.
    """
    out = np.zeros((len(header.looks), recipe.channels, recipe.image_size_px, recipe.image_size_px), np.uint16)
    for place, (image, look) in enumerate(zip(shown(header, recipe), header.looks.values(), strict=True)):
        out[place] = quantise(fit(image, recipe, look.aspect))
    return out


def shown(header: Header, recipe: ImageRecipe) -> Iterator[Floats]:
    """The chosen frames one after the other, [H, W] or [H, W, 3] in [0, 1], without text. Raises: UnusableError."""
    return without_text(
        lambda: _rendered(header, recipe),
        recipe,
        kinds_of(header),
        careful=careful(header),
        regions=regions_of(header),
        marked=is_marked(header),
    )


def _rendered(header: Header, recipe: ImageRecipe) -> Iterator[Floats]:
    for frame, look in zip(decoded(header), header.looks.values(), strict=True):
        scale = scale_of(header, look, recipe)
        yield grey(frame, header, look, scale) if header.photometric in GREY else colour(frame, header)


def grey(frame: Array, header: Header, look: Look, scale: Scale | None = None) -> Floats:
    """[H, W] stored values -> float [H, W] in [0, 1], 0 black, whatever the polarity; padding is black.

    scale: of a quantity: more of it is whiter, whatever the file says.
    """
    padding = _padded(frame, header)
    values = _modality(frame, look)
    if scale is not None:
        values *= scale.factor
        image = apply_window(values, scale.centre, scale.width, "LINEAR_EXACT")
    else:
        if isinstance(look.voi, Table):
            image = _through(look.voi, values)
        elif look.voi is not None:
            image = apply_window(values, *look.voi)
        else:
            image = _default_window(values, padding, header, is_rescaled=look.modality is not None)
        if header.inverse:
            image = 1 - image
    if padding is not None:
        image[padding] = 0
    return image


def _modality(frame: Array, look: Look) -> Floats:
    """Stored -> modality values (HU for CT), PS3.3 C.11.1."""
    # 16 bits are exact in float32, which is twice as fast.
    precision = np.float32 if frame.dtype.itemsize <= 2 else np.float64
    if isinstance(look.modality, Table):
        return look.modality.of(frame).astype(precision)
    values: Floats = frame.astype(precision)
    if look.modality is not None:
        values *= look.modality[0]
        values += look.modality[1]
    return values


def _through(table: Table, values: Floats) -> Floats:
    """The VOI LUT (PS3.3 C.11.2.1.1)."""
    return np.asarray(np.clip(table.of(np.rint(values)).astype(np.float32) / np.float32((1 << table.needed) - 1), 0, 1))


def apply_window(values: Floats, centre: float, width: float, function: str = "LINEAR") -> Floats:
    """Modality values -> [0, 1] by a window: equations of PS3.3 C.11.2.1.2.1 and C.11.2.1.3 with y in [0, 1].

    The width is at least 1 for LINEAR, and more than 0 for the others.
    """
    if function == "LINEAR":
        if width == 1:
            return (values > centre - 0.5).astype(values.dtype)
        out = (values - (centre - 0.5)) / (width - 1)
    elif function == "LINEAR_EXACT":
        out = (values - centre) / width
    else:
        # SIGMOID. Beyond +-50 the sigmoid is 0 or 1 in float32, and exp would overflow.
        return np.asarray(1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -50, 50))))
    out += 0.5
    return np.asarray(np.clip(out, 0, 1, out=out))


def _default_window(values: Floats, padding: NDArray[np.bool_] | None, header: Header, *, is_rescaled: bool) -> Floats:
    """How files without VOI are shown; each rule is public and looks at one image only.

    CT in HU has a fixed window; up to 8 bits are shown whole; else the image's own 0.5 and 99.5 percentiles (padding
    left out) become black and white.
    """
    if is_rescaled and header.modality == "CT":
        return apply_window(values, *CT_WINDOW)
    if 0 < header.stored <= 8 and not is_rescaled and header.unsigned:
        return np.asarray(np.clip(values / (2**header.stored - 1), 0, 1))
    shown = values if padding is None else values[~padding]
    if not shown.size:
        return np.zeros_like(values)
    low, high = np.percentile(shown, [0.5, 99.5])
    if high <= low:
        low, high = shown.min(), shown.max()
    return np.asarray(np.clip((values - low) / ((high - low) or 1), 0, 1))


def _padded(frame: Array, header: Header) -> NDArray[np.bool_] | None:
    """Pixels that fill the frame where nothing was imaged (PS3.3 C.7.5.1.1.2), and those that are not numbers."""
    if frame.dtype.kind == "f":
        mask = ~np.isfinite(frame)
        if mask.any():
            frame[mask] = 0
        return mask
    if header.padding is None:
        return None
    low, high = sorted(_as_stored(value, frame.dtype) for value in header.padding)
    return np.asarray((frame >= low) & (frame <= high))


def _as_stored(value: float, dtype: np.dtype[np.generic]) -> int:
    """A padding value written unsigned for signed pixels (a common mistake), or the reverse, means the same bits."""
    span = 1 << (8 * dtype.itemsize)
    if dtype.kind == "i" and value >= span // 2:
        return int(value) - span
    if dtype.kind == "u" and value < 0:
        return int(value) + span
    return int(value)


def colour(frame: Array, header: Header) -> Floats:
    """[H, W, 3] RGB, or [H, W] indices of a palette -> float32 [H, W, 3] in [0, 1]."""
    if header.palette is not None:
        # Of 8 bits or of as many as declared: a palette may well be dark, but not to the half.
        narrow = all(table.needed <= 8 for table in header.palette)
        tops = [(1 << (8 if narrow else table.bits)) - 1 for table in header.palette]
        planes = [
            table.of(frame).astype(np.float32) / np.float32(top)
            for table, top in zip(header.palette, tops, strict=True)
        ]
        return np.clip(np.stack(planes, -1), 0, 1)
    return np.asarray(np.clip(frame.astype(np.float32) / np.float32(2.0**header.stored - 1), 0, 1))


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
    inner_height, inner_width, top, left = placed(image.shape[0], image.shape[1], size, aspect)
    out = np.zeros((recipe.channels, size, size), np.float32)
    planes = [image] if image.ndim == 2 else [image[..., c] for c in range(3)]
    for channel, plane in enumerate(planes):
        source = Image.fromarray(np.ascontiguousarray(plane, dtype=np.float32))
        small = source.resize((inner_width, inner_height), Image.Resampling.BILINEAR)
        out[channel, top : top + inner_height, left : left + inner_width] = np.asarray(small)
    if len(planes) < recipe.channels:
        out[1:] = out[0]
    return out


def placed(rows: int, columns: int, size: int, aspect: float) -> tuple[int, int, int, int]:
    """Where an image of rows x columns lies in a square of `size`: height, width, top and left."""
    height, width = rows * aspect, float(columns)
    inner_height, inner_width = (max(1, round(size * side / max(height, width))) for side in (height, width))
    return inner_height, inner_width, (size - inner_height) // 2, (size - inner_width) // 2


def quantise(image: Floats) -> NDArray[np.uint16]:
    """[0, 1] -> 0..65535."""
    return np.asarray(np.rint(np.clip(image, 0, 1) * 65535), np.uint16)
