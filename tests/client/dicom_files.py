"""DICOM files made for tests: a few attributes with sensible values, each of which a test may replace or remove."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid

from wardround_client.dicom import Instance, Pseudonyms, Recipe, Rejection, instance_of

KEY = bytes(range(32))


def write_dicom(
    path: Path, pixels: NDArray[Any], *, syntax: UID = ExplicitVRLittleEndian, **attributes: object
) -> Path:
    """Write [H, W], [H, W, 3] or [frames, H, W] pixels; an attribute given as None is left out."""
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = syntax
    data.SOPClassUID = CTImageStorage
    colour = pixels.ndim == 3 and pixels.shape[-1] == 3
    frames = pixels.shape[0] if pixels.ndim == 3 and not colour else None
    bits = 8 * pixels.dtype.itemsize
    values: dict[str, object] = {
        "SOPInstanceUID": generate_uid(entropy_srcs=[str(path)]),
        "StudyInstanceUID": "1.2.3.4",
        "PatientID": "PAT-1",
        "PatientName": "Doe^Jane",
        "PatientBirthDate": "19500102",
        "Modality": "OT",
        "Rows": pixels.shape[-2] if not colour else pixels.shape[0],
        "Columns": pixels.shape[-1] if not colour else pixels.shape[1],
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        "PlanarConfiguration": 0 if colour else None,
        "NumberOfFrames": frames,
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": int(str(attributes.get("BitsStored", bits))) - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": pixels.tobytes(),
    }
    for keyword, value in {**values, **attributes}.items():
        if value is not None:
            setattr(data, keyword, value)
    data.file_meta.MediaStorageSOPInstanceUID = UID(str(data.get("SOPInstanceUID", "1.2.3")))
    data.file_meta.MediaStorageSOPClassUID = CTImageStorage
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def outcome(path: Path, size_px: int = 16, channels: int = 1, **recipe: Any) -> Instance | Rejection:
    """What the intake makes of a file."""
    return instance_of(path, Recipe(size_px, channels, **recipe), Pseudonyms(KEY))


def images(path: Path, size_px: int = 16, channels: int = 1, **recipe: Any) -> NDArray[np.float64]:
    """The images of a usable file, in [0, 1]."""
    result = outcome(path, size_px, channels, **recipe)
    assert isinstance(result, Instance), result
    return result.images / 65535


def reason(path: Path, **recipe: Any) -> str:
    """Why a file is refused."""
    result = outcome(path, **recipe)
    assert isinstance(result, Rejection)
    return result.reason
