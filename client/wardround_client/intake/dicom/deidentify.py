"""A file -> keyed hashes, small images, the scanner's maker. What is not in `Instance` does not leave this module."""

from __future__ import annotations

import hashlib
import hmac
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from wardround_client.intake.dicom.pixels import images_of
from wardround_client.intake.dicom.read import Recipe, Rejection, UnusableError, quiet, read, text

NO_MEMORY = Rejection("not enough memory for Pixel Data (7FE0,0010)")


@dataclass(frozen=True)
class Pseudonyms:
    """HMAC-SHA256 with the hospital's secret (RFC 2104); a domain word keeps the kinds of identifier apart.

    Without the key a pseudonym can neither be undone nor recomputed from a guessed PatientID.
    """

    key: bytes

    def of(self, domain: str, value: str) -> bytes:
        """Pseudonym, bytes [32]; the same for values that differ only in Unicode form or DICOM padding (PS3.5 6.2)."""
        return self.exact(domain, unicodedata.normalize("NFC", value).strip().strip("\0").strip())

    def exact(self, domain: str, value: str) -> bytes:
        """As `of`, letter by letter: the names of two files, and two rows, may look alike."""
        return hmac.digest(self.key, f"{domain}\0{value}".encode("utf-8", "surrogateescape"), hashlib.sha256)

    def patient(self, patient_id: str) -> bytes:
        """Pseudonym of a Patient ID (0010,0020)."""
        return self.of("PatientID", patient_id)

    def study(self, uid: str) -> bytes:
        """Keyed hash of a Study Instance UID (0020,000D)."""
        return self.of("StudyInstanceUID", uid)

    def instance(self, uid: str) -> bytes:
        """Keyed hash of a SOP Instance UID (0008,0018)."""
        return self.of("SOPInstanceUID", uid)


@dataclass(frozen=True)
class Instance:
    """What is kept of one file.

    patient, study, instance: keyed hashes, bytes [32]; study is b"" when the file names none.
    images: uint16 [frames, channels, S, S], scale 1/65535.
    manufacturer: of the scanner, as the file writes it; "" where it writes none that can be read.
    """

    patient: bytes
    study: bytes
    instance: bytes
    images: NDArray[np.uint16]
    manufacturer: str


def instance_of(path: Path, recipe: Recipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
    """Read, hash and render one file. Never raises: whatever is wrong with the file becomes a Rejection."""
    try:
        with quiet():
            dataset = read(path, recipe)
            study = text(dataset, "StudyInstanceUID")
            return Instance(
                patient=pseudonyms.patient(text(dataset, "PatientID")),
                study=pseudonyms.study(study) if study else b"",
                instance=pseudonyms.instance(text(dataset, "SOPInstanceUID")),
                images=images_of(dataset, recipe),
                manufacturer=_manufacturer(dataset),
            )
    except UnusableError as unusable:
        return unusable.rejection
    except OSError as error:
        return Rejection("file cannot be read", error.strerror or "")
    except MemoryError:
        return NO_MEMORY
    except Exception as error:  # last resort: a file must never end an ingest
        return Rejection("DICOM data set is damaged", repr(error)[:500])


def _manufacturer(dataset: Dataset) -> str:
    try:
        return text(dataset, "Manufacturer")
    except UnusableError:  # the image is as good without it
        return ""
