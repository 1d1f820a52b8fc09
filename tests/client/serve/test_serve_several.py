"""A model of images and one of volumes beside each other: each answers what it can, and neither keeps the other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
from tests.client.commands.test_studies_at_home import VOLUMES, write_series
from tests.client.personal.test_shared_model import model_of, write_release
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.served import settings, study
from tests.client.serve.test_serve_allowed import outcome

from wardround.cli import run
from wardround.config import load_federation


@pytest.fixture
def volumes(home: Path, tmp_path: Path) -> Path:
    """The home has a model of volumes too, of a hospital that has some."""
    rng, folder, lines = np.random.default_rng(0), tmp_path / "scans", ["PatientID,ill"]
    for patient in range(10):
        write_series(folder / "dicom", patient, rng, ill=patient % 2 == 1)
        lines.append(f"P{patient},{'yes' if patient % 2 else 'no'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "federation.toml").write_text(VOLUMES)
    agreed = load_federation(folder / "federation.toml")
    write_release(folder / "model", agreed, theta=model_of(agreed).initial().detach())
    there, federation = folder / "home", folder / "federation.toml"
    labelled = ("--labels", folder / "labels.csv", "--federation", federation)
    for command in (
        ("init", there, "--name", "there", "--patients", 10),
        ("ingest", there, folder / "dicom", *labelled, "--workers", 1),
        ("adapt", there, "--task", federation, "--model", folder / "model"),
    ):
        assert run(["hospital", *map(str, command)]) == 0
    shutil.copytree(folder / "home" / "adapted" / "volumes", home / "adapted" / "volumes")
    return home


def test_each_model_answers_what_it_can(volumes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, path in enumerate(study(FolderPacs.folder / "new", 5, images=6)):
        data = pydicom.dcmread(path)
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing = [1, 1]
        data.save_as(path)
    settings(volumes, {"url": "http://127.0.0.1:9"}, models=["lungs", "volumes"])
    assert outcome(volumes, monkeypatch) == ({"refused": 1, "sent": 3}, ["a series of one slice is no volume"])
    reports = sorted((str(each.StudyInstanceUID), str(each.ManufacturerModelName)) for each in FolderPacs.stored())
    assert reports == [("1.2.826.9.1", "lungs"), ("1.2.826.9.5", "lungs"), ("1.2.826.9.5", "volumes")]
    (scan,) = [each for each in FolderPacs.stored() if each.ManufacturerModelName == "volumes"]
    (of,) = scan.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
    assert len(of.ReferencedSOPSequence) == 6
