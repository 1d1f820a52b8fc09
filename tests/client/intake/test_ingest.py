"""A folder of DICOM files and a labels CSV become a cohort: once, completely, and again after a crash."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from tests.client.intake.dicom_files import KEY, ingest_folder, quarantine, write_dicom, write_patients
from tests.intake import ingest_dicom

from wardround.errors import DataError, StorageError
from wardround_client.cohort.index import INDEX
from wardround_client.cohort.store import CohortStore
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_simulation.phantoms import make_profiles, write_hospital


def assert_same(one: Path, other: Path) -> None:
    a, b = CohortStore.open(one, withdrawn=()), CohortStore.open(other, withdrawn=())
    np.testing.assert_array_equal(a.inputs[:], b.inputs[:])
    np.testing.assert_array_equal(a.patients, b.patients)
    assert a.pseudonyms == b.pseudonyms and a.label_columns == b.label_columns
    assert a.manufacturers == b.manufacturers
    for column in a.label_columns:
        assert a.labels(column) == b.labels(column)


def test_a_folder_becomes_a_cohort(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = write_patients(tmp_path / "dicom")
    summary = ingest_folder(folder, tmp_path / "c", progress=lambda done, found: seen.append((done, found)))
    assert (summary.read, summary.used, summary.already, summary.added) == (12, 12, 0, 12)
    assert (summary.patients, summary.images, summary.unlabelled, summary.unmatched) == (4, 12, 0, 0)
    assert seen[-1] == (12, 12)
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert store.labels("finding") == [*"aaabbbaaabbb"]
    assert store.patients.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert store.pseudonyms[0] == Pseudonyms(KEY).patient("PAT-0")


def test_running_it_again_adds_nothing_and_new_files_are_appended(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom")
    ingest_folder(folder, tmp_path / "c")
    again = ingest_folder(folder, tmp_path / "c")
    assert (again.used, again.already, again.added) == (12, 12, 0)
    write_patients(folder, patients=5)  # writes the old files anew: same pictures, other times
    more = ingest_folder(folder, tmp_path / "c")
    assert (more.read, more.already, more.added, more.patients) == (15, 12, 3, 5)
    ingest_folder(folder, tmp_path / "clean")
    assert_same(tmp_path / "c", tmp_path / "clean")


def test_a_moved_folder_is_recognised_and_a_copy_beside_it_is_a_duplicate(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom")
    ingest_folder(folder, tmp_path / "c")
    moved = folder.rename(tmp_path / "moved")
    assert ingest_folder(moved, tmp_path / "c").already == 12
    (moved / "a-copy.dcm").write_bytes((moved / "p0" / "0.dcm").read_bytes())
    summary = ingest_folder(moved, tmp_path / "c")
    assert (summary.already, summary.reasons) == (12, {"duplicate SOP Instance UID (0008,0018)": 1})
    assert quarantine(tmp_path / "c")[0]["file"].endswith("a-copy.dcm")


def test_an_instance_whose_pixels_changed_has_the_new_ones_and_the_old_bytes_are_gone(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=2)
    ingest_folder(folder, tmp_path / "c")
    old = CohortStore.open(tmp_path / "c", withdrawn=()).inputs[0].tobytes()
    assert old in (tmp_path / "c" / "inputs.bin").read_bytes()
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write_dicom(folder / "p0" / "0.dcm", pixels, PatientID="PAT-0", SOPInstanceUID="1.8.0.0")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.already, summary.added, summary.images) == (5, 1, 6)
    assert old not in (tmp_path / "c" / "inputs.bin").read_bytes()


def test_the_number_of_workers_changes_nothing(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=12)
    (folder / "p3" / "note.txt").write_text("not an image")
    one, three = ingest_folder(folder, tmp_path / "one"), ingest_folder(folder, tmp_path / "three", workers=3)
    assert one == three and one.reasons == {"not DICOM": 1}
    assert_same(tmp_path / "one", tmp_path / "three")


CRASH = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from tests.intake import ingest_dicom
from wardround_client.cohort.writer import CohortWriter
from wardround_client.intake import ingest as module

module.BATCH_BYTES = 16 * 128
commits = 0
real = CohortWriter._commit

def commit(self):
    global commits
    commits += 1
    if commits == 3 and sys.argv[4] == "before":  # rows are appended, the index is not committed
        os.kill(os.getpid(), signal.SIGKILL)
    real(self)
    if commits == 3:
        os.kill(os.getpid(), signal.SIGKILL)

if __name__ == "__main__":
    CohortWriter._commit = commit
    ingest_dicom(Path(sys.argv[1]), Path(sys.argv[2]), key=bytes(range(32)), workers=int(sys.argv[3]))
"""


