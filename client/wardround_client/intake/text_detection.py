"""Where text stands in an image: a network proposes places, another one reads them; what reads like nothing is no text.

The networks are PaddlePaddle's PP-OCRv4 for detection (differentiable binarization, Liao et al., AAAI 2020) and for
recognition, as they lie in the wheels of rapidocr-onnxruntime and of rapidocr. Only these two files are used, pinned by
their hashes and run by onnxruntime: nothing of those packages is imported, so OpenCV and libGL are not needed. What was
read is not kept. benchmarks/burned_in_text.py measures how much is found, and how much that is no text.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

Floats = NDArray[Any]
"""[H, W] or [H, W, 3], in [0, 1]."""

PACKAGES = ("rapidocr_onnxruntime", "rapidocr")
DETECTION = (
    "models/ch_PP-OCRv4_det_infer.onnx",
    "d2a7720d45a54257208b1e13e36a8479894cb74155a5efe29462512d42f49da9",
)
RECOGNITION = (
    "models/ch_PP-OCRv4_rec_infer.onnx",
    "48fc40f24f6d2a207a2b1091d3437eb3cc3eb6b676dc3ef9c37384005483683b",
)

LIKELY, MEAN, LEAST_PX = 0.3, 0.5, 3
"""A place is a connected set of pixels above LIKELY, of MEAN on average, and of so many pixels across."""
SURE, MAYBE = 1.5, 0.5
"""Characters that a place must hold, each counted by the confidence in it; MAYBE beside another place that is sure."""
TALL_PX, TALL = 48, 0.3
"""A line as high as this, or this part of the image, is anatomy."""
UNCLIP, MARGIN_PX = 1.8, 2
"""The network marks the core of a line, which is grown back (UNCLIP: times area over circumference), and a little."""

TILE_PX, OVERLAP_PX = 1024, 128
LONG_SIDE_PX, GREATEST_SIDE_PX, GREATEST_SCALE = 1280, 2048, 2.0
LINE_PX, LONGEST_LINE_PX = 48, 960
"""Height of a line as the reader wants it, and the width that it is squeezed into at most."""


class Box(NamedTuple):
    """A place in an image, in its pixels: rows top to bottom, columns left to right, the ends left out."""

    top: int
    bottom: int
    left: int
    right: int


class _Place(NamedTuple):
    box: Box
    tall: bool
    wide: bool


@dataclass(frozen=True)
class TextDetector:
    """The two networks. Same image, same machine, same answer: they run on one thread."""

    _find: Any
    _read: Any

    def text(self, image: Floats, *, careful: bool = True, first: bool = False) -> list[Box]:
        """Where text stands.

        Args:
            image: at full resolution.
            careful: enlarge a small image, so that letters of 6 pixels are found too; takes about four times as long.
            first: one place is enough.

        Raises: MemoryError.
        """
        sure, maybe = [], []
        for place in self._places(image, careful=careful):
            found = self._characters(image, place)
            if found >= SURE:
                sure.append(place.box)
                if first:
                    return sure
            elif found >= MAYBE:
                maybe.append(place.box)
        return sure + maybe if sure else []

    def _places(self, image: Floats, *, careful: bool) -> Iterator[_Place]:
        height, width = image.shape[:2]
        scale = _scale(max(height, width), careful=careful)
        shown = _resized(image, max(1, round(height * scale)), max(1, round(width * scale)))
        for top, bottom in _tiles(shown.shape[0]):
            for left, right in _tiles(shown.shape[1]):
                found = self._likely(shown[top:bottom, left:right])
                marked, _ = ndimage.label(found > LIKELY, np.ones((3, 3)))
                for number, (rows, columns) in enumerate(ndimage.find_objects(marked), 1):
                    core = marked[rows, columns] == number
                    if min(core.shape) < LEAST_PX or found[rows, columns][core].mean() < MEAN:
                        continue
                    grown = UNCLIP * np.count_nonzero(core) / (2 * sum(core.shape))
                    y = ((top + rows.start - grown) / scale, (top + rows.stop + grown) / scale)
                    x = ((left + columns.start - grown) / scale, (left + columns.stop + grown) / scale)
                    box = Box(*_within(y, height), *_within(x, width))
                    if min(box.bottom - box.top, box.right - box.left) > max(TALL_PX, TALL * min(height, width)):
                        continue
                    yield _Place(
                        box,
                        tall=core.shape[0] > core.shape[1] / 1.5,
                        wide=core.shape[1] > core.shape[0] / 1.5,
                    )

    def _likely(self, tile: Floats) -> Floats:
        """[H, W]: how likely each pixel is the core of a line. The network wants sides that are multiples of 32."""
        height, width = tile.shape[:2]
        planes = _planes(tile)
        padded = np.pad(planes, ((0, 0), (0, -height % 32), (0, -width % 32)), mode="edge")
        return _run(self._find, padded)[0, 0, :height, :width]

    def _characters(self, image: Floats, place: _Place) -> float:
        """How many characters stand there, each counted by the confidence in it, read whichever way reads best."""
        top, bottom, left, right = place.box
        patch = image[top:bottom, left:right]
        ways = [0, 2] if place.wide else []
        ways += [1, 3] if place.tall else []
        best = 0.0
        for way in ways:
            best = max(best, self._line(np.rot90(patch, way)))
            if best >= SURE:
                break
        return best

    def _line(self, patch: Floats) -> float:
        width = min(LONGEST_LINE_PX, max(16, round(LINE_PX * patch.shape[1] / patch.shape[0])))
        planes = _planes(_resized(patch, LINE_PX, width))
        low, high = planes.min(), planes.max()
        line = np.full((3, LINE_PX, max(320, width)), 0.5, np.float32)
        line[..., :width] = (planes - low) / max(high - low, 1e-3)
        steps = _run(self._read, line)[0]  # [steps, characters], the first of them: none
        best, confidence = steps.argmax(1), steps.max(1)
        begins = (best != 0) & (best != np.concatenate([[0], best[:-1]]))
        return float(confidence[begins].sum())


def _scale(side_px: int, *, careful: bool) -> float:
    if side_px > GREATEST_SIDE_PX:
        return GREATEST_SIDE_PX / side_px
    return min(GREATEST_SCALE, max(1.0, LONG_SIDE_PX / side_px)) if careful else 1.0


def _tiles(side_px: int) -> Iterator[tuple[int, int]]:
    """Parts that overlap, so that memory is bounded and a line on a border stands whole in one of them, or nearly."""
    if side_px <= TILE_PX:
        yield 0, side_px
        return
    count = -(-(side_px - OVERLAP_PX) // (TILE_PX - OVERLAP_PX))
    for number in range(count):
        start = round(number * (side_px - TILE_PX) / (count - 1))
        yield start, start + TILE_PX


def _within(span: tuple[float, float], side_px: int) -> tuple[int, int]:
    start = min(max(0, int(np.floor(span[0])) - MARGIN_PX), side_px - 1)
    return start, max(start + 1, min(side_px, int(np.ceil(span[1])) + MARGIN_PX))


def _planes(image: Floats) -> NDArray[np.float32]:
    """float32 [3, H, W]."""
    planes = np.broadcast_to(image, (3, *image.shape)) if image.ndim == 2 else np.moveaxis(image, -1, 0)
    return np.ascontiguousarray(planes, np.float32)


def _resized(image: Floats, height: int, width: int) -> Floats:
    if image.shape[:2] == (height, width):
        return image
    planes = [image] if image.ndim == 2 else [image[..., c] for c in range(3)]
    out = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(p, np.float32)).resize((width, height), Image.Resampling.BILINEAR)
        )
        for p in planes
    ]
    return out[0] if image.ndim == 2 else np.stack(out, -1)


def _run(network: Any, planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """From [3, H, W] in [0, 1]; the networks want [-1, 1] and a batch."""
    try:
        (out,) = network.run(None, {network.get_inputs()[0].name: (planes[None] - 0.5) / 0.5})
    except Exception as error:  # onnxruntime has no kind of its own for it
        if "alloc" in str(error):
            raise MemoryError(str(error)) from None
        raise
    return np.asarray(out)


@functools.cache
def detector() -> TextDetector | None:
    """Loaded once a process; None where onnxruntime or the two files are not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    files = _file(*DETECTION), _file(*RECOGNITION)
    if not all(files):
        return None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # a worker process has one core
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # memory goes back after each image
    find, read = (onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"]) for file in files)
    return TextDetector(find, read)


def _file(name: str, sha256: str) -> bytes | None:
    """The bytes of a pinned file of one of the packages, which are found and not imported."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        path = Path(spec.origin).parent / name if spec and spec.origin else None
        if path and path.is_file() and hashlib.sha256(found := path.read_bytes()).hexdigest() == sha256:
            return found
    return None
