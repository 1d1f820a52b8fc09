"""`wardround hospital ingest`, as an administrator meets it: what is there, what is wrong with it, what to do."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.client.command_line import wardround
from tests.client.intake.dicom_files import write_patients

from wardround_client.cohort.store import CohortStore

FEDERATION = """
name = "lungs"
[task]
label_column = "finding"
classes = ["normal", "nodule", "effusion"]
image_size_px = 8
[model]
features = 8
[rounds]
rounds = 2
"""


@pytest.fixture
def home(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    wardround(capsys, "init", tmp_path / "home", "--name", "st-anna", "--patients", 40)
    return tmp_path / "home"


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    file = tmp_path / "federation.toml"
    file.write_text(FEDERATION)
    return file


def dicom(folder: Path, *labels: str, separator: str = ",", encoding: str = "utf-8") -> Path:
    """A patient for each label."""
    write_patients(folder, patients=len(labels), images=1)
    lines = [("PatientID", "finding"), *((f"PAT-{number}", label) for number, label in enumerate(labels))]
    (folder / "labels.csv").write_bytes("".join(f"{separator.join(line)}\r\n" for line in lines).encode(encoding))
    return folder


def pictures(folder: Path, *, count: int = 4) -> Path:
    """PNG and JPEG files, grey, coloured and transparent, and a CSV."""
    rng = np.random.default_rng(0)
    (folder / "b").mkdir(parents=True)
    lines = ["file,PatientID,finding"]
    for number in range(count):
        mode, shape, suffix = [
            ("L", (20, 30), "png"), ("RGB", (30, 20, 3), "jpg"), ("RGBA", (9, 9, 4), "png"), ("I;16", (16, 16), "png"),
        ][number % 4]  # fmt: skip
        pixels = rng.integers(0, 65536 if mode == "I;16" else 256, shape)
        name = f"b/{number}.{suffix}"
        Image.fromarray(pixels.astype(np.uint16 if mode == "I;16" else np.uint8)).save(folder / name)
        lines.append(f"{name},P{number // 2},{['normal', 'nodule'][number % 2]}")
    (folder / "pictures.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_labels_that_differ_in_case_are_an_error_that_names_the_class(
    home: Path, federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dicom(tmp_path / "dicom", "Normal", "Normal", "NODULE", "effusion", "xyzzy")
    typed = ("ingest", home, folder, "--labels", folder / "labels.csv", "--federation", federation)
    code, _, err = wardround(capsys, *typed)
    assert code == 3
    assert "'Normal' (2 lines, did you mean 'normal'?)" in err and "'NODULE' (1 line, did you mean 'nodule'?)" in err
    assert "'xyzzy' (1 line)" in err and "normal, nodule, effusion" in err
    assert not (home / "cohort" / "inputs.bin").exists(), "nothing was stored"
    code, out, _ = wardround(capsys, *typed, "--allow-unknown-labels")
    assert code == 0
    assert "'normal' 0, 'nodule' 0, 'effusion' 1" in out and "did you mean 'normal'?" in out


def test_without_a_federation_the_approved_agreements_know_the_classes(
    home: Path, federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dicom(tmp_path / "dicom", "Normal", "nodule")
    typed = ("ingest", home, folder, "--labels", folder / "labels.csv", "--size", 8)
    code, out, _ = wardround(capsys, *typed)
    assert code == 0
    assert "'Normal' 1, 'nodule' 1" in out, "the labels that are there, with their patients"
    assert wardround(capsys, "approve", home, federation, "--yes", "--anyway")[0] == 0
    code, _, err = wardround(capsys, *typed)
    assert code == 3 and "did you mean 'normal'?" in err


def test_a_wrong_label_column_is_an_error_that_names_those_that_are_there(
    home: Path, federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    federation.write_text(FEDERATION.replace('"finding"', '"diagnosis"'))
    folder = dicom(tmp_path / "dicom", "normal", "nodule")
    code, _, err = wardround(
        capsys, "ingest", home, folder, "--labels", folder / "labels.csv", "--federation", federation
    )
    assert code == 3 and "'diagnosis'" in err and "finding" in err


def test_a_csv_of_a_german_excel_is_read_and_that_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dicom(tmp_path / "dicom", "Erguß", "nodule", separator=";", encoding="cp1252")
    code, out, _ = wardround(capsys, "ingest", home, folder, "--labels", folder / "labels.csv", "--size", 8)
    assert code == 0
    assert "labels.csv was read as a CSV separated by semicolons and in Windows-1252 (Latin-1)." in out
    assert CohortStore.open(home / "cohort", withdrawn=()).labels("finding") == ["Erguß", "nodule"]


def test_a_folder_of_pictures_without_their_csv_is_an_error_with_the_right_advice(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "png")
    (folder / "labels.csv").write_text("PatientID,finding\nP0,normal\n")
    (folder / "pictures.csv").unlink()
    code, out, err = wardround(capsys, "ingest", home, folder, "--labels", folder / "labels.csv")
    assert code == 3
    assert "not DICOM" in out and "none of 4 could be used" in err and "columns file, PatientID" in err
    pictures(tmp_path / "more")
    typed = ("--labels", tmp_path / "more" / "pictures.csv", "--size", 16)
    assert wardround(capsys, "ingest", home, tmp_path / "more", *typed)[0] == 0, "an empty cohort binds to no size"


def test_pictures_and_their_csv_become_a_cohort_once(
    home: Path, federation: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path / "png")
    with (folder / "pictures.csv").open("a") as file:
        file.write("b/gone.png,P9,normal\nb\\0.png,P0,normal\nb/0.png,P0\n,P1,normal\n")
    typed = ("ingest", home, folder, "--labels", folder / "pictures.csv", "--federation", federation, "--json")
    code, out, _ = wardround(capsys, *typed)
    first = json.loads(out)
    assert code == 0
    assert (first["used"], first["patients"], first["labels"]) == (4, 2, {"finding": {"normal": 2, "nodule": 2}})
    assert first["reasons"] == {
        "cannot be read": 1, "duplicate file name": 1, "another number of cells than there are columns": 1,
        "the CSV names no file, or no PatientID": 1,
    }  # fmt: skip
    store = CohortStore.open(home / "cohort", withdrawn=())
    assert store.inputs.shape == (4, 1, 8, 8) and store.inputs[:].max() > 40_000
    again = json.loads(wardround(capsys, *typed)[1])
    assert (again["already"], again["added"], again["patients"]) == (4, 0, 2)
    # Two lines about one picture contradict each other: it has no label.
    with (folder / "pictures.csv").open("a") as file:
        file.write("./b/3.png,P1,effusion\n")
    contradicted = json.loads(wardround(capsys, *typed)[1])
    assert contradicted["labels"] == {"finding": {"normal": 2, "nodule": 1}}
    # The picture is another patient's: it is read again, and the first patient keeps what was stored.
    text = (folder / "pictures.csv").read_text().replace("b/1.jpg,P0,nodule", "b/1.jpg,P7,effusion")
    (folder / "pictures.csv").write_text(text)
    moved = json.loads(wardround(capsys, *typed)[1])
    assert (moved["added"], moved["patients"]) == (1, 3)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", [False, True])
def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bool
) -> None:
    folder = dicom(tmp_path / "dicom", "normal", "nodule", "nodule")
    typed = ("ingest", home, folder, "--labels", folder / "labels.csv", "--size", 8, "--json")
    if before:
        wardround(capsys, *typed)
        dicom(folder, "normal", "nodule", "nodule", "effusion", "normal")
    (folder / "note.txt").write_text("no image")
    untouched = contents(home)
    code, out, _ = wardround(capsys, *typed, "--dry-run")
    assert code == 0 and contents(home) == untouched
    dry = json.loads(out)
    code, out, _ = wardround(capsys, *typed)
    assert json.loads(out) == dry | {"dry_run": False}, "what was said is what happens"
    assert dry["added"] == (2 if before else 3) and dry["reasons"] == {"not DICOM": 1}


def read_only(path: object, flags: int, *rest: object, **more: object) -> int:
    if "cohort" in str(path) and flags & (os.O_WRONLY | os.O_RDWR):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
    return OPEN(path, flags, *rest, **more)  # type: ignore[arg-type]


def full(handle: int, block: bytes, offset: int) -> int:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


OPEN = os.open


@pytest.mark.parametrize(
    ("call", "fails", "words"),
    [
        ("open", read_only, "Read-only file system). Next: make the file system writable"),
        ("pwrite", full, "No space left on device). Next: make room on the disk, then run the same command again"),
    ],
)
def test_a_disk_that_cannot_be_written_is_exit_code_7_and_says_what_to_do(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    call: str,
    fails: Callable[..., int],
    words: str,
) -> None:
    folder = dicom(tmp_path / "dicom", "normal", "nodule")
    monkeypatch.setattr(os, call, fails)
    code, _, err = wardround(capsys, "ingest", home, folder, "--labels", folder / "labels.csv", "--size", 8)
    assert code == 7 and words in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "nothing to ingest"),
        (("FOLDER",), 2, "add --labels"),
        (("FOLDER", "--labels", "FOLDER/labels.csv", "--source", "floppy"), 2, "unknown source 'floppy'"),
        (("FOLDER", "--labels", "FOLDER/labels.csv", "--set", "colour=red"), 2, "unknown key 'colour'"),
        (("FOLDER", "--labels", "FOLDER/labels.csv", "--set", "colour"), 2, "NAME=VALUE"),
        (("FOLDER/labels.csv",), 2, "add --federation"),
        (("FOLDER/gone", "--labels", "FOLDER/labels.csv"), 3, "is not a folder"),
        (("FOLDER", "--labels", "FOLDER/gone.csv"), 3, "cannot be read"),
    ],
)
def test_what_cannot_be_ingested_is_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    folder = dicom(tmp_path / "dicom", "normal", "nodule")
    found, _, err = wardround(capsys, "ingest", home, *(part.replace("FOLDER", str(folder)) for part in arguments))
    assert found == code, err
    assert words in err