@pytest.mark.parametrize(("moment", "count"), [("before", 0), ("after", 2)])
def test_killed_in_the_middle_and_run_again_is_one_clean_run(tmp_path: Path, moment: str, count: int) -> None:
    folder = write_patients(tmp_path / "dicom", patients=20)
    script = tmp_path / "crash.py"
    script.write_text(CRASH)
    root = Path(__file__).parents[3]
    died = subprocess.run([sys.executable, script, folder, tmp_path / "c", str(count), moment, root], check=False)
    assert died.returncode == -signal.SIGKILL
    with pytest.raises(DataError, match="did not finish"):
        CohortStore.open(tmp_path / "c", withdrawn=())
    summary = ingest_folder(folder, tmp_path / "c")
    assert summary.already in (16, 32) and summary.used == 60
    ingest_folder(folder, tmp_path / "clean")
    assert_same(tmp_path / "c", tmp_path / "clean")


def test_a_full_disk_keeps_what_was_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_patients(tmp_path / "dicom", patients=60)
    real, calls = os.fsync, 0

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        real(handle)

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fsync)
        with pytest.raises(StorageError, match="No space left"):
            ingest_folder(folder, tmp_path / "c")
    assert ingest_folder(folder, tmp_path / "c").already == 128
    ingest_folder(folder, tmp_path / "clean")
    assert_same(tmp_path / "c", tmp_path / "clean")


