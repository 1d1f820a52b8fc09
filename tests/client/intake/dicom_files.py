"""DICOM files made for tests: a few attributes with sensible values, each of which a test may replace or remove.

And what the intake makes of one file, or of a folder.
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, CTImageStorage, ExplicitVRLittleEndian, generate_uid
from tests.intake import ingest_dicom

from wardround_client.config import LeftOut, PatientIds, Select
from wardround_client.intake.dicom import instance_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection, Rules
from wardround_client.intake.summary import IngestSummary

KEY = bytes(range(32))
EVERYTHING = Rules(Select(allow=get_args(LeftOut)), PatientIds(allow_placeholders=True))


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


def write_patients(folder: Path, patients: int = 4, images: int = 3) -> Path:
    """`images` files of each patient, each file another picture, and a labels.csv; returns the folder."""
    for p in range(patients):
        for i in range(images):
            pixels = np.full((8, 8), (10 * p + i) % 251, np.uint8)
            pixels[0, 0] = 255
            write_dicom(
                folder / f"p{p}" / f"{i}.dcm", pixels, PatientID=f"PAT-{p}", StudyInstanceUID=f"1.9.{p}",
                SOPInstanceUID=f"1.8.{p}.{i}",
            )  # fmt: skip
    (folder / "labels.csv").write_text(
        "PatientID,finding\n" + "".join(f"PAT-{p},{'ab'[p % 2]}\n" for p in range(patients))
    )
    return folder


def ingest_folder(folder: Path, cohort: Path, labels: Path | None = None, **more: Any) -> IngestSummary:
    """Take a folder into a cohort; every file that was not used must be in the quarantine."""
    summary = ingest_dicom(folder, cohort, key=KEY, labels=labels, **more)
    assert summary.read == summary.used + summary.quarantined
    assert summary.quarantined == sum(summary.reasons.values()) == len(quarantine(cohort))
    return summary


def quarantine(cohort: Path) -> list[dict[str, str]]:
    """The lines of quarantine.csv."""
    with (cohort / "quarantine.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def outcome(path: Path, size_px: int = 16, channels: int = 1, **recipe: Any) -> Instance | Rejection:
    """What the intake makes of a file."""
    return instance_of(
        path, ImageRecipe(size_px, channels, **{"burned_in": "ignore", **recipe}), Pseudonyms(KEY), EVERYTHING
    )


def images(path: Path, size_px: int = 16, channels: int = 1, **recipe: Any) -> NDArray[np.float64]:
    """The images of a usable file, in [0, 1]."""
    result = outcome(path, size_px, channels, **recipe)
    assert isinstance(result, Instance), result
    return np.asarray(result.rows / 65535)


def reason(path: Path, **recipe: Any) -> str:
    """Why a file is refused."""
    result = outcome(path, **recipe)
    assert isinstance(result, Rejection)
    return result.reason
