"""A file -> keyed hashes, small images, the scanner's maker. What is not in `Instance` does not leave this module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from wardround_client.intake.dicom.attributes import UnusableError, quiet
from wardround_client.intake.dicom.header import Header, read
from wardround_client.intake.dicom.pixels import images_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import DEFAULTS, Instance, Rejection, Rules


def instance_of(
    path: Path, recipe: ImageRecipe, pseudonyms: Pseudonyms, rules: Rules = DEFAULTS, *, least_side_px: int = 1
) -> Instance | Rejection:
    """Read, hash and render one file; whatever is wrong with it becomes a Rejection.

    least_side_px: what has fewer pixels on a side is refused. Raises: OSError, MemoryError.
    """
    try:
        with quiet():
            header = read(path, recipe, rules)
            if min(header.rows, header.columns) < least_side_px:
                return Rejection(f"fewer than {least_side_px} pixels on a side", f"{header.rows} x {header.columns}")
            return made_of(header, pseudonyms, pseudonyms.instance(header.identity.instance), images_of(header, recipe))
    except UnusableError as unusable:
        return unusable.rejection
    except (OSError, MemoryError):
        raise
    except Exception as error:  # last resort: a file must never end an ingest
        return Rejection("DICOM data set is damaged", repr(error)[:500])


def made_of(header: Header, pseudonyms: Pseudonyms, instance: bytes, rows: NDArray[Any]) -> Instance:
    """What is kept of rows that were made of a file, or of several of one patient and study, of which this is one."""
    who = header.identity
    return Instance(
        patient=pseudonyms.patient(who.patient_id, who.issuer),
        bare=pseudonyms.patient(who.patient_id),
        study=pseudonyms.named("StudyInstanceUID", who.study),
        series=pseudonyms.named("SeriesInstanceUID", who.series),
        accession=pseudonyms.named("AccessionNumber", who.accession),
        instance=instance,
        rows=rows,
        manufacturer=header.manufacturer,
        modality=header.kind.named[0],
        kind=header.kind.named,
        person=pseudonyms.named("person", who.person),
    )
