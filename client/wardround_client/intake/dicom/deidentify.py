"""A file -> keyed hashes, small images, the scanner's maker. What is not in `Instance` does not leave this module."""

from __future__ import annotations

from pathlib import Path

from wardround_client.intake.dicom.attributes import UnusableError, quiet
from wardround_client.intake.dicom.header import read
from wardround_client.intake.dicom.pixels import images_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rejection


def instance_of(
    path: Path, recipe: ImageRecipe, pseudonyms: Pseudonyms, *, least_side_px: int = 1
) -> Instance | Rejection:
    """Read, hash and render one file; whatever is wrong with it becomes a Rejection.

    least_side_px: what has fewer pixels on a side is refused. Raises: OSError, MemoryError.
    """
    try:
        with quiet():
            header = read(path, recipe)
            if min(header.rows, header.columns) < least_side_px:
                return Rejection(f"fewer than {least_side_px} pixels on a side", f"{header.rows} x {header.columns}")
            return Instance(
                patient=pseudonyms.patient(header.patient_id),
                study=pseudonyms.study(header.study_uid) if header.study_uid else b"",
                instance=pseudonyms.instance(header.instance_uid),
                rows=images_of(header, recipe),
                manufacturer=header.manufacturer,
            )
    except UnusableError as unusable:
        return unusable.rejection
    except (OSError, MemoryError):
        raise
    except Exception as error:  # last resort: a file must never end an ingest
        return Rejection("DICOM data set is damaged", repr(error)[:500])
