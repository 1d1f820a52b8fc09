"""Synthetic hospitals: real DICOM files, really different, always the same, and said to be what they are."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import validate_file_meta
from tests.intake import ingest_dicom

from wardround.errors import ConfigError, StorageError
from wardround_client.cohort.store import CohortStore
from wardround_simulation.phantoms import FINDINGS, TASKS, make_profiles, write_hospital, write_small_hospital
from wardround_simulation.phantoms.cohort import quotas

KEY = b"a secret of thirty-two bytes, ok"
Files = dict[Path, pydicom.FileDataset]


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hospital with all three modalities."""
    folder = tmp_path_factory.mktemp("hospital")
    write_small_hospital(folder, patients=30, seed=5)
    return folder


@pytest.fixture(scope="module")
def images(hospital: Path) -> Files:
    return {path: pydicom.dcmread(path) for path in sorted((hospital / "dicom").rglob("*")) if path.is_file()}


def digest(folder: Path) -> str:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [str(path.relative_to(folder)).encode() + path.read_bytes() for path in found]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def table(labels: Path) -> tuple[str, dict[str, dict[str, str]]]:
    """The key column, and key -> row."""
    with labels.open(encoding="utf-8") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    assert reader.fieldnames is not None
    key = reader.fieldnames[0]
    return key, {row[key]: row for row in rows}


def test_the_same_profile_always_writes_the_same_bytes(tmp_path: Path) -> None:
    profile = make_profiles(1, patients=(8, 8), seed=2)[0]
    write_hospital(profile, tmp_path / "one")
    write_hospital(profile, tmp_path / "two")
    write_hospital(dataclasses.replace(profile, seed=profile.seed + 1), tmp_path / "other")
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert digest(tmp_path / "one") != digest(tmp_path / "other")


def test_more_hospitals_leave_the_first_as_they_are() -> None:
    assert make_profiles(9, seed=4)[:3] == make_profiles(3, seed=4)
    assert make_profiles(3, seed=4) != make_profiles(3, seed=5)


def test_hospitals_differ_in_all_that_hospitals_differ_in() -> None:
    profiles = make_profiles(40, seed=0)
    assert len({profile.name for profile in profiles}) == 40
    for one, other in combinations(profiles[:9], 2):
        assert one.prevalence != other.prevalence
        assert [s.noise for s in one.scanners] != [s.noise for s in other.scanners]
        assert [s.model for s in one.scanners] != [s.model for s in other.scanners]
    scanners = [scanner for profile in profiles[:9] for scanner in profile.scanners]
    assert {scanner.modality for scanner in scanners} == {"CT", "MR", "CR"}
    assert len({scanner.manufacturer for scanner in scanners}) >= 4
    assert {scanner.bits_stored for scanner in scanners} >= {8, 10, 12, 16}
    assert {scanner.signed for scanner in scanners} == {True, False}
    assert len({(scanner.slope, scanner.intercept) for scanner in scanners}) >= 5
    assert {scanner.monochrome1 for scanner in scanners if scanner.modality == "CR"} == {0.0, 0.3, 1.0}
    assert len({scanner.spacing_mm for scanner in scanners}) == len(scanners)
    assert {scanner.storage for scanner in scanners} == {"explicit", "implicit", "rle", "jpeg-ls"}
    assert {profile.label_key for profile in profiles[:9]} == {"PatientID", "StudyInstanceUID", "SOPInstanceUID"}
    assert max(p.patients for p in profiles[:9]) > 2 * min(p.patients for p in profiles[:9])
    assert all(0.9 * p.patients - 1 <= p.declared_patients <= p.patients for p in profiles)
    assert all(min(p.prevalence) >= 0.1 and abs(sum(p.prevalence) - 1) < 1e-9 for p in profiles)


@pytest.mark.parametrize(("n", "patients"), [(0, (60, 220)), (2, (3, 10)), (2, (20, 10))])
def test_impossible_hospitals_are_refused(n: int, patients: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="Allowed"):
        make_profiles(n, patients=patients)


@given(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.integers(4, 500),
)
@settings(deadline=None)
def test_every_class_has_a_patient_and_nobody_is_lost(weights: list[float], patients: int) -> None:
    prevalence = tuple(weight / sum(weights) for weight in weights)
    counts = quotas(prevalence, patients)
    assert counts.sum() == patients
    assert counts.min() >= 1
    if patients >= 40 and min(prevalence) * patients >= 1:
        assert np.abs(counts - np.array(prevalence) * patients).max() <= 1


def test_files_are_valid_dicom_that_names_patients(images: Files) -> None:
    assert {str(ds.Modality) for ds in images.values()} == {"CT", "MR", "CR"}
    assert len({ds.SOPInstanceUID for ds in images.values()}) == len(images)
    for path, ds in images.items():
        validate_file_meta(ds.file_meta)
        assert ds.file_meta.MediaStorageSOPInstanceUID == ds.SOPInstanceUID
        assert ds.file_meta.MediaStorageSOPClassUID == ds.SOPClassUID
        assert ds.SOPClassUID.name.startswith({"CR": "Computed Radiography"}.get(ds.Modality, ds.Modality))
        assert all((ds.SOPInstanceUID.is_valid, ds.StudyInstanceUID.is_valid, ds.SeriesInstanceUID.is_valid)), path
        assert all((ds.PatientID, ds.PatientName, ds.PatientBirthDate, ds.InstitutionName, ds.AccessionNumber))
        assert ds.pixel_array.shape == (ds.Rows, ds.Columns)


