"""Predicted masks as files: a PNG in which a pixel's value is its class, and a DICOM segmentation (PS3.3 A.51)."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM

from wardround import __version__
from wardround_client.personal.original import Original

Array = npt.NDArray[Any]

_NEEDED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
    *("AccessionNumber", "ReferringPhysicianName"),
)
"""Of type 2: there, and maybe empty."""
_TIMES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
_COLOURS = ((0, 0, 0), (230, 60, 40), (60, 140, 230), (240, 190, 40), (70, 180, 90), (170, 90, 200), (120, 120, 120))


def png(classes: Array) -> bytes:
    """Classes uint8 [H, W] -> a PNG with a palette; the first class is black."""
    image = Image.fromarray(classes)
    image.putpalette([value for label in range(256) for value in _colour(label)])
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _colour(label: int) -> tuple[int, int, int]:
    return _COLOURS[label if label < len(_COLOURS) else 1 + (label - 1) % (len(_COLOURS) - 1)]


def seg(source: Dataset, originals: Sequence[Original], masks: Sequence[Array], names: Sequence[str]) -> bytes:
    """A segmentation that refers to its image.

    Args:
        source: the header of the image.
        originals: of the frames that were looked at.
        masks: of each the class of each pixel, uint8 [rows, columns].
        names: of the classes, the first of which is what is left over.

    Raises: whatever highdicom does where the image's header does not say enough.
    """
    import highdicom
    from pydicom.sr.codedict import codes

    frames = np.zeros((int(source.get("NumberOfFrames") or 1), *masks[0].shape), np.uint8)
    for original, mask in zip(originals, masks, strict=True):
        frames[original.number] = mask
    made = highdicom.AlgorithmIdentificationSequence(
        name="wardround", family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name[:64],
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=highdicom.sr.CodedConcept(f"class-{number}", "99WARDROUND", name[:64]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made,
        )
        for number, name in enumerate(names[1:], start=1)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names and dates that are not as they should be: they are the source's
        written = highdicom.seg.Segmentation(
            source_images=[complete(source)],
            pixel_array=frames,
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=segments,
            series_instance_uid=generate_uid(),
            series_number=1,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="wardround",
            manufacturer_model_name="wardround",
            software_versions=__version__,
            device_serial_number="none",
            omit_empty_frames=False,
        )
        file = io.BytesIO()
        written.save_as(file)
    return file.getvalue()


def complete(source: Dataset) -> Dataset:
    """The header of an image with what is missing as empty as the standard allows, and without dates that are none."""
    whole = copy.deepcopy(source)
    for keyword in _NEEDED:  # as text, because it is written in UTF-8 whatever it was
        setattr(whole, keyword, str(whole.get(keyword) or ""))
    whole.SpecificCharacterSet = "ISO_IR 192"
    for keyword, kind in _TIMES.items():
        try:
            kind(str(whole.get(keyword) or ""))
        except (ValueError, TypeError):
            setattr(whole, keyword, None)
    whole.file_meta = FileMetaDataset()
    whole.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    return whole
