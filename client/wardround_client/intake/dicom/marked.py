"""Where findings are in a DICOM image, as segmentations and structure sets say: planes as large as the image.

A segment or a region belongs to the class of its name, whatever the case of its letters. Where a file has one segment
and the task one class beside the first, that is it, whatever it is called. Others are another task's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from wardround.planes import plane_of
from wardround_client.intake.dicom.attributes import UnusableError, groups_of, number, numbers, refusing, text
from wardround_client.intake.dicom.card import STRUCTURES

Mask = NDArray[np.bool_]
_MOST_BYTES = 1 << 30
_MOST_POINTS = 1 << 20  # of the contours in one image


def planes_of(
    image: Path, marking: Sequence[Path], classes: Sequence[str], frames: Sequence[int]
) -> NDArray[np.uint16]:
    """Planes of the chosen frames (numbers from 0) of an image: uint16 [frames, rows, columns], by files that refer to
    it. Where two classes overlap, the later class of the task is there.

    Raises: UnusableError: a file that cannot be used, of another size, or without any class of the task. OSError.
    """
    header = pydicom.dcmread(image, stop_before_pixels=True)
    shape = int(header.Rows), int(header.Columns)
    found = np.zeros((len(frames), *shape), np.int64)
    for file in marking:
        if file.stat().st_size > _MOST_BYTES:
            raise UnusableError("a segmentation is larger than the limit", f"{_MOST_BYTES} bytes")
        with refusing("a segmentation or structure set cannot be read", passing=OSError):
            dataset = pydicom.dcmread(file)
            of = _regions if str(dataset.SOPClassUID) == STRUCTURES else _segments
            for label, place, mask in of(dataset, header, shape, classes, frames):
                np.maximum(found[place], np.where(mask, label, 0), out=found[place])
    return plane_of(found)


Found = Iterator[tuple[int, int, Mask]]
"""Class, place in the chosen frames, and where it is."""


def _segments(
    dataset: Dataset, image: Dataset, shape: tuple[int, int], classes: Sequence[str], frames: Sequence[int]
) -> Found:
    import highdicom

    segments = [each for each in dataset.SegmentSequence if int(each.SegmentNumber)]  # 0: background of a label map
    labels = {
        int(each.SegmentNumber): _class((text(each, "SegmentLabel"), _meaning(each)), classes, alone=len(segments) == 1)
        for each in segments
    }
    wanted = _wanted(labels, [text(each, "SegmentLabel") for each in segments])
    if (int(dataset.Rows), int(dataset.Columns)) != shape:
        raise UnusableError("a segmentation is not as large as its image", f"{dataset.Rows} x {dataset.Columns}")
    _check_place(dataset, image)
    segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    several = "NumberOfFrames" in image and int(image.NumberOfFrames) > 1
    for segment, label in wanted.items():
        if several:
            pixels = segmentation.get_pixels_by_source_frame(
                str(image.SOPInstanceUID), [frame + 1 for frame in frames], [segment], **_LENIENT
            )
        else:
            pixels = segmentation.get_pixels_by_source_instance([str(image.SOPInstanceUID)], [segment], **_LENIENT)
        for place in range(len(pixels)):
            yield label, place, np.asarray(pixels[place, ..., 0] >= _PRESENT)


_PRESENT = 0.5
"""Of a fractional segmentation, the probability or the part of a pixel from which on a finding is there."""


def _check_place(dataset: Dataset, image: Dataset) -> None:
    """A frame of a segmentation lies where the image lies that it is of: one that is turned or moved shows where other
    pixels are. Raises: UnusableError.
    """
    for frame, group in enumerate(dataset.PerFrameFunctionalGroupsSequence):
        for derived in group.get("DerivationImageSequence") or []:
            for source in derived.get("SourceImageSequence") or []:
                if text(source, "ReferencedSOPInstanceUID") == str(image.SOPInstanceUID):
                    theirs = _corners(image, int(number(source, "ReferencedFrameNumber") or 1) - 1)
                    mine = _corners(dataset, frame)
                    if mine is None or theirs is None:
                        continue
                    away = np.linalg.norm(mine[:3] - theirs[:3], axis=1).max()
                    if not away < min(mine[3].min(), theirs[3].min()) / 2:
                        raise UnusableError("a segmentation lies elsewhere than its image", f"{away:.2f} mm away")


def _corners(dataset: Dataset, frame: int) -> NDArray[np.float64] | None:
    """Where three corners of a frame lie, mm, and thrice the shorter side of its pixels: [4, 3]; None where it does not
    say (PS3.3 C.7.6.2.1.1).
    """
    position, orientation, spacing = (
        next((found for each in groups_of(dataset, frame, macro) if len(found := numbers(each, keyword)) == many), None)
        for macro, keyword, many in _OF_PLACE
    )
    if position is None or orientation is None or spacing is None:
        return None
    at, along, down = np.array(position), np.array(orientation[:3]), np.array(orientation[3:])
    row, column = along * spacing[1] * (int(dataset.Columns) - 1), down * spacing[0] * (int(dataset.Rows) - 1)
    return np.stack([at, at + row, at + column, np.full(3, min(spacing))])


_OF_PLACE = (
    ("PlanePositionSequence", "ImagePositionPatient", 3),
    ("PlaneOrientationSequence", "ImageOrientationPatient", 6),
    ("PixelMeasuresSequence", "PixelSpacing", 2),
)


# Images of the series that no frame of the segmentation is about were looked at, and hold nothing.
_LENIENT: dict[str, Any] = {"ignore_spatial_locations": True, "assert_missing_frames_are_empty": True}


def _meaning(segment: Dataset) -> str:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or []
    return text(types[0], "CodeMeaning") if types else ""


def _class(names: Sequence[str], classes: Sequence[str], *, alone: bool) -> int:
    """The class that one of the names is; 0 for none."""
    folded = [" ".join(name.casefold().split()) for name in classes]
    for name in names:
        wanted = " ".join(name.casefold().split())
        if wanted in folded[1:]:
            return folded.index(wanted)
    return 1 if alone and len(classes) == 2 else 0


def _wanted(labels: dict[int, int], names: Sequence[str]) -> dict[int, int]:
    wanted = {number: label for number, label in sorted(labels.items(), key=lambda pair: pair[1]) if label}
    if not wanted:
        raise UnusableError("no segment is called like a class of the task", ", ".join(names)[:200])
    return wanted


def _regions(
    dataset: Dataset, image: Dataset, shape: tuple[int, int], classes: Sequence[str], frames: Sequence[int]
) -> Found:
    """Closed contours in the image's plane (PS3.3 C.8.8.6); one within another cuts a hole, and none counts twice."""
    if "NumberOfFrames" in image and int(image.NumberOfFrames) > 1:
        raise UnusableError("a structure set of a multi-frame image is not supported")
    rois = list(dataset.get("StructureSetROISequence") or [])
    labels = {int(each.ROINumber): _class((text(each, "ROIName"),), classes, alone=len(rois) == 1) for each in rois}
    wanted = _wanted(labels, [text(each, "ROIName") for each in rois])
    for contours in dataset.get("ROIContourSequence") or []:
        label = wanted.get(int(contours.ReferencedROINumber), 0)
        if not label:
            continue
        drawn = dict[bytes, Mask]()
        for contour in contours.get("ContourSequence") or []:
            outline = _outline(contour, image)
            if outline is not None:
                if (kind := text(contour, "ContourGeometricType")) not in _CLOSED:
                    raise UnusableError("a contour encloses nothing", kind)
                one = inside(outline, shape)
                drawn[one.tobytes()] = one
        yield label, 0, np.asarray(sum(drawn.values(), np.zeros(shape, np.uint8)) % 2, bool)


