"""Tasks whose examples are several files, out of a PACS: volumes, and images with their segmentations."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path

import pydicom
import pytest
from tests.client.intake.dicom_files import KEY
from tests.client.intake.test_pull_lies import Inline, edited
from tests.liar import Exchange, lying, on
from tests.pacs import content, phantoms

from wardround.task import Task
from wardround_client.config import Pacs
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.recipe import recipe_of
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.sources.dicomweb import DicomWebSource
from wardround_client.intake.summary import IngestSummary

VOLUMES = Task(label_column="finding", classes=("a", "b"), kind="volume", depth=4, image_size_px=16)
MASKS = Task(label_column="mask", classes=("none", "Liver"), labels="mask", image_size_px=32)


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_source, "Line", Inline)
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)


def pulled(home: Path, url: str, labels: Path, task: Task) -> IngestSummary:
    source = DicomWebSource(Asked(url, labels, task=task, home=home), Pacs(url=url, attempts=1))
    with closing(source):
        summary = ingest(source, home / "cohort", recipe_of(task), key=KEY, workers=0)
        source.ended()
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    return summary


def from_folder(folder: Path, cohort: Path, labels: Path | None, task: Task) -> IngestSummary:
    source = DicomFolder(Asked(str(folder), labels, task=task), DicomFolder.Settings())
    return ingest(source, cohort, recipe_of(task), key=KEY, workers=0)


def slices(folder: Path) -> Path:
    """Phantoms as series of slices, 3 mm apart."""
    store = phantoms(folder, patients=2)
    for file in store.rglob("*.*"):
        if file.suffix != ".csv" and file.is_file():
            data = pydicom.dcmread(file)
            data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [1, 1]
            data.ImagePositionPatient = [0, 0, 3 * int(file.name.rpartition(".")[2])]
            data.save_as(file)
    return store


def test_a_series_of_a_pacs_is_the_volume_of_the_folder(tmp_path: Path) -> None:
    store = slices(tmp_path / "studies")
    labels = store / "labels.csv"
    with lying(store) as pacs:
        summary = pulled(tmp_path / "home", pacs.url, labels, VOLUMES)
        named = tmp_path / "named"
        for study in store.glob("1.2.826.[12].*"):
            shutil.copytree(study, named / study.name)
        folder = from_folder(named, tmp_path / "cohort", labels, VOLUMES)
        assert summary.used == folder.used > 0
        assert content(tmp_path / "home" / "cohort") == content(tmp_path / "cohort")
        asked = len(pacs.asked)
        again = pulled(tmp_path / "home", pacs.url, labels, VOLUMES)
        assert again.added == 0 and again.images == summary.images
        fetched = [path for path in pacs.asked[asked:] if "includefield" not in path]
        assert len(fetched) < asked, "whole studies are not fetched again"
        pacs.lies = [on(False, _of_another)]
        lied = pulled(tmp_path / "other", pacs.url, labels, VOLUMES)
        assert lied.used == 0 and set(lied.reasons) <= {"the PACS gave another object than was asked for"}


def _of_another(exchange: Exchange) -> None:
    exchange.parts = [edited(part, PatientID="PAT-9") for part in exchange.parts]


def test_a_segmentation_of_a_pacs_marks_its_images(tmp_path: Path, shared_data: Path) -> None:
    studies, labels = tmp_path / "studies", tmp_path / "worklist.csv"
    for file in sorted((shared_data / "dicom" / "ct_liver_seg").glob("*.dcm")):
        if file.name == "seg_partial_overlaps.dcm":
            continue
        data = pydicom.dcmread(file, stop_before_pixels=True)
        place = studies / data.StudyInstanceUID / data.SeriesInstanceUID / data.SOPInstanceUID
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    labels.write_text(f"StudyInstanceUID\n{data.StudyInstanceUID}\n")
    with lying(studies) as pacs:
        summary = pulled(tmp_path / "home", pacs.url, labels, MASKS)
    assert summary.used == from_folder(studies, tmp_path / "cohort", None, MASKS).used > 0
    assert content(tmp_path / "home" / "cohort") == content(tmp_path / "cohort")
