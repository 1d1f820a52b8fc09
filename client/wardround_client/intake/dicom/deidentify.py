"""A file -> keyed hashes, small images, the scanner's maker. What is not in `Instance` does not leave this module."""

from __future__ import annotations

from pathlib import Path

from pydicom.dataset import Dataset

from wardround_client.intake.dicom.pixels import images_of
from wardround_client.intake.dicom.read import UnusableError, quiet, read, text
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection


def instance_of(path: Path, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
    """Read, hash and render one file; whatever is wrong with it becomes a Rejection. Raises: OSError, MemoryError."""
    try:
        with quiet():
            dataset = read(path, recipe)
            study = text(dataset, "StudyInstanceUID")
            return Instance(
                patient=pseudonyms.patient(text(dataset, "PatientID")),
                study=pseudonyms.study(study) if study else b"",
                instance=pseudonyms.instance(text(dataset, "SOPInstanceUID")),
                rows=images_of(dataset, recipe),
                manufacturer=_manufacturer(dataset),
            )
    except UnusableError as unusable:
        return unusable.rejection
    except (OSError, MemoryError):
        raise
    except Exception as error:  # last resort: a file must never end an ingest
        return Rejection("DICOM data set is damaged", repr(error)[:500])


def _manufacturer(dataset: Dataset) -> str:
    try:
        return text(dataset, "Manufacturer")
    except UnusableError:  # the image is as good without it
        return ""
