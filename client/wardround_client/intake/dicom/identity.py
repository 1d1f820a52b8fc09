"""Whose a DICOM file is: the few attributes that say it, checked, to be hashed and not kept."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from wardround_client.config import PatientIds
from wardround_client.intake.dicom.attributes import UnusableError, named, quiet, refusing, text
from wardround_client.intake.pseudonyms import LOST

WHO = (
    "PatientID",
    "IssuerOfPatientID",
    "IssuerOfPatientIDQualifiersSequence",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "AccessionNumber",
    "PatientBirthDate",
    "PatientSex",
)
"""Read to be hashed with the hospital's key, and for nothing else."""

_UNSURE = "{} is not in the character set that the file names"
"""Then a letter that cannot be read is any letter, and two people would be one."""

_NOBODY = {
    *("anon", "anonym", "anonymous", "anonymized", "anonymised", "anonymizedpatient", "deidentified", "unknown", "unk"),
    *("none", "null", "nil", "na", "nn", "noid", "nopatientid", "patient", "patientid", "noname", "undefined"),
    *("notavailable", "removed", "deleted", "redacted", "empty", "blank", "unbekannt", "inconnu", "desconocido"),
}


@dataclass(frozen=True)
class Identity:
    """patient_id: as the file writes it. issuer: of other patients than the hospital's own, else "". study, series,
    accession: "" where there is none. person: birth date and sex, to notice several people under one PatientID; ""
    where one of them is missing.
    """

    patient_id: str
    issuer: str
    instance: str
    study: str
    series: str
    accession: str
    person: str

    @classmethod
    def of(cls, dataset: Dataset, ids: PatientIds) -> Identity:
        """Of a parsed file. Raises: UnusableError: no identity, or one of several values, or a placeholder."""
        one = {keyword: _one(dataset, keyword) for keyword in WHO[:1] + WHO[3:6]}
        for keyword in ("PatientID", "SOPInstanceUID"):
            if not one[keyword]:
                raise UnusableError(f"no {named(keyword)}")
        if not ids.allow_placeholders and is_placeholder(one["PatientID"]):
            raise UnusableError(f"{named('PatientID')} is a placeholder", one["PatientID"])
        issuer = _one(dataset, "IssuerOfPatientID") or _entity(dataset)
        born, sex = _text(dataset, "PatientBirthDate"), _text(dataset, "PatientSex")
        return cls(
            patient_id=one["PatientID"],
            issuer="" if issuer == ids.issuer.strip() else issuer,
            instance=one["SOPInstanceUID"],
            study=one["StudyInstanceUID"],
            series=one["SeriesInstanceUID"],
            accession=_text(dataset, "AccessionNumber"),
            person=f"{born}\0{sex}" if born and sex else "",
        )


def is_placeholder(patient_id: str) -> bool:
    """Whether a PatientID stands for nobody: ANONYMOUS, UNKNOWN, 0000, XXX, ---."""
    word = re.sub(r"[\W_]", "", patient_id.casefold())
    return word in _NOBODY or not word.strip("0") or not word.strip("x")


def _entity(dataset: Dataset) -> str:
    """Who assigned the PatientID where there is no plain name for them: Universal Entity ID (0040,0032)."""
    with refusing(f"{named('IssuerOfPatientIDQualifiersSequence')} cannot be read"):
        items = dataset.get("IssuerOfPatientIDQualifiersSequence")
        entity = str(items[0].get("UniversalEntityID", "") or "").strip() if items else ""
    if LOST in entity:
        raise UnusableError(_UNSURE.format(named("IssuerOfPatientIDQualifiersSequence")))
    return entity


def _one(dataset: Dataset, keyword: str) -> str:
    """Raises: UnusableError: there are several values, and each may be another person's, or another thing's."""
    value: Any
    with refusing(f"{named(keyword)} cannot be read"):
        value = dataset.get(keyword)
    if isinstance(value, list | MultiValue) and len(value) > 1:
        raise UnusableError(f"{named(keyword)} has several values", "\\".join(map(str, value)))
    one = text(dataset, keyword)
    if LOST in one:
        raise UnusableError(_UNSURE.format(named(keyword)), one)
    return one


def _text(dataset: Dataset, keyword: str) -> str:
    try:
        value = dataset.get(keyword)
    except Exception:  # whatever a damaged value raises, it says nothing
        return ""
    several = value if isinstance(value, list | MultiValue) else [value]
    one = "\\".join(str(each).strip().strip("\0").strip() for each in several if each is not None)
    return "" if LOST in one else one


def series_of(path: Path) -> tuple[bytes, int] | None:
    """The patient and series of a file, hashed so that a table of all files is small, and the images in it; or None."""
    with quiet(), suppress(Exception):  # whatever is wrong with the file is said when it is read
        if not path.is_file():  # a pipe never ends
            return None
        found = pydicom.dcmread(
            path,
            stop_before_pixels=True,
            force=True,
            specific_tags=["PatientID", "SeriesInstanceUID", "NumberOfFrames"],
        )
        series = f"{found.PatientID}\0{found.SeriesInstanceUID}"
        return hashlib.blake2b(series.encode(), digest_size=16).digest(), max(1, int(found.get("NumberOfFrames") or 1))
    return None
