"""Tasks whose examples are several files, out of a PACS: volumes, and images with their segmentations."""

from __future__ import annotations

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pydicom
import pytest
from pydicom.dataset import Dataset
from tests.client.intake.dicom_files import KEY
from tests.client.intake.report_files import finding, image, reference, report, write_report
from tests.client.intake.test_pull_lies import Inline, edited
from tests.liar import Exchange, lying, on
from tests.pacs import content, named_by, phantoms, running_orthanc, store_of

from wardround.task import Task
from wardround_client.config import Pacs
from wardround_client.intake import workers
from wardround_client.intake.ingest import ingest
from wardround_client.intake.pacs import source as pacs_source
from wardround_client.intake.pacs.items import ANOTHER
from wardround_client.intake.recipe import recipe_of
from wardround_client.intake.reported import From
from wardround_client.intake.source import Asked
from wardround_client.intake.sources.dicom_folder import DicomFolder
from wardround_client.intake.sources.dicomweb import DicomWebSource
from wardround_client.intake.summary import IngestSummary

VOLUMES = Task(label_column="finding", classes=("a", "b"), kind="volume", depth=4, image_size_px=16)
Pool = workers._Pool
MASKS = Task(label_column="mask", classes=("none", "Liver"), labels="mask", image_size_px=32)


@pytest.fixture(autouse=True)
def _inline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacs_source, "Line", Inline)
    monkeypatch.setattr(pacs_source, "pause", lambda seconds: None)


def pulled(home: Path, url: str, labels: Path, task: Task, labels_from: From | None = None) -> IngestSummary:
    source = DicomWebSource(Asked(url, labels, task=task, home=home), Pacs(url=url, attempts=1), labels_from)
    with closing(source):
        summary = ingest(source, home / "cohort", recipe_of(task), key=KEY, workers=0)
        source.ended()
    assert [path.name for path in (home / "spool").iterdir()] == ["lock"]
    return summary


def from_folder(
    folder: Path, cohort: Path, labels: Path | None, task: Task, labels_from: From | None = None
) -> IngestSummary:
    source = DicomFolder(Asked(str(folder), labels, task=task), DicomFolder.Settings(labels_from=labels_from))
    return ingest(source, cohort, recipe_of(task), key=KEY, workers=0)


def slices(folder: Path, patients: int = 2, series: int = 4) -> Path:
    """Phantoms as series of slices, 3 mm apart."""
    store = phantoms(folder, patients, series)
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
        assert all("includefield" in path for path in pacs.asked[asked:]), "nothing is fetched again"
        pacs.lies = [on(False, _of_another)]
        lied = pulled(tmp_path / "other", pacs.url, labels, VOLUMES)
        assert lied.used == 0 and set(lied.reasons) == {ANOTHER}


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
        asked = len(pacs.asked)
        pulled(tmp_path / "home", pacs.url, labels, MASKS)
        assert all("includefield" in path for path in pacs.asked[asked:]), "nothing is fetched again"
    assert summary.used == from_folder(studies, tmp_path / "cohort", None, MASKS).used > 0
    assert content(tmp_path / "home" / "cohort") == content(tmp_path / "cohort")


REPORTED = Task(label_column="finding", classes=("stroke", "tumour"), image_size_px=16)


def reported(folder: Path) -> Path:
    """Phantoms with structured reports: one speaks of an image of another study, a later one replaces it; one says
    nothing of the task, one is of somebody whom the worklist does not name."""
    store = phantoms(folder, patients=2, series=3)
    first, other = "1.2.826.1.0.0.1", "1.2.826.1.1.2.1"
    for uid, patient, study, below in (
        ("1.2.9.1", "PAT-0", "1.2.826.1.1", finding("stroke", image(first), image(other))),
        ("1.2.9.2", "PAT-0", "1.2.826.1.0", finding("tumour", image(first))),
        ("1.2.9.3", "PAT-1", "1.2.826.2.0", finding("gout")),
        ("1.2.9.4", "PAT-2", "1.2.826.3.0", finding("stroke")),
    ):
        made = report(below)
        if uid == "1.2.9.2":
            study_of, series_of = Dataset(), Dataset()
            series_of.ReferencedSOPSequence = [reference("1.2.9.1")]
            study_of.ReferencedSeriesSequence = [series_of]
            made.PredecessorDocumentsSequence = [study_of]
        write_report(store / study / f"{study}.99" / uid, made, uid=uid, patient=patient, study=study)
    (store / "labels.csv").write_text("PatientID\nPAT-0\nPAT-1\n")
    return store


def test_reports_of_a_pacs_are_the_labels_of_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also across the studies of a patient; one pool of processes looks into the files of all patients."""
    pools: list[object] = []

    def counted(*arguments: Any) -> Any:
        pools.append(arguments)
        return Pool(*arguments)

    monkeypatch.setattr(workers, "_Pool", counted)
    store = reported(tmp_path / "studies")
    labels = store / "labels.csv"
    with lying(store) as pacs:
        summary = pulled(tmp_path / "home", pacs.url, labels, REPORTED, "sr")
        assert len(pools) == 1
        named_by(labels, store, tmp_path / "named")
        folder = from_folder(tmp_path / "named", tmp_path / "cohort", None, REPORTED, "sr")
        assert (
            (summary.used, summary.labels)
            == (folder.used, folder.labels)
            == (summary.images, {"finding": {"tumour": 1}})
        )
        assert summary.reasons == folder.reasons
        assert content(tmp_path / "home" / "cohort") == content(tmp_path / "cohort")
        asked = len(pacs.asked)
        again = pulled(tmp_path / "home", pacs.url, labels, REPORTED, "sr")
        assert all("includefield" in path for path in pacs.asked[asked:]), "nothing is fetched again"
        assert again.labels == summary.labels


def test_labels_come_from_the_segmentations_that_a_real_pacs_holds(tmp_path: Path, shared_data: Path) -> None:
    files = shared_data / "dicom" / "ct_liver_seg"
    task = Task(label_column="diagnosis", classes=("liver", "artery", "vein"), labels="several", image_size_px=8)
    study = pydicom.dcmread(next(files.glob("*.dcm")), stop_before_pixels=True).StudyInstanceUID
    (tmp_path / "worklist.csv").write_text(f"StudyInstanceUID\n{study}\n")
    with running_orthanc(tmp_path / "pacs") as pacs:
        pacs.load(store_of(files))
        summary = pulled(tmp_path / "home", pacs.url, tmp_path / "worklist.csv", task, "seg")
    assert summary.labels == from_folder(files, tmp_path / "cohort", None, task, "seg").labels
    assert content(tmp_path / "home" / "cohort") == content(tmp_path / "cohort")