def test_nothing_that_identifies_is_on_disk(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    pixels = np.arange(64, dtype=np.uint8).reshape(8, 8)
    write_dicom(
        folder / "a.dcm", pixels, PatientID="SECRET-77", StudyInstanceUID="1.2.777.1", SOPInstanceUID="1.2.777.2"
    )
    (folder / "labels.csv").write_text("SOPInstanceUID,finding\n1.2.777.2,yes\n")
    ingest_folder(folder, tmp_path / "c")
    for file in (tmp_path / "c").iterdir():
        content = file.read_bytes()
        for secret in (b"SECRET-77", b"1.2.777", b"Doe", b"Jane", b"19500102", str(tmp_path).encode(), KEY):
            assert secret not in content, (file, secret)


@pytest.mark.parametrize("key", ["PatientID", "StudyInstanceUID", "SOPInstanceUID"])
def test_labels_by_any_key_and_images_without_one_are_counted(tmp_path: Path, key: str) -> None:
    folder = write_patients(tmp_path / "dicom", patients=2)
    value = {"PatientID": "PAT-1", "StudyInstanceUID": "1.9.1", "SOPInstanceUID": "1.8.1.0"}[key]
    (folder / "labels.csv").write_text(f"{key},finding,side\n{value},nodule,\nnobody,x,y\n")
    summary = ingest_folder(folder, tmp_path / "c")
    labelled = 1 if key == "SOPInstanceUID" else 3
    assert (summary.unlabelled, summary.unmatched, summary.unmatched_lines) == (6 - labelled, 1, (3,))
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert store.label_columns == ("finding", "side")
    assert store.labels("finding").count("nodule") == labelled and store.labels("side") == [None] * 6


def test_corrected_labels_replace_and_the_most_particular_wins(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=2)
    ingest_folder(folder, tmp_path / "c")
    corrected = tmp_path / "corrected.csv"
    corrected.write_text("PatientID,finding\nPAT-0,\nPAT-1,c\n")
    assert ingest_folder(folder, tmp_path / "c", corrected).unlabelled == 3
    corrected.write_text("SOPInstanceUID,finding\n1.8.1.2,d\n")
    ingest_folder(folder, tmp_path / "c", corrected)
    assert CohortStore.open(tmp_path / "c", withdrawn=()).labels("finding") == [None, None, None, "c", "c", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("PatientID,finding\n", "holds no rows"),
        ("Patient,finding\nPAT-0,a\n", "exactly one key column"),
        ("PatientID|finding\nPAT-0|a\n", r"PatientID\|finding"),
        ("PatientID,StudyInstanceUID,finding\nPAT-0,1,a\n", "PatientID and StudyInstanceUID"),
        ("PatientID\nPAT-0\n", "no label column"),
        ("PatientID,finding,finding\nPAT-0,a,b\n", "two have the same"),
        ("PatientID,PatientName\nPAT-0,Doe\n", "PatientName describes the patient"),
        ("PatientID,finding\nPAT-0\n", "no PatientID of the labels CSV is in the cohort"),
        ("PatientID,finding\n,a\n", "no PatientID of the labels CSV is in the cohort"),
        ('PatientID,finding\nPAT-0,"a\nPAT-1,b\n', "is not CSV"),
        ("PatientID,finding\nsomebody,a\n", "no PatientID of the labels CSV is in the cohort"),
    ],
)
def test_a_labels_csv_that_cannot_be_used_is_explained(tmp_path: Path, text: str, message: str) -> None:
    folder = write_patients(tmp_path / "dicom", patients=2)
    (folder / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        ingest_folder(folder, tmp_path / "c")
    assert "PAT-" not in str(caught.value) and "somebody" not in str(caught.value)


def test_a_repeated_key_with_the_same_labels_is_fine(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=2)
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-0,a\nPAT-0,a\nPAT-1,b\n")
    assert ingest_folder(folder, tmp_path / "c").unlabelled == 0


def test_nothing_to_read_is_explained(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=1)
    (tmp_path / "empty").mkdir()
    for source, message in [(tmp_path / "empty", "holds no files"), (tmp_path / "absent", "is not a folder")]:
        with pytest.raises(DataError, match=message):
            ingest_folder(source, tmp_path / "c", folder / "labels.csv")
    with pytest.raises(DataError, match="cannot be read"):
        ingest_folder(folder, tmp_path / "c", tmp_path / "absent.csv")


def test_a_folder_where_nothing_is_usable_is_summed_up_and_opens_as_empty(tmp_path: Path) -> None:
    folder = tmp_path / "dicom"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    (folder / "link").symlink_to(folder)
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-0,a\n")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.read, summary.used, summary.quarantined) == (2, 0, 2)
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert len(store) == 0 and store.inputs.shape == (0, 1, 8, 8) and store.labels("finding") == []


def test_a_cohort_keeps_its_settings(tmp_path: Path) -> None:
    folder = write_patients(tmp_path / "dicom", patients=1)
    ingest_folder(folder, tmp_path / "c")
    with pytest.raises(DataError, match="use the same settings"):
        ingest_folder(folder, tmp_path / "c", recipe={"frames_per_file": 2})
    with pytest.raises(DataError, match="another pseudonym key"):
        ingest_dicom(folder, tmp_path / "c", key=bytes(32))


def test_real_files_become_a_cohort(tmp_path: Path, shared_data: Path) -> None:
    (tmp_path / "labels.csv").write_text("PatientID,finding\nnobody,x\n")
    with pytest.raises(DataError, match="no PatientID"):
        ingest_folder(shared_data / "dicom", tmp_path / "c", tmp_path / "labels.csv")
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert len(store) >= 66 and set(store.labels("finding")) == {None}


# Manufacturers


def write_made_by(folder: Path, *manufacturers: str | None) -> Path:
    """One patient and image each."""
    for number, manufacturer in enumerate(manufacturers):
        pixels = np.full((8, 8), number, np.uint8)
        pixels[0, 0] = 255
        write_dicom(
            folder / f"{number}.dcm", pixels, PatientID=f"PAT-{number}", SOPInstanceUID=f"1.8.{number}",
            Manufacturer=manufacturer,
        )  # fmt: skip
    (folder / "labels.csv").write_text("PatientID,finding\nPAT-0,a\nPAT-1,b\n")
    return folder


def manufacturers(cohort: Path) -> tuple[str, ...]:
    return CohortStore.open(cohort, withdrawn=()).manufacturers


@pytest.mark.parametrize("workers", [1, 2])
def test_each_image_knows_who_made_its_scanner(tmp_path: Path, workers: int) -> None:
    folder = write_made_by(tmp_path / "dicom", "SIEMENS ", "Siemens", "GE  Medical", None)
    ingest_folder(folder, tmp_path / "c", workers=workers)
    assert manufacturers(tmp_path / "c") == ("siemens", "siemens", "ge medical", "unknown")


def test_a_synthetic_hospital_has_its_own_scanners(tmp_path: Path) -> None:
    profile = make_profiles(1, patients=(12, 12))[0]
    write_hospital(profile, tmp_path / "dicom")
    ingest_folder(tmp_path / "dicom", tmp_path / "c")
    store = CohortStore.open(tmp_path / "c", withdrawn=())
    assert set(store.manufacturers) == {scanner.manufacturer.casefold() for scanner in profile.scanners}
    assert len(store.manufacturers) == len(store)


def test_the_csv_speaks_where_the_file_is_silent(tmp_path: Path) -> None:
    folder = write_made_by(tmp_path / "dicom", "Siemens", None, None)
    (folder / "labels.csv").write_text("PatientID,finding,manufacturer\nPAT-0,a,Philips\nPAT-1,b,PHILIPS \n")
    summary = ingest_folder(folder, tmp_path / "c", columns=("finding",))
    assert manufacturers(tmp_path / "c") == ("siemens", "philips", "unknown")
    assert summary.unlabelled == 1
    (folder / "labels.csv").write_text("PatientID,manufacturer\nPAT-2,GE\n")
    assert ingest_folder(folder, tmp_path / "c").unlabelled == 3  # a manufacturer is no label
    assert manufacturers(tmp_path / "c") == ("siemens", "philips", "ge")


def test_a_cohort_of_the_format_before_learns_its_manufacturers_from_the_same_files(tmp_path: Path) -> None:
    folder = write_made_by(tmp_path / "dicom", "Siemens", "Philips")
    ingest_folder(folder, tmp_path / "c")
    with closing(sqlite3.connect(tmp_path / "c" / INDEX)) as index, index:
        index.execute("ALTER TABLE instances DROP COLUMN manufacturer")
        index.execute("UPDATE meta SET value = '2' WHERE name = 'format'")
    summary = ingest_folder(folder, tmp_path / "c")
    assert (summary.already, summary.added) == (2, 0)
    ingest_folder(folder, tmp_path / "clean")
    assert_same(tmp_path / "c", tmp_path / "clean")
    assert manufacturers(tmp_path / "c") == ("siemens", "philips")


def test_a_corrected_manufacturer_replaces_the_old_one(tmp_path: Path) -> None:
    ingest_folder(write_made_by(tmp_path / "dicom", "Siemens", "Philips"), tmp_path / "c")
    folder = write_made_by(tmp_path / "dicom", "Siemens", "GE")
    assert ingest_folder(folder, tmp_path / "c").already == 2
    assert manufacturers(tmp_path / "c") == ("siemens", "ge")