_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")


def inside(outline: NDArray[np.float64], shape: tuple[int, int]) -> Mask:
    """The pixels of an image of this shape whose middle lies within a polygon: an odd number of its sides to the left.

    outline: column and row of its corners, [n, 2]; the middle of the first pixel is (0, 0).
    """
    ends = np.roll(outline, -1, 0)
    upper, lower = np.where(outline[:, 1:] <= ends[:, 1:], (outline, ends), (ends, outline))
    first, last = np.clip(np.ceil([upper[:, 1], lower[:, 1]]), 0, shape[0]).astype(np.int64)
    side = np.repeat(np.arange(len(outline)), last - first)  # once for each row that it crosses
    row = np.arange(len(side)) - np.repeat(np.cumsum(last - first) - last, last - first)
    part = (row - upper[side, 1]) / (lower - upper)[side, 1]
    column = np.ceil(upper[side, 0] + part * (lower - upper)[side, 0])
    crossed = np.zeros((shape[0], shape[1] + 1), np.uint32)
    np.add.at(crossed, (row, np.clip(column, 0, shape[1]).astype(np.int64)), 1)
    return np.asarray(np.cumsum(crossed[:, :-1], 1) % 2, bool)


def _outline(contour: Dataset, image: Dataset) -> NDArray[np.float64] | None:
    """Column and row of each point of a contour of this image, by its plane (PS3.3 C.7.6.2.1.1), [n, 2]; None of
    another's.

    A contour is of the images that it names; one that names none is of the image in whose slice it lies.
    """
    named = {text(one, "ReferencedSOPInstanceUID") for one in contour.get("ContourImageSequence") or []}
    if named and str(image.SOPInstanceUID) not in named:
        return None
    points = np.array(numbers(contour, "ContourData"), np.float64).reshape(-1, 3)
    if len(points) > _MOST_POINTS:
        raise UnusableError("a contour of too many points", str(len(points)))
    position, spacing = np.array(numbers(image, "ImagePositionPatient")), numbers(image, "PixelSpacing")
    orientation = numbers(image, "ImageOrientationPatient")
    if len(position) != 3 or len(orientation) != 6 or len(spacing) != 2 or min(spacing) <= 0:
        raise UnusableError("an image with contours says not where it lies")
    along, down = np.array(orientation[:3]), np.array(orientation[3:])
    thickness = [number for name in _THICKNESS for number in numbers(image, name)[:1] if number > 0]
    away = np.abs((points - position) @ np.cross(along, down)).max(initial=0)
    if not away < min(thickness, default=1.0) / 2:
        if named:
            raise UnusableError("a contour lies elsewhere than the image that it names", f"{away:.2f} mm away")
        return None
    return np.stack([(points - position) @ along / spacing[1], (points - position) @ down / spacing[0]], 1)


_THICKNESS = ("SliceThickness", "SpacingBetweenSlices")
