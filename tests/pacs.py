"""A real PACS for tests: Debian's Orthanc with its DICOMweb plug-in, on ports of the system's choice, loopback only."""

from __future__ import annotations

import datetime as dt
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydicom.uid import (
    ComputedRadiographyImageStorage,
    CTImageStorage,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    UltrasoundImageStorage,
)
from tests.client.intake.dicom_files import write_dicom

from orthanc import Orthanc, installed
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.labels_csv import KEY_COLUMNS

KINDS = (
    ("CT", ExplicitVRLittleEndian),
    ("MR", RLELossless),
    ("CR", JPEGLSLossless),
    ("CT", JPEG2000Lossless),
    ("US", ExplicitVRLittleEndian),
)
CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "US": UltrasoundImageStorage,
}
NEEDED = "Debian's packages orthanc and orthanc-dicomweb are not installed"


def skip_without_orthanc() -> None:
    if not installed():
        pytest.skip(NEEDED)


@contextmanager
def running_orthanc(folder: Path, **settings: object) -> Iterator[Orthanc]:
    """One with these settings, for a fixture of a module."""
    skip_without_orthanc()
    running = Orthanc(folder, settings)
    running.start()
    try:
        yield running
    finally:
        running.kill()


def settings_toml(home: Path, **pacs: object) -> None:
    """Write [pacs] into a home's hospital.toml."""
    text = (home / "hospital.toml").read_text().partition("\n[pacs]")[0]
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in pacs.items())
    (home / "hospital.toml").write_text(f"{text}\n[pacs]\n{lines}")


def store_of(folder: Path) -> list[Path]:
    """The DICOM files below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".csv")


def environment() -> dict[str, str]:
    """For a process of a test."""
    return {**os.environ, "FLWR_TELEMETRY_ENABLED": "0"}


def phantoms(folder: Path, patients: int = 3, series: int = len(KINDS)) -> Path:
    """Studies of several modalities, series and transfer syntaxes, each object at STUDY/SERIES/OBJECT, a labels.csv of
    the patients beside them, and one patient whom the labels do not name. series: of each patient."""
    for p in range(patients + 1):
        for number, (modality, syntax) in enumerate(KINDS[:series]):
            study, of = f"1.2.826.{p + 1}.{number // 2}", f"1.2.826.{p + 1}.{number // 2}.{number}"
            for i in range(1 + (p + number) % 3):
                pixels = np.add.outer(np.arange(96), np.arange(64) * (1 + i)).astype(np.uint16) * (7 + number + p)
                path = folder / study / of / f"{of}.{i + 1}"
                write_dicom(
                    path, pixels, PatientID=f"PAT-{p}", StudyInstanceUID=study, SeriesInstanceUID=of,
                    SOPInstanceUID=path.name, Modality=modality, AccessionNumber=f"ACC-{p}-{number // 2}",
                    SOPClassUID=CLASSES[modality], BitsStored=16,
                )  # fmt: skip
                data = pydicom.dcmread(path)
                data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
                if syntax is not ExplicitVRLittleEndian:
                    data.compress(syntax, generate_instance_uid=False)
                data.save_as(path)
    lines = "".join(f"PAT-{p},{'ab'[p % 2]}\n" for p in range(patients))
    (folder / "labels.csv").write_text(f"PatientID,finding\n{lines}")
    return folder


def named_by(labels: Path, store: Path, into: Path) -> Path:
    """The folder that a person would make who copied what a worklist names by hand."""
    table = CsvFile.open(labels)
    key = next(column for column in table.columns if column in KEY_COLUMNS)
    wanted = {row.cells[key] for row in table.rows() if row.cells}
    for file in store_of(store):
        data = pydicom.dcmread(file, stop_before_pixels=True)
        if str(data.get(key, "")) in wanted:
            place = into / data.StudyInstanceUID / data.SeriesInstanceUID / data.SOPInstanceUID
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, place)
    return into


def content(cohort: Path) -> tuple[bytes, list[tuple[object, ...]]]:
    """The rows, byte for byte, and what the index says of them; neither the time nor the way by which they came."""
    questions = (
        "SELECT instance, study, patient, first_row, rows, manufacturer FROM instances ORDER BY first_row",
        "SELECT id, pseudonym, erased FROM patients ORDER BY id",
        "SELECT patient, subject, name, value FROM labels JOIN label_columns ON position = column ORDER BY 1, 2, 3",
        "SELECT name, value FROM meta ORDER BY name",
    )
    with closing(sqlite3.connect(cohort / "index.sqlite")) as index:
        rows = [row for question in questions for row in index.execute(question)]
    return (cohort / "inputs.bin").read_bytes(), rows


class TlsFiles(NamedTuple):
    authority: Path
    certificate: Path
    key: Path


def tls_files(folder: Path) -> TlsFiles:
    """An authority, and a certificate of it for localhost with its key (0600)."""
    folder.mkdir(parents=True)
    made = TlsFiles(folder / "ca.pem", folder / "certificate.pem", folder / "key.pem")
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{folder.name} {word}")]) for word in ("CA", "PACS")]
    now = dt.datetime.now(dt.UTC)
    for name, key, file, authority in zip(names, keys, made[:2], (True, False), strict=True):
        builder = x509.CertificateBuilder(names[0], name, key.public_key(), x509.random_serial_number())
        builder = builder.not_valid_before(now - dt.timedelta(days=1)).not_valid_after(now + dt.timedelta(days=1))
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        host = x509.SubjectAlternativeName([x509.DNSName("localhost")])
        builder = builder.add_extension(host, critical=False)
        file.write_bytes(builder.sign(keys[0], hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    made.key.write_bytes(keys[1].private_bytes(serialization.Encoding.PEM, *form))
    made.key.chmod(0o600)
    return made
