"""docs/tutorial.md, typed: three hospitals and a coordinator, from phantoms to a report, and at home to predictions."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import pytest
from tests.story.processes import environment, free_port, running, typed

from wardround_simulation.phantoms import make_profiles, write_hospital

pytestmark = pytest.mark.story

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```bash([^\n]*)\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
SMALLER = {"--patients 60-90": "--patients 30-36", "--patients 80": "--patients 30"}
ROUNDS = 3


@dataclass(frozen=True)
class Typed:
    """folder: ~/federation. said: what each block printed, in order."""

    folder: Path
    said: list[str]

    def after(self, command: str) -> str:
        """What the block that holds this command printed."""
        return next(said for (_, body), said in zip(BLOCKS, self.said, strict=True) if command in body)


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Typed]:
    """Every block in order, those of other terminals beside it; with fewer patients and rounds, and own ports."""
    home = tmp_path_factory.mktemp("home")
    folder = home / "federation"
    env = environment() | {"HOME": str(home), "COLUMNS": "100"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    ports = f"--host 127.0.0.1 --port {free_port()} --admin-port {free_port()} --health-port {free_port()}"
    said = []
    with running(home) as start:
        for title, body in BLOCKS:
            for long, short in (SMALLER | {"--host 127.0.0.1": ports}).items():
                body = body.replace(long, short)
            if "Terminal" in title:
                terminal = start(body, command=("bash", "-ec"), env=env)
                said.append(terminal.wait_for(lambda line: "is up" in line or "connected to" in line, "sign of life"))
                continue
            done = subprocess.run(
                ["bash", "-euc", body],
                cwd=folder if folder.exists() else home,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"$ {body}\n{done.stdout}\n{done.stderr}"
            said.append(done.stdout)
            agreement = folder / "coordinator" / "federation.toml"
            if "coordinator init" in body:
                agreement.write_text(agreement.read_text().replace("rounds = 40", f"rounds = {ROUNDS}"))
        yield Typed(folder, said)


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
