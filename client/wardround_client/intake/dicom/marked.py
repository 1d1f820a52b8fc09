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
from PIL import Image, ImageChops, ImageDraw
from pydicom.dataset import Dataset

from wardround.planes import plane_of
from wardround_client.intake.dicom.attributes import UnusableError, numbers, refusing, text
from wardround_client.intake.dicom.card import SEGMENTATION

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
            of = _segments if str(dataset.SOPClassUID) == SEGMENTATION else _regions
            for label, place, mask in of(dataset, header, shape, classes, frames):
                np.maximum(found[place], np.where(mask, label, 0), out=found[place])
    return plane_of(found)


Found = Iterator[tuple[int, int, Mask]]
"""Class, place in the chosen frames, and where it is."""


def _segments(
    dataset: Dataset, image: Dataset, shape: tuple[int, int], classes: Sequence[str], frames: Sequence[int]
) -> Found:
    import highdicom

    labels = {
        int(each.SegmentNumber): _class(
            (text(each, "SegmentLabel"), _meaning(each)), classes, alone=len(dataset.SegmentSequence) == 1
        )
        for each in dataset.SegmentSequence
    }
    wanted = _wanted(labels, [text(each, "SegmentLabel") for each in dataset.SegmentSequence])
    if (int(dataset.Rows), int(dataset.Columns)) != shape:
        raise UnusableError("a segmentation is not as large as its image", f"{dataset.Rows} x {dataset.Columns}")
    segmentation = highdicom.seg.Segmentation.from_dataset(dataset, copy=False)
    several = "NumberOfFrames" in image and int(image.NumberOfFrames) > 1
    for number, label in wanted.items():
        if several:
            pixels = segmentation.get_pixels_by_source_frame(
                str(image.SOPInstanceUID), [frame + 1 for frame in frames], [number], **_LENIENT
            )
        else:
            pixels = segmentation.get_pixels_by_source_instance([str(image.SOPInstanceUID)], [number], **_LENIENT)
        for place in range(len(pixels)):
            yield label, place, np.asarray(pixels[place, ..., 0] > 0)


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
    """Closed contours in the image's plane (PS3.3 C.8.8.6); one within another cuts a hole."""
    if "NumberOfFrames" in image and int(image.NumberOfFrames) > 1:
        raise UnusableError("a structure set of a multi-frame image is not supported")
    rois = list(dataset.get("StructureSetROISequence") or [])
    labels = {int(each.ROINumber): _class((text(each, "ROIName"),), classes, alone=len(rois) == 1) for each in rois}
    wanted = _wanted(labels, [text(each, "ROIName") for each in rois])
    for contours in dataset.get("ROIContourSequence") or []:
        label = wanted.get(int(contours.ReferencedROINumber), 0)
        if not label:
            continue
        mask = Image.new("1", (shape[1], shape[0]))
        for contour in contours.get("ContourSequence") or []:
            if text(contour, "ContourGeometricType") == "CLOSED_PLANAR" and (outline := _outline(contour, image)):
                one = Image.new("1", mask.size)
                ImageDraw.Draw(one).polygon(outline, fill=1)
                mask = ImageChops.logical_xor(mask, one)
        yield label, 0, np.asarray(mask, bool)


def _outline(contour: Dataset, image: Dataset) -> list[tuple[float, float]]:
    """Column and row of each point of a contour of this image, by its plane (PS3.3 C.7.6.2.1.1); [] of another's.

    A contour is of the images that it names; one that names none is of the image in whose slice it lies.
    """
    named = {text(one, "ReferencedSOPInstanceUID") for one in contour.get("ContourImageSequence") or []}
    if named and str(image.SOPInstanceUID) not in named:
        return []
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
        return []
    columns, rows = (points - position) @ along / spacing[1], (points - position) @ down / spacing[0]
    return [(float(x), float(y)) for x, y in zip(columns, rows, strict=True)] if len(points) > 2 else []


_THICKNESS = ("SliceThickness", "SpacingBetweenSlices")