def test_a_patient_has_one_to_eight_images_in_one_or_two_studies(images: Files) -> None:
    each = Counter(str(ds.PatientID) for ds in images.values())
    assert len(each) == 30
    assert set(each.values()) <= set(range(1, 9))
    assert max(each.values()) > 1
    studies = {(str(ds.PatientID), str(ds.StudyInstanceUID)) for ds in images.values()}
    assert set(Counter(patient for patient, _ in studies).values()) == {1, 2}
    of_study: dict[str, set[str]] = {}
    for ds in images.values():
        of_study.setdefault(str(ds.StudyInstanceUID), set()).add(str(ds.Modality))
    assert all(len(modalities) == 1 for modalities in of_study.values())


def test_a_patient_is_born_once(images: Files) -> None:
    people: dict[str, set[tuple[str, str]]] = {}
    for ds in images.values():
        people.setdefault(str(ds.PatientID), set()).add((ds.PatientBirthDate, ds.PatientSex))
    assert all(len(of_patient) == 1 for of_patient in people.values())


def test_ct_is_in_hounsfield_units(images: Files) -> None:
    for ds in images.values():
        if ds.Modality == "CT":
            hounsfield = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
            assert abs(np.median(hounsfield[:6]) + 1000) < 30  # the air around the patient
            assert 300 < np.quantile(hounsfield, 0.999) < 900  # bone


def test_monochrome1_stores_the_same_picture_inverted(tmp_path: Path) -> None:
    profile = next(p for p in make_profiles(9, patients=(6, 6)) if p.modalities.keys() == {"CR", "CT"})
    cr = dataclasses.replace(next(s for s in profile.scanners if s.modality == "CR"), share=1.0, storage="explicit")
    stored = []
    for chance in (0.0, 1.0):
        scanner = dataclasses.replace(cr, monochrome1=chance)
        write_hospital(dataclasses.replace(profile, scanners=(scanner,)), tmp_path / str(chance))
        path = next(path for path in sorted((tmp_path / str(chance) / "dicom").rglob("*")) if path.is_file())
        stored.append(pydicom.dcmread(path))
    plain, inverted = stored
    assert (plain.PhotometricInterpretation, inverted.PhotometricInterpretation) == ("MONOCHROME2", "MONOCHROME1")
    total = plain.pixel_array.astype(int) + inverted.pixel_array
    assert np.abs(total - (2**cr.bits_stored - 1)).max() <= 1


@pytest.mark.parametrize("index", range(6))
def test_every_hospital_comes_through_the_intake_whole(index: int, tmp_path: Path) -> None:
    profile = make_profiles(6, patients=(8, 8), seed=1)[index]
    told: list[tuple[int, int]] = []
    labels = write_hospital(profile, tmp_path / "in", progress=lambda done, total: told.append((done, total)))
    summary = ingest_dicom(tmp_path / "in", tmp_path / "out", key=KEY, size=32, labels=labels)
    written = sum(path.is_file() for path in (tmp_path / "in" / "dicom").rglob("*"))
    assert told[-1] == (written, written)
    assert (summary.used, summary.quarantined, summary.unlabelled, summary.unmatched) == (written, 0, 0, 0)
    assert summary.patients == profile.patients
    store = CohortStore.open(tmp_path / "out", withdrawn=())
    assert store.label_columns == tuple(TASKS)
    spread = store.inputs[:].reshape(len(store.inputs), -1).std(axis=1) / 65535
    assert spread.min() > 0.05  # no image lost its contrast on the way


def test_labels_hold_every_task_and_follow_the_patient(hospital: Path, images: Files) -> None:
    key, rows = table(hospital / "labels.csv")
    assert set(rows) == {str(ds[key].value) for ds in images.values()}
    of_patient: dict[str, set[tuple[str, ...]]] = {}
    for ds in images.values():
        row = rows[str(ds[key].value)]
        of_patient.setdefault(str(ds.PatientID), set()).add(tuple(row[task] for task in TASKS))
    assert all(len(labels) == 1 for labels in of_patient.values())
    assert {row["finding"] for row in rows.values()} == set(FINDINGS)
    for row in rows.values():
        assert all(row[task] in classes for task, classes in TASKS.items())
        assert row["malignant"] == "no" or row["finding"] == "nodule"
        assert row["urgent"] == "no" or row["finding"] != "normal"


def test_a_folder_that_cannot_be_written_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file stands where the folder should be")
    with pytest.raises(StorageError, match="choose another folder"):
        write_small_hospital(tmp_path / "taken", patients=8)
