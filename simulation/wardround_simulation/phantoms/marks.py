"""What a radiologist would draw on a phantom: a segmentation beside the image, or boxes around nodules."""

from __future__ import annotations

from pathlib import Path

import highdicom
import numpy as np
import numpy.typing as npt
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from scipy import ndimage

LEAST_PX = 4
"""Of a nodule that somebody would see."""


def boxes(diseased: npt.NDArray[np.bool_]) -> str:
    """Pixels bool [H, W] -> a cell of labels.csv: a box around each connected part, or "none"."""
    parts, _ = ndimage.label(diseased)
    found = [
        (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1)
        if (parts[rows, columns] == number).sum() >= LEAST_PX
    ]
    return "; ".join(" ".join(map(str, box)) for box in found) or "none"


def write_segmentation(image: Dataset, diseased: npt.NDArray[np.bool_], folder: Path) -> None:
    """A DICOM segmentation (PS3.3 A.51) of one segment, `disease`, beside its image; bool [H, W]."""
    source = Dataset(image)
    if "FrameOfReferenceUID" not in source:  # a radiograph lies nowhere
        source.FrameOfReferenceUID = uid.generate_uid(entropy_srcs=[str(image.SOPInstanceUID), "frame"])
    described = highdicom.seg.SegmentDescription(
        1,
        "disease",
        codes.SCT.MorphologicallyAbnormalStructure,
        codes.SCT.Lesion,
        highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )
    name = str(image.SOPInstanceUID)
    segmentation = highdicom.seg.Segmentation(
        [source],
        diseased[None],
        highdicom.seg.SegmentationTypeValues.BINARY,
        [described],
        series_instance_uid=uid.generate_uid(entropy_srcs=[name, "series"]),
        series_number=100,
        sop_instance_uid=uid.generate_uid(entropy_srcs=[name, "segmentation"]),
        instance_number=int(image.InstanceNumber),
        manufacturer=str(image.Manufacturer),
        manufacturer_model_name="phantom",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
    )
    segmentation.save_as(folder / f"SEG-{name}.dcm", enforce_file_format=True)
