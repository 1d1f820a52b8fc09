"""In which images a segmentation shows what (PS3.3 C.8.20): words of a task, by the pixels of its frames."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels.utils import iter_pixels

from wardround_client.intake.dicom.attributes import UnusableError, text
from wardround_client.intake.dicom.container import CUT_OFF, opened
from wardround_client.intake.dicom.report import Said, Words

MOST_BYTES = 1 << 30


def shown_in(path: Path, words: Words) -> tuple[Said, ...]:
    """What a segmentation shows, image by image, where its frames are about one.

    Raises:
        UnusableError: no segment is called like a word, or a frame says not which image it is of.
        OSError: the file cannot be read.
    """
    if path.stat().st_size > MOST_BYTES:
        raise UnusableError("a segmentation is larger than the limit", f"{MOST_BYTES} bytes")
    pixels_of = opened(path, ["SOPClassUID"], MOST_BYTES).pixels
    dataset = pydicom.dcmread(path, stop_before_pixels=True)
    if pixels_of is None:
        raise UnusableError("a segmentation without pixels")
    if pixels_of.length is not None:
        bits = int(dataset.Rows) * int(dataset.Columns) * int(dataset.NumberOfFrames) * int(dataset.BitsAllocated)
        if pixels_of.offset + pixels_of.length > pixels_of.size or 8 * pixels_of.length < bits:
            raise UnusableError(CUT_OFF, "within the frames of a segmentation")  # what is missing would be no finding
    segments = {int(each.SegmentNumber): _word(each, words) for each in dataset.SegmentSequence}
    wanted = frozenset(filter(None, segments.values()))
    if not wanted:
        raise UnusableError(
            "no segment is called like a class of the task", ", ".join(map(_label, dataset.SegmentSequence))
        )
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    groups = list(dataset.PerFrameFunctionalGroupsSequence)
    there: dict[str, set[str]] = defaultdict(set)
    most = int(dataset.get("MaximumFractionalValue") or 1)  # a fraction is there from its half on
    for group, pixels in zip(groups, iter_pixels(path, raw=True), strict=True):
        word = segments.get(_segment(group, shared), "")
        images = _sources(group) or _sources(shared)
        if word and not images:
            raise UnusableError("a segmentation says not which image a frame is of")
        for image in images:
            there[image].update([word] if word and 2 * int(np.max(pixels)) >= most else [])
    return tuple(Said(frozenset(found), wanted - found, images=(image,)) for image, found in there.items())


def _word(segment: Dataset, words: Words) -> str:
    types = segment.get("SegmentedPropertyTypeCodeSequence") or [Dataset()]
    label = _label(segment)
    return words.find((label, label)) or words.find((text(types[0], "CodeValue"), text(types[0], "CodeMeaning")))


def _label(segment: Dataset) -> str:
    return text(segment, "SegmentLabel")


def _segment(*groups: Dataset) -> int:
    for group in groups:
        for each in group.get("SegmentIdentificationSequence") or []:
            return int(each.ReferencedSegmentNumber)
    raise UnusableError("a segmentation says not of which segment a frame is")


def _sources(group: Dataset) -> list[str]:
    return [
        text(source, "ReferencedSOPInstanceUID")
        for derived in group.get("DerivationImageSequence") or []
        for source in derived.get("SourceImageSequence") or []
    ]
