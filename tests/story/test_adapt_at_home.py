"""A hospital that took no part gets the federation's model by mail, adapts it, judges it, and reads new images with it.

The commands, from DICOM files to predictions; nothing is charged, and whoever withdraws is in no model after that.
"""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from tests.story.processes import typed, wardround

from wardround_simulation.phantoms import make_profiles, write_hospital

pytestmark = pytest.mark.story

FEDERATION = """
name = "lungs"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
image_size_px = 32
[model]
features = 16
embedding = 8
[algorithm]
name = "prototypical"
[rounds]
rounds = 4
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a federation that has learned; `lakeside` took no part in it."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "lungs.toml").write_text(FEDERATION)
    out = folder / "run"
    learn = ("simulate", folder / "lungs.toml", "--hospitals", 2, "--patients", "30-36", "--shots", 2, "--out", out)
    typed(*learn)
    assert "New-hospital card: lakeside" in (out / "report.html").read_text()
    return out


def test_from_the_federation_s_model_to_a_prediction_with_its_reasons(run: Path, tmp_path: Path) -> None:
    home = run / "hospitals" / "lakeside" / "home"
    given = ("--task", run / "federation.toml", "--model", run / "checkpoint.safetensors")
    card = json.loads(typed("hospital", "adapt", home, *given, "--shots", 5, "--json"))
    assert card["run"] == "simulation"
    assert card["support_patients"] <= 4 * 5
    judged = json.loads(typed("hospital", "evaluate", home, "--json"))
    assert judged["after"] == card["after"]
    for when in ("before", "after"):
        for estimate in judged[when]["metrics"].values():
            assert estimate["low"] <= estimate["value"] <= estimate["high"]

    new, out = tmp_path / "new", tmp_path / "out"
    write_hospital(make_profiles(1, patients=(4, 4), seed=77)[0], new)
    (new / "cut.dcm").write_bytes(next(new.rglob("IM*")).read_bytes()[:300])
    shown = wardround("hospital", "predict", home, new, "--out", out, "--heatmap")
    assert "Nothing left this hospital" in shown
    said = json.loads((out / "predictions.json").read_text())
    assert len(said["patients"]) == 4
    assert all((out / image["heatmap"]).is_file() and image["nearest"] for image in said["images"])
    refused = {Path(refusal["file"]).name: refusal["reason"] for refusal in said["refused"]}
    assert set(refused) == {"cut.dcm", "labels.csv"}
    for file in new.rglob("IM*"):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for keyword in ("PatientID", "PatientName", "SOPInstanceUID"):
            assert str(header[keyword].value) not in (out / "predictions.json").read_text().replace(str(file), "")


def test_a_model_of_another_federation_and_a_patient_who_withdraws(run: Path, tmp_path: Path) -> None:
    home, model, images = tmp_path / "home", run / "checkpoint.safetensors", run / "hospitals" / "lakeside" / "images"
    given = ("--task", run / "federation.toml", "--model", model)
    typed("hospital", "init", home, "--name", "lakeside", "--patients", 60)
    typed("hospital", "ingest", home, images, "--labels", images / "labels.csv", "--federation", given[1])
    other = tmp_path / "other.toml"
    other.write_text(FEDERATION.replace("rounds = 4", "rounds = 5"))
    said = typed("hospital", "adapt", home, "--task", other, "--model", model, expect=2)
    assert "is a model of federation" in said and "Next: name the checkpoint of that federation" in said

    typed("hospital", "adapt", home, *given)
    patients = {str(pydicom.dcmread(file).PatientID) for file in images.rglob("IM*")}
    (tmp_path / "everybody.txt").write_text("\n".join(sorted(patients)[: len(patients) // 2]))
    typed("hospital", "withdraw", home, "--from", tmp_path / "everybody.txt")
    assert "have withdrawn" in typed("hospital", "evaluate", home, expect=3)
    typed("hospital", "adapt", home, *given, "--overwrite")
    typed("hospital", "evaluate", home)
    assert json.loads(typed("hospital", "ledger", home, "--json"))["entries"] == 0, "nothing of this was charged"
