"""What becomes of images that have text in their pixels: a name, a birth date, a hospital.

Burned In Annotation (0028,0301) is not believed when it says NO: it is written by a machine's configuration and nobody
checks it. It is believed when it says YES. What is checked is what often holds text, whatever the header says of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import UnusableError
from wardround_client.intake.text_detection import Box, TextDetector, detector

Floats = NDArray[Any]
"""[H, W] or [H, W, 3], in [0, 1]."""

FOUND = "text in the pixels"
NOT_INSTALLED = "text in the pixels cannot be looked for: pip install 'wardround[text]', or set burned_in.text"
OUTSIDE = 'something stands outside of Sequence of Ultrasound Regions (0018,6011): set burned_in.text = "crop"'
NOT_FOUND = "Burned In Annotation (0028,0301) is YES, and no text was found to blacken"

WORDS = 3
"""Heights of a line that are blackened before and behind it: the next word may have been missed."""
_FEW = 3  # frames that are all looked at with care
_BLANK = 4 / 255  # what lossy compression makes of nothing


def without_text(
    frames: Callable[[], Iterator[Floats]],
    recipe: ImageRecipe,
    kinds: Collection[str],
    *,
    careful: Sequence[bool] = (True,),
    regions: Sequence[Box] = (),
    marked: bool = False,
) -> Iterator[Floats]:
    """The frames of a file, at full resolution, as the recipe wants them.

    Args:
        frames: renders them one after the other; called again where boxes found in one are blackened in all.
        recipe: what is done, and to which kinds of files.
        kinds: of this file: its modality, "SC", "multi-frame" or "picture".
        careful: of each frame, whether it is looked at with care; the others are looked at, and all of them together.
        regions: of an ultrasound machine's screen, that hold the image.
        marked: the file says that there is text.

    Raises: UnusableError, also while the frames are taken; by choice where there is text, so that what an earlier
    ingest stored of the file goes.
    """
    if recipe.burned_in == "ignore" or not (marked or set(kinds) & set(recipe.checked)):
        return frames()
    network = detector()
    if network is None:
        raise UnusableError(NOT_INSTALLED)
    if recipe.burned_in == "quarantine" or not (regions or recipe.burned_in == "blacken"):
        return _refusing(network, (_within(image, regions) for image in frames()), careful)
    if regions:
        return _blackened(network, lambda: (_only(image, regions) for image in frames()), careful, must=False)
    return _blackened(network, frames, careful, must=marked)


def _refusing(network: TextDetector, frames: Iterable[Floats], careful: Sequence[bool]) -> Iterator[Floats]:
    for place, (image, exact) in enumerate(_looked_at(frames, careful)):
        if found := network.text(image, careful=exact, first=True):
            top, bottom, left, right = found[0]
            which = f"frame {place + 1} of those used, " if 1 < len(careful) > place else ""
            raise UnusableError(FOUND, f"{which}rows {top} to {bottom}, columns {left} to {right}", by_choice=True)
        if place < len(careful):
            yield image


def _blackened(
    network: TextDetector, frames: Callable[[], Iterator[Floats]], careful: Sequence[bool], *, must: bool
) -> Iterator[Floats]:
    boxes: set[Box] = set()
    for image, exact in _looked_at(frames(), careful):
        boxes.update(network.text(_without(image, boxes), careful=exact))  # what stands in all frames is read once
    if must and not boxes:
        raise UnusableError(NOT_FOUND)
    return (_without(image, boxes) for image in frames())


def _looked_at(frames: Iterable[Floats], careful: Sequence[bool]) -> Iterator[tuple[Floats, bool]]:
    """The frames; then, of many, the brightest and the darkest that each pixel ever was: text of one frame is there."""
    brightest: Floats | None = None
    darkest: Floats | None = None
    for image, exact in zip(frames, careful, strict=True):
        yield image, exact or len(careful) <= _FEW
        brightest = image if brightest is None else np.maximum(brightest, image)
        darkest = image if darkest is None else np.minimum(darkest, image)
    if len(careful) > _FEW and brightest is not None and darkest is not None:
        yield brightest, True
        yield darkest, True


def _without(image: Floats, boxes: Iterable[Box]) -> Floats:
    """Black where text stands, and a little before and behind it."""
    image = image.copy()
    for top, bottom, left, right in boxes:
        height, width = bottom - top, right - left
        along, across = WORDS * min(height, width), min(height, width) // 6
        y, x = (along, across) if height > width else (across, along)
        image[max(0, top - y) : bottom + y, max(0, left - x) : right + x] = 0
    return image


def _within(image: Floats, regions: Sequence[Box]) -> Floats:
    """The image, if there is nothing outside of the regions. Raises: UnusableError."""
    if regions:
        outside = np.ones(image.shape[:2], bool)
        for top, bottom, left, right in regions:
            outside[top:bottom, left:right] = False
        values = image[outside]
        if values.size and values.max() - values.min() > _BLANK:
            raise UnusableError(OUTSIDE, by_choice=True)
    return image


def _only(image: Floats, regions: Iterable[Box]) -> Floats:
    """Black outside of the regions. Nothing is moved, so that masks and points stay in their places."""
    out = np.zeros_like(image)
    for top, bottom, left, right in regions:
        out[top:bottom, left:right] = image[top:bottom, left:right]
    return out
