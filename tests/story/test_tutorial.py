"""docs/tutorial.md, typed: three hospitals and a coordinator, from phantoms to a report, and at home to predictions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pydicom
import pytest
from tests.story.pages import Typed, typing
from tests.story.processes import typed

from wardround_simulation.phantoms import make_profiles, write_hospital

pytestmark = pytest.mark.story

SMALLER = {"--patients 60-90": "--patients 30-36", "--patients 80": "--patients 30"}
ROUNDS = 3


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """With fewer patients and rounds."""
    home = tmp_path_factory.mktemp("home")
    agreement = home / "federation" / "coordinator" / "federation.toml"

    def after(body: str) -> None:
        if "coordinator init" in body:
            agreement.write_text(agreement.read_text().replace("rounds = 40", f"rounds = {ROUNDS}"))

    with typing("tutorial.md", home, "federation", SMALLER, after) as typed_page:
        yield typed_page


def test_every_block_does_what_the_page_says(tutorial: Typed) -> None:
    assert {"harbour", "northgate", "st-anna", "lakeside"} <= set(tutorial.after("ls practice").split())
    assert tutorial.after("hospital approve").count("Approved for 1 run") == 3
    assert (tutorial.folder / "coordinator" / "runs" / "spring" / "report.html").is_file()
    assert f"spring, round {ROUNDS}" in tutorial.after("hospital status")
    assert "Every entry and every stored reply is as it was written" in tutorial.after("ledger northgate --verify")
    events = (tutorial.folder / "coordinator" / "runs" / "spring" / "events.jsonl").read_text().splitlines()
    rounds = [event for event in map(json.loads, events) if event["event"] == "round"]
    assert [event["replied"] for event in rounds] == [3] * (ROUNDS + 1)


def test_at_home_nothing_leaves_and_no_patient_is_named(tutorial: Typed) -> None:
    assert tutorial.after("hospital adapt").count("Nothing left this hospital") == 4
    answers = tutorial.folder / "answers"
    predictions = json.loads((answers / "predictions.json").read_text())
    (mapped,) = json.loads((tutorial.folder / "one" / "predictions.json").read_text())["images"]
    assert (tutorial.folder / "one" / mapped["heatmap"]).is_file()
    assert [Path(refusal["file"]).name for refusal in predictions["refused"]] == ["labels.csv"]
    images = tutorial.folder / "practice" / "hospitals" / "harbour" / "images" / "dicom"
    text = (answers / "predictions.json").read_text()
    for file in (file for file in images.rglob("*") if file.is_file()):
        header = pydicom.dcmread(file, stop_before_pixels=True)
        for keyword in ("PatientID", "PatientName", "SOPInstanceUID"):
            assert str(header[keyword].value) not in text.replace(str(file), "")
    ledger = typed("hospital", "ledger", tutorial.folder / "st-anna", "--json")
    assert ledger.count('"event": "entry"') == 2 * (ROUNDS + 1), "nothing at home was charged"


def test_who_withdraws_is_in_no_model_after_that(tutorial: Typed, tmp_path: Path) -> None:
    assert f" {ROUNDS + 1}" in tutorial.after("hospital withdraw"), "the rounds that had used the patient"
    home, practice = tmp_path / "home", tutorial.folder / "practice"
    images, model = practice / "hospitals" / "harbour" / "images", practice / "checkpoint.safetensors"
    given = ("--task", practice / "federation.toml", "--model", model)
    typed("hospital", "init", home, "--name", "harbour", "--patients", 60)
    typed("hospital", "ingest", home, images, "--labels", images / "labels.csv", "--federation", given[1])
    other = tmp_path / "other.toml"
    other.write_text(given[1].read_text().replace("rounds = 1\n", "rounds = 5\n"))
    said = typed("hospital", "adapt", home, "--task", other, "--model", model, expect=2)
    assert "is a model of federation" in said and "Next: name the checkpoint of that federation" in said

    typed("hospital", "adapt", home, *given)
    patients = {str(pydicom.dcmread(file).PatientID) for file in images.rglob("IM*")}
    (tmp_path / "half.txt").write_text("\n".join(sorted(patients)[: len(patients) // 2]))
    typed("hospital", "withdraw", home, "--from", tmp_path / "half.txt")
    assert "have withdrawn" in typed("hospital", "evaluate", home, expect=3)
    typed("hospital", "adapt", home, *given, "--overwrite")
    typed("hospital", "evaluate", home)
    assert json.loads(typed("hospital", "ledger", home, "--json"))["entries"] == 0, "nothing of this was charged"


def test_a_file_that_is_broken_is_listed_and_the_others_are_read(tutorial: Typed, tmp_path: Path) -> None:
    new, out = tmp_path / "new", tmp_path / "out"
    write_hospital(make_profiles(1, patients=(4, 4), seed=77)[0], new)
    (new / "cut.dcm").write_bytes(next(new.rglob("IM*")).read_bytes()[:300])
    typed("hospital", "predict", tutorial.folder / "st-anna", new, "--out", out)
    said = json.loads((out / "predictions.json").read_text())
    assert len(said["patients"]) == 4
    assert {Path(refusal["file"]).name for refusal in said["refused"]} == {"cut.dcm", "labels.csv"}
