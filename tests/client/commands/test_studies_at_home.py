"""Volumes and several inputs at home as a hospital types it: adapted to, judged, and predicted for new studies."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.client.command_line import wardround
from tests.client.intake.dicom_files import write_dicom
from tests.client.personal.test_shared_model import model_of, write_release

from wardround.config import load_federation

Capture = pytest.CaptureFixture[str]

VOLUMES = """
name = "volumes"
[task]
label_column = "ill"
classes = ["no", "yes"]
kind = "volume"
depth = 4
image_size_px = 32
[model]
features = 16
"""

INPUTS = """
name = "inputs"
[task]
label_column = "ill"
classes = ["no", "yes"]
kind = "inputs"
[[task.inputs]]
name = "front"
image_size_px = 32
[[task.inputs]]
name = "blood"
kind = "table"
features = ["age", "sugar"]
centre = [55.0, 5.0]
spread = [15.0, 2.0]
[model]
features = 16
"""


def hospital(folder: Path, federation: str, capsys: Capture, *ingest: object) -> Path:
    """A hospital that has taken in what is named, and adapted a model that nobody trained."""
    agreed = folder / "federation.toml"
    agreed.write_text(federation)
    start = model_of(load_federation(agreed)).initial().detach()
    write_release(folder / "model", load_federation(agreed), theta=start)
    home = folder / "home"
    assert wardround(capsys, "init", home, "--name", "here", "--patients", 16)[0] == 0
    for command in (
        ("ingest", home, *ingest, "--federation", agreed, "--workers", 1),
        ("adapt", home, "--task", agreed, "--model", folder / "model"),
    ):
        code, out, err = wardround(capsys, *command)
        assert code == 0, out + err
    code, out, err = wardround(capsys, "evaluate", home, "--json")
    assert code == 0, err
    assert json.loads(out)["after"]["metrics"]["balanced_accuracy"]["value"] > 0.8
    return home


def predicted(capsys: Capture, home: Path, *what: object) -> dict[str, Any]:
    """What is said of each patient, in order, and what is refused."""
    code, _, err = wardround(capsys, "predict", home, *what[:-1], "--out", what[-1], "--workers", 1)
    assert code == 0, err
    said: dict[str, Any] = json.loads((Path(str(what[-1])) / "predictions.json").read_text())
    return said


def write_series(folder: Path, patient: int, rng: np.random.Generator, *, ill: bool) -> None:
    for number in range(6):
        pixels = rng.normal(60, 10, (32, 32))
        if ill:
            pixels[8:24, 8:24] += 100
        write_dicom(
            folder / f"p{patient}-{number}.dcm", pixels.clip(0, 255).astype(np.uint8), PatientID=f"P{patient}",
            StudyInstanceUID=f"1.3.{patient}", SeriesInstanceUID=f"1.3.{patient}.1",
            ImagePositionPatient=[0, 0, number],
            ImageOrientationPatient=[1, 0, 0, 0, 1, 0], PixelSpacing=[1, 1], WindowCenter=128, WindowWidth=256,
        )  # fmt: skip


def test_volumes(tmp_path: Path, capsys: Capture) -> None:
    rng, files = np.random.default_rng(0), tmp_path / "dicom"
    lines = ["PatientID,ill"]
    for patient in range(16):
        write_series(files, patient, rng, ill=patient % 2 == 1)
        lines.append(f"P{patient},{'yes' if patient % 2 else 'no'}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    home = hospital(tmp_path, VOLUMES, capsys, files, "--labels", tmp_path / "labels.csv")

    for patient in (50, 51):
        write_series(tmp_path / "new", patient, rng, ill=patient % 2 == 1)
    (tmp_path / "new" / "notes.txt").write_text("not an image")
    write_dicom(tmp_path / "new" / "alone.dcm", np.zeros((32, 32), np.uint8), SeriesInstanceUID="1.9", PatientID="P9")
    said = predicted(capsys, home, tmp_path / "new", tmp_path / "out")
    assert [row["predicted"] for row in said["images"]] == ["no", "yes"], "a series is one example"
    assert "and 5 more" in said["images"][0]["file"]
    assert sorted(each["reason"] for each in said["refused"]) == ["a series of one slice is no volume", "not DICOM"]
    code, _, err = wardround(capsys, "predict", home, tmp_path / "new", "--heatmap")
    assert code == 2 and "predicts from volumes" in " ".join(err.split())


def write_picture(file: Path, rng: np.random.Generator, *, ill: bool) -> None:
    pixels = rng.normal(60, 10, (32, 32)) + 100 * ill * np.pad(np.ones((16, 16)), 8)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file)


def test_several_inputs_of_a_patient(tmp_path: Path, capsys: Capture) -> None:
    rng, files, new = np.random.default_rng(0), tmp_path / "pictures", tmp_path / "new"
    files.mkdir()
    new.mkdir()
    for folder, many in ((files, 16), (new, 4)):
        lines = ["PatientID,front,age,sugar,ill"]
        for patient in range(many):
            ill = patient % 2 == 1
            write_picture(folder / f"{patient}.png", rng, ill=ill)
            there = patient % 4 < 2 or folder == files
            lines.append(
                f"{folder.name}{patient},{f'{patient}.png' if there else ''},{rng.integers(40, 70)},"
                f"{'' if patient % 5 == 4 else round(5 + 3 * ill + rng.normal(0, 0.5), 1)},{'yes' if ill else 'no'}"
            )
        (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    home = hospital(tmp_path, INPUTS, capsys, files, "--labels", files / "labels.csv")

    said = predicted(capsys, home, new / "labels.csv", tmp_path / "out")
    assert [row["predicted"] for row in said["images"][:2]] == ["no", "yes"]
    assert len(said["images"]) == len(said["patients"]) == 4, "who has no picture has laboratory values"
    with (tmp_path / "out" / "predictions.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4

    write_dicom(tmp_path / "dicom" / "a.dcm", np.asarray(Image.open(new / "1.png")), PatientID="D1", WindowCenter=128,
                WindowWidth=256, Modality="DX")  # fmt: skip
    (tmp_path / "blood.csv").write_text("PatientID,age,sugar\nD1,50,8.2\n")
    said = predicted(capsys, home, tmp_path / "dicom", tmp_path / "blood.csv", tmp_path / "studies")
    assert [row["predicted"] for row in said["images"]] == ["yes"]
    for asked, allowed in (
        ((tmp_path / "blood.csv",), "names no files"),
        ((new / "labels.csv", "--heatmap"), "several"),
    ):
        code, _, err = wardround(capsys, "predict", home, *asked)
        assert code == 2 and allowed in " ".join(err.split())
