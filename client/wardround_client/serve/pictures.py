"""Masks as segmentations (PS3.3 A.51), and heat maps as secondary captures (A.8.1), as they are sent."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import highdicom
import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset
from pydicom.uid import UID

from wardround_client.personal.segmentation import complete
from wardround_client.serve.about import NO_DEVICE, About
from wardround_client.serve.predicted import Predicted
from wardround_client.serve.report import made_by
from wardround_client.serve.study import MAKER

Named = Callable[[str], str]
"""The UID of a thing that is named."""


def segmentations(predicted: Predicted, about: About, uid: Named, series: str) -> Iterator[Dataset]:
    """Those that predicting wrote, one a file with images, under UIDs that stay."""
    files = dict.fromkeys(file for answer in predicted.answers if (file := answer.row.get("segmentation", "")))
    for number, file in enumerate(files, start=1):
        written = pydicom.dcmread(predicted.folder / file)
        written.SOPInstanceUID = UID(uid(f"seg {number}"))
        written.file_meta.MediaStorageSOPInstanceUID = written.SOPInstanceUID
        written.SeriesInstanceUID, written.SeriesNumber, written.InstanceNumber = UID(series), 9001, number
        made_by(written, predicted, about)
        yield written


def captures(predicted: Predicted, about: About, uid: Named, series: str) -> Iterator[Dataset]:
    """The heat maps, beside their images."""
    for number, answer in enumerate(predicted.answers, start=1):
        if not (file := answer.row.get("heatmap", "")):
            continue
        with Image.open(predicted.folder / file) as image:
            pixels = np.asarray(image.convert("RGB"))
        source = complete(answer.sources[0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are not as they should be: they are the source's
            written = highdicom.sc.SCImage(
                pixel_array=pixels,
                photometric_interpretation="RGB",
                bits_allocated=8,
                coordinate_system="PATIENT",
                patient_orientation=("L", "F"),
                study_instance_uid=source.StudyInstanceUID,
                series_instance_uid=series,
                series_number=9002,
                sop_instance_uid=uid(f"heatmap {number}"),
                instance_number=number,
                manufacturer=MAKER,
            )
        for keyword in ("PatientOrientation", "Laterality"):  # of a page with two pictures and a legend
            setattr(written, keyword, None)
        written.DerivationDescription = f"{about.served.name}. {NO_DEVICE}"[:1024]
        written.SourceImageSequence = [_reference(source)]
        made_by(written, predicted, about)
        yield written


def _reference(source: Dataset) -> Dataset:
    one = Dataset()
    one.ReferencedSOPClassUID, one.ReferencedSOPInstanceUID = source.SOPClassUID, source.SOPInstanceUID
    return one
