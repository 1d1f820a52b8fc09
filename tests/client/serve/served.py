"""A hospital with an adapted model, new studies, and a PACS that takes results."""

from __future__ import annotations

import datetime as dt
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from tests.client.conftest import FEDERATION_TOML, HOSPITAL_TOML
from tests.client.intake.dicom_files import write_dicom
from tests.client.intake.test_pull_lies import Inline
from tests.client.personal.test_shared_model import model_of, write_release

from wardround.cli import run
from wardround.config import load_federation
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.serve import loop
from wardround_client.serve.loop import Server

TODAY = f"{dt.date.today():%Y%m%d}"


def adapted(folder: Path, cohort_of: Path) -> Path:
    """A home with the adapted model "lungs"."""
    shutil.copytree(cohort_of, folder / "home")
    (folder / "federation.toml").write_text(FEDERATION_TOML)
    agreed = load_federation(folder / "federation.toml")
    write_release(folder / "model", agreed, theta=model_of(agreed).initial().detach())
    given = ("--task", folder / "federation.toml", "--model", folder / "model", "--name", "lungs")
    assert run(["hospital", "adapt", str(folder / "home"), *map(str, given)]) == 0
    return folder / "home"


def settings(home: Path, pacs: dict[str, Any], **serve: Any) -> None:
    """Write hospital.toml. serve: of [serve], beside what a test usually wants."""
    serve = {"on": True, "models": ["lungs"], "settle_s": 0.0, "every_s": 1.0, **serve}
    parts = {"pacs": pacs, "serve": serve}
    lines = "".join(
        f"\n[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in part.items())
        for name, part in parts.items()
    )
    (home / "hospital.toml").write_text(HOSPITAL_TOML + lines)


def study(folder: Path, number: int, images: int = 1, **attributes: Any) -> list[Path]:
    """A new study of a patient, with an image a file."""
    uid, files = f"1.2.826.9.{number}", []
    for image in range(images):
        pixels = np.add.outer(np.arange(40) * (number % 5 + 1), np.arange(48) * (image + 2)).astype(np.uint16) + 900
        files.append(
            write_dicom(
                folder / uid / f"{image}", pixels, PatientID=f"NEW-{number}", PatientName=f"Neu^Person{number}",
                PatientSex="F", StudyInstanceUID=uid, SeriesInstanceUID=f"{uid}.1", SOPInstanceUID=f"{uid}.1.{image}",
                Modality="CT", StudyDate=TODAY, StudyTime="101500", AccessionNumber=f"A{number}", StudyID=f"S{number}",
                IssuerOfPatientID="WARD", ReferringPhysicianName="Doc^Tor", InstanceNumber=image + 1,
                WindowCenter=1000, WindowWidth=400, ImageType=["ORIGINAL", "PRIMARY", "AXIAL"], **attributes,
            )
        )  # fmt: skip
    return files


def server(home: Path, monkeypatch: pytest.MonkeyPatch | None = None) -> Server:
    """One that starts no process where a monkeypatch is given."""
    if monkeypatch is not None:
        monkeypatch.setattr(loop, "Line", Inline)
    return Server(Hospital.open(home, ledger=Ledger(None)), threading.Event(), workers=0)


def served(home: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    """All that can be done now -> whether nothing is left."""
    return server(home, monkeypatch).run(once=True)


def results(files: list[bytes]) -> dict[str, list[pydicom.Dataset]]:
    """By modality."""
    found: dict[str, list[pydicom.Dataset]] = {}
    for content in files:
        data = pydicom.dcmread(pydicom.filebase.DicomBytesIO(content))
        found.setdefault(data.Modality, []).append(data)
    return found
