"""`wardround hospital adapt | evaluate | predict` as a hospital types them, on images that it took in itself."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tests.client.command_line import wardround
from tests.client.conftest import FEDERATION_TOML
from tests.client.intake.dicom_files import write_dicom, write_patients
from tests.client.personal.test_shared_model import model_of, write_release
from tests.rounds import TWO_COLUMNS
from torch import Tensor

from wardround.config import load_federation
from wardround.models.encoder import BuiltinEncoder
from wardround_client.hospital import Hospital
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Instance
from wardround_client.last_model import last_seen
from wardround_client.personal import adapted_file as store
from wardround_client.personal import learner as personalise
from wardround_client.personal import resemblances
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.metrics import METRICS
from wardround_client.personal.page import Row
from wardround_client.personal.prediction_folder import PredictionFolder
from wardround_client.personal.predictions import Predictor, items_of
from wardround_client.privacy.ledger import LEDGER, Ledger

NOTHING_LEFT = "Nothing left this hospital, and nothing was charged"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    (tmp_path / "federation.toml").write_text(FEDERATION_TOML)
    return tmp_path / "federation.toml"


@pytest.fixture
def model(federation: Path, tmp_path: Path) -> Path:
    return write_release(tmp_path / "checkpoint.safetensors", load_federation(federation))


@pytest.fixture
def home(home_with_cohort: Path, tmp_path: Path) -> Path:
    """A hospital with patients, and a ledger that nobody may touch here."""
    home = Path(shutil.copytree(home_with_cohort, tmp_path / "north"))
    Ledger(home / LEDGER).close()
    return home


def adapt(capsys: Capture, home: Path, federation: Path, model: Path, *more: object) -> dict[str, Any]:
    """Adapt, as far as was agreed and no other way is tried, which takes long -> what --json says."""
    given = ("--task", federation, "--model", model, "--no-tune", "--json")
    code, out, err = wardround(capsys, "adapt", home, *given, *more)
    assert code == 0, err
    said: dict[str, Any] = json.loads(out)
    return said


def refused(capsys: Capture, expect: int, *arguments: object) -> str:
    """What a command that fails says, as one line."""
    code, out, err = wardround(capsys, *arguments)
    assert code == expect, out + err
    return " ".join(err.split())


def test_adapting_learns_judges_keeps_and_charges_nothing(
    home: Path, federation: Path, model: Path, capsys: Capture
) -> None:
    before = (home / LEDGER).read_bytes()
    code, out, _ = wardround(capsys, "adapt", home, "--task", federation, "--model", model)
    assert code == 0
    assert NOTHING_LEFT in out
    assert "balanced accuracy" in out
    assert "keep it here" in out
    assert (home / LEDGER).read_bytes() == before

    folder = home / "adapted" / "test"
    card = json.loads((folder / "card.json").read_text())
    assert set(card["before"]["metrics"]) == set(card["after"]["metrics"]) == set(METRICS)
    assert (
        card["after"]["metrics"]["balanced_accuracy"]["value"] > card["before"]["metrics"]["balanced_accuracy"]["value"]
    )
    patients = len(Hospital.open(home, ledger=Ledger(None)).patients.cohort().pseudonyms)
    assert card["support_patients"] + card["after"]["patients"] == patients
    for file in (folder / "card.json", folder / "model.safetensors"):
        assert file.stat().st_mode & 0o777 == 0o600


def test_what_was_encoded_once_is_not_encoded_again(
    home: Path, federation: Path, model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By adapting again, or judging; and nothing is kept of a patient who withdraws."""
    seen: list[int] = []
    encode = BuiltinEncoder.__call__

    def counted(encoder: BuiltinEncoder, x: Tensor) -> Tensor:
        seen.append(int(bool(x.any())))  # zeros are nobody's
        return encode(encoder, x)

    monkeypatch.setattr(BuiltinEncoder, "__call__", counted)
    first = adapt(capsys, home, federation, model)
    images, learned = sum(seen), first["support_images"]
    assert images >= learned > 2
    seen.clear()
    again = adapt(capsys, home, federation, model, "--overwrite")
    assert wardround(capsys, "evaluate", home)[0] == 0
    assert sum(seen) <= 2, "one image each, to learn the shape"
    assert again["after"] == first["after"]


def test_one_approved_federation_and_its_last_model_need_no_option(
    home: Path, federation: Path, capsys: Capture
) -> None:
    agreed = Hospital.open(home, ledger=Ledger(None)).approvals.approve(federation).federation
    assert "seen no model of test" in refused(capsys, 2, "adapt", home)
    write_release(last_seen(home, agreed.digest), agreed, round=2)
    assert wardround(capsys, "adapt", home, "--name", "here")[0] == 0
    assert json.loads((home / "adapted" / "here" / "card.json").read_text())["round"] == 2
    assert wardround(capsys, "evaluate", home, "--unadapted")[0] == 0


def test_a_table_is_adapted_to_judged_and_predicted(tmp_path: Path, capsys: Capture) -> None:
    home, toml, table = tmp_path / "home", tmp_path / "hearts.toml", tmp_path / "table.csv"
    toml.write_text(f'name = "hearts"{TWO_COLUMNS}')
    table.write_text("a,b,y\n" + "".join(f"{n / 10 - 2},{n % 3 - 1},{'yes' if n > 20 else 'no'}\n" for n in range(40)))
    assert wardround(capsys, "init", home, "--name", "here", "--patients", 40)[0] == 0
    assert wardround(capsys, "ingest", home, "--table", table, "--federation", toml)[0] == 0
    card = adapt(capsys, home, toml, write_release(tmp_path / "file", load_federation(toml)))
    assert card["after"]["metrics"]["balanced_accuracy"]["value"] > 0.8

    new, out = tmp_path / "new.csv", tmp_path / "out"
    new.write_text("PatientID,a,b\np,1.8,0\np,1.7,1\nq,-1.5,0\nr,?,0\ns,80,-90\n")
    assert wardround(capsys, "predict", home, new, "--out", out)[0] == 0
    said = json.loads((out / "predictions.json").read_text())
    assert [(row["file"], row["predicted"]) for row in said["images"][:3]] == [
        (f"{new}, line 2", "yes"), (f"{new}, line 3", "yes"), (f"{new}, line 4", "no"),
    ]  # fmt: skip
    assert [row["out_of_distribution"] for row in said["images"]] == [False, False, False, True]
    assert [patient["images"] for patient in said["patients"]] == [2, 1, 1]
    assert [refusal["reason"] for refusal in said["refused"]] == ["column a is missing"]
    assert "predicts from tables" in refused(capsys, 2, "predict", home, new, "--heatmap")
    assert "is not a file" in refused(capsys, 2, "predict", home, tmp_path)


def test_a_class_that_looks_like_a_formula_is_text_in_a_spreadsheet(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    hospital = Hospital.open(home, ledger=Ledger(None))
    found = store.load(home, "test", hospital.device)
    task = found.federation.task.model_copy(update={"classes": ("=1+1", "=2+2", "=3+3", "=4+4")})
    evil = replace(found, federation=found.federation.model_copy(update={"task": task}))
    items = items_of([new_images(tmp_path / "new")], task)
    results = PredictionFolder(tmp_path / "out", evil, {})
    predictor = Predictor(evil, Pseudonyms(hospital.patients.key), hospital.device)
    with results.writing(items) as left:
        for item, outcome in predictor.predict(left, workers=1):
            results.add(item, outcome)
    for name in ("predictions.csv", "patients.csv"):
        with (tmp_path / "out" / name).open(newline="") as file:
            cells = [cell for line in csv.reader(file) for cell in line]
        assert any(cell.startswith("'=") for cell in cells)
        assert not any(cell.startswith("=") for cell in cells)


def test_a_card_names_no_patient(home: Path, federation: Path, model: Path, capsys: Capture) -> None:
    adapt(capsys, home, federation, model)
    text = (home / "adapted" / "test" / "card.json").read_text()
    for pseudonym in Hospital.open(home, ledger=Ledger(None)).patients.cohort().pseudonyms:
        assert pseudonym.hex()[:8] not in text


def test_shots_and_draws(home: Path, federation: Path, model: Path, capsys: Capture) -> None:
    first = adapt(capsys, home, federation, model, "--shots", 2, "--name", "a")
    assert set(first["support_by_class"].values()) == {2}
    again = adapt(capsys, home, federation, model, "--shots", 2, "--name", "b")
    assert again["after"] == first["after"], "the same draw"
    other = adapt(capsys, home, federation, model, "--shots", 2, "--seed", 1, "--name", "c")
    assert other["after"] != first["after"]
    said = refused(capsys, 3, "adapt", home, "--task", federation, "--model", model, "--shots", 50)
    assert "fewer than 4 classes x 50 shots = 200" in said
    assert "ask for fewer shots" in said


def test_how_far_adapting_goes_is_agreed_or_tuned(
    home: Path, federation: Path, model: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    agreed = adapt(capsys, home, federation, model, "--name", "agreed")
    assert agreed["adapt_pull"] == dict(load_federation(federation).algorithm)["adapt_pull"]
    assert agreed["ways"] == []
    monkeypatch.setattr(personalise, "TRIED", {"adapt_pull": (7.0,)})
    tuned = adapt(capsys, home, federation, model, "--name", "tuned", "--tune")
    assert sum(way["weight"] for way in tuned["ways"]) == pytest.approx(1)
    assert {(way["start"], way["adapt_pull"]) for way in tuned["ways"]} <= {
        ("shared", 7.0), ("shared", None), ("untrained", 7.0)
    }  # fmt: skip
    judged = json.loads(wardround(capsys, "evaluate", home, "--adapted", "tuned", "--json")[1])
    assert (judged["before"], judged["after"]) == (tuned["before"], tuned["after"])


def test_a_shared_model_that_does_not_help_is_left_and_that_is_said(
    home: Path, federation: Path, tmp_path: Path, capsys: Capture
) -> None:
    """Never worse than local training for long: a model that is wrong about everything."""
    agreed = load_federation(federation)
    theta = 50 * torch.randn(model_of(agreed).layout.size, generator=torch.Generator().manual_seed(1))
    wrong = write_release(tmp_path / "wrong.safetensors", agreed, theta=theta)
    code, out, _ = wardround(capsys, "adapt", home, "--task", federation, "--model", wrong)
    assert code == 0
    assert "local training" in out.lower() and "the shared model did not help" in " ".join(out.split())


def test_evaluate_judges_on_nobody_who_was_learned_from(
    home: Path, federation: Path, model: Path, capsys: Capture
) -> None:
    card = adapt(capsys, home, federation, model, "--shots", 3)
    code, out, _ = wardround(capsys, "evaluate", home, "--json")
    assert code == 0
    judged = json.loads(out)
    assert (judged["before"], judged["after"]) == (card["before"], card["after"])

    everybody = json.loads(
        wardround(capsys, "evaluate", home, "--unadapted", "--task", federation, "--model", model, "--json")[1]
    )
    assert "after" not in everybody
    assert everybody["before"]["patients"] == card["support_patients"] + card["after"]["patients"]

    code, out, _ = wardround(capsys, "evaluate", home)
    assert code == 0
    assert "before" in out and "after" in out and NOTHING_LEFT in out
    assert "Confusion matrix" in out and "Operating points at 90% specificity" in out
    assert "may have learned" not in out, "this hospital took no part"
    Hospital.open(home, ledger=Ledger(None)).approvals.approve(federation)
    assert "may have learned from these patients before" in wardround(capsys, "evaluate", home)[1]


def test_classes_under_other_names_are_told_what_they_look_like(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what to write into the task file, and that something declared looks like another class."""
    assert adapt(capsys, home, federation, model, "--name", "by-names")["looks_like"] == [], "the classes are theirs"
    monkeypatch.setattr(resemblances, "SURE", 0.01)  # this model has learned nothing of which it could be sure
    theirs = load_federation(federation).task.classes
    values = "".join(f'"{each}" = "{each}: ours"\n' for each in theirs)
    own = tmp_path / "own.toml"
    words = [f"{each}: ours" for each in theirs]
    own.write_text(f"[task]\nlabel_column = 'finding'\nclasses = {words}\n[task.values]\n{values}")
    given = ("adapt", home, "--task", own, "--model", model, "--federation", federation, "--name", "own", "--no-tune")
    code, out, err = wardround(capsys, *given)
    assert code == 0, err
    assert "What your classes look like" in out and "adapt again with --overwrite" in out
    card = json.loads((home / "adapted" / "own" / "card.json").read_text())
    like = {each["class"]: each["like"] for each in card["looks_like"]}
    first = next(name for name, each in like.items() if each)
    lines = out.splitlines()
    start = lines.index("  [task.same_as]")
    with own.open("a") as file:
        file.write("\n".join(line.removeprefix("  ") for line in lines[start : start + 1 + len(theirs)]))
    again = wardround(capsys, *given, "--overwrite")[1]
    assert json.loads((home / "adapted" / "own" / "card.json").read_text())["like"] == like
    assert "put this into the task file" not in again and "Next: check its labels" not in again

    other = next(each for each in theirs if each not in like[first])
    own.write_text(own.read_text().replace(f'"{first}" = {json.dumps(like[first])}', f'"{first}" = "{other}"'))
    wrong = " ".join(wardround(capsys, *given, "--overwrite")[1].split())
    assert f"Warning: '{first}' starts at '{other}' and looks like" in wrong


def test_a_new_disease_is_learned_from_another_column(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    own = tmp_path / "own.toml"
    own.write_text('[task]\nlabel_column = "urgent"\nclasses = ["yes", "no"]\n')
    said = adapt(capsys, home, own, model, "--federation", federation, "--name", "urgent")
    assert (said["classes"], said["label_column"], said["new_classes"]) == (["yes", "no"], "urgent", True)
    same = adapt(
        capsys, home, federation, model, "--label-column", "urgent", "--classes", "yes, no", "--name", "urgent2"
    )
    assert same["after"] == said["after"]
    code, out, _ = wardround(capsys, "evaluate", home, "--adapted", "urgent", "--json")
    assert code == 0
    assert json.loads(out)["after"] == said["after"]


def test_what_a_user_does_wrong(home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture) -> None:
    given = ("--task", federation, "--model", model)
    assert "nothing was adapted here yet" in refused(capsys, 2, "evaluate", home)
    assert "nothing was adapted here yet" in refused(capsys, 2, "predict", home, federation)
    adapt(capsys, home, federation, model)
    assert "is there already. Next: choose another --name, or add --overwrite" in refused(
        capsys, 2, "adapt", home, *given
    )
    adapt(capsys, home, federation, model, "--overwrite")
    assert "the name '../x'" in refused(capsys, 2, "adapt", home, *given, "--name", "../x")
    assert "no adapted model 'x'. Allowed: test" in refused(capsys, 2, "evaluate", home, "--adapted", "x")
    assert "take one" in refused(capsys, 2, "evaluate", home, "--adapted", "test", "--unadapted")
    assert "add --unadapted" in refused(capsys, 2, "evaluate", home, *given)
    adapt(capsys, home, federation, model, "--name", "other")
    assert "several models were adapted here. Allowed: other, test" in refused(capsys, 2, "evaluate", home)
    said = refused(capsys, 3, "adapt", home, *given, "--label-column", "findign", "--name", "x")
    assert "no label column 'findign'; did you mean 'finding'?" in said
    (home / "adapted" / "test" / "model.safetensors").write_bytes(b"damaged")
    assert "not an adapted model" in refused(capsys, 7, "evaluate", home, "--adapted", "test")


def test_labels_that_the_task_does_not_know_are_told_of(
    home: Path, federation: Path, model: Path, capsys: Capture
) -> None:
    card = adapt(capsys, home, federation, model, "--classes", "normal,nodule,diffuse", "--name", "three")
    assert any("labels that the task does not know: 'effusion'" in warning for warning in card["warnings"])
    assert "Warning:" in wardround(capsys, "evaluate", home)[1]


def test_a_model_that_learned_from_somebody_who_withdrew_is_not_used(
    home: Path, federation: Path, model: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    hospital = Hospital.open(home, ledger=Ledger(None))
    (gone, *_), patients = store.load(home, "test", hospital.device).support, len(hospital.patients.cohort().pseudonyms)
    hospital.patients.register.add([gone])
    for command in (["evaluate", home], ["predict", home, federation]):
        said = refused(capsys, 3, *command)
        assert "have withdrawn" in said
        assert "adapt again, with --overwrite" in said
    again = adapt(capsys, home, federation, model, "--overwrite")
    assert again["support_patients"] + again["after"]["patients"] == patients - 1
    assert gone not in store.load(home, "test", hospital.device).support
    assert wardround(capsys, "evaluate", home)[0] == 0


def new_images(folder: Path, patients: int = 2, images: int = 3) -> Path:
    rng = np.random.default_rng(0)
    for patient in range(patients):
        for number in range(images):
            pixels = rng.integers(0, 255, (40, 40), np.uint8)
            file = folder / f"{patient}-{number}.dcm"
            write_dicom(file, pixels, PatientID=f"NEW-{patient}", Manufacturer="Scanner Works ")
    (folder / "notes.txt").write_text("not an image")
    return folder


def test_predict_says_of_every_image_and_every_patient(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    new, out = new_images(tmp_path / "new"), tmp_path / "out"
    first = new / "0-0.dcm"
    code, shown, _ = wardround(
        capsys, "predict", home, new, first, tmp_path / "gone.dcm", "--out", out, "--heatmap", "--workers", 1
    )
    assert code == 0
    assert NOTHING_LEFT in shown
    assert "notes.txt: not DICOM" in " ".join(shown.split())
    said = json.loads((out / "predictions.json").read_text())
    assert len(said["images"]) == 6, "a file that is named twice is read once"
    assert {image["manufacturer"] for image in said["images"]} == {"scanner works"}
    assert [refusal["reason"] for refusal in said["refused"]] == ["not DICOM", "not a regular file"]
    for image in said["images"]:
        assert sum(image["probabilities"].values()) == pytest.approx(1, abs=1e-5)
        assert image["predicted"] == max(image["probabilities"], key=image["probabilities"].get)
        assert (out / image["heatmap"]).read_bytes().startswith(b"\x89PNG")
    for patient in said["patients"]:
        own = [image["probabilities"] for image in said["images"] if image["patient"] == patient["patient"]]
        assert patient["images"] == len(own) == 3
        for name, mean in patient["probabilities"].items():
            assert mean == pytest.approx(np.mean([each[name] for each in own]))

    with (out / "predictions.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [line["file"] for line in lines] == [image["file"] for image in said["images"]]
    assert float(lines[0]["probability of nodule"]) == pytest.approx(
        said["images"][0]["probabilities"]["nodule"], abs=1e-6
    )
    text = "".join(path.read_text() for path in (*out.glob("*.json"), *out.glob("*.csv")))
    assert "NEW-0" not in text and "1.2.3.4" not in text and "Doe" not in text
    assert all(path.stat().st_mode & 0o077 == 0 for path in out.rglob("*") if path.is_file())


def test_new_files_are_seen_as_the_cohort_s_were(
    home: Path, home_with_cohort: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The same files by two roads, through the intake and straight to the model: the same probabilities."""
    adapt(capsys, home, federation, model, "--shots", 2)
    files = home_with_cohort.parent / "dicom"
    code, out, err = wardround(capsys, "predict", home, files, "--out", tmp_path / "out", "--workers", 1, "--json")
    assert code == 0, err
    assert json.loads(out)["refused"] == 1, "labels.csv"
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())

    hospital = Hospital.open(home, ledger=Ledger(None))
    adapted = store.load(home, "test", hospital.device)
    everybody, _ = Labelled.of(
        hospital.patients.cohort(), adapted.federation.task, adapted.learner.loss.model, hospital.device
    )
    expected = everybody.examples.patient_means(adapted.learner.probabilities(adapted.fitted, everybody.examples.z))
    found = {bytes.fromhex(patient["patient"]): patient["probabilities"] for patient in said["patients"]}
    assert len(found) == len(everybody.pseudonyms)
    for pseudonym, row in zip(everybody.pseudonyms, expected.tolist(), strict=True):
        assert list(found[pseudonym].values()) == pytest.approx(row, abs=1e-5)
    strange = [image["out_of_distribution"] for image in said["images"]]
    assert sum(strange) < 0.05 * len(strange), "patients of the same hospital are what it was adapted to"
    learned_from = {image["patient"] for image in said["images"] if image["learned_from"]}
    assert learned_from == {pseudonym.hex() for pseudonym in adapted.support}


def test_predict_goes_on_where_it_was_interrupted(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapt(capsys, home, federation, model)
    new = new_images(tmp_path / "new")
    given = ("predict", home, new, "--workers", 1, "--heatmap")
    real, seen = Predictor.rows, list[str]()

    def rows(self: Predictor, name: str, instance: Instance) -> list[Row]:
        seen.append(name)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(self, name, instance)

    monkeypatch.setattr(Predictor, "rows", rows)
    code, out, _ = wardround(capsys, *given)
    assert code == 130
    assert "2 of 7 are done" in out and "The same command goes on." in out
    (folder,) = (home / "predictions").iterdir()
    partial = json.loads((folder / "predictions.json").read_text())
    assert not partial["complete"] and len(partial["images"]) == 2
    assert (folder / "predictions.csv").read_text().count("\n") == 3

    (new / "0-0.dcm").write_bytes((new / "1-0.dcm").read_bytes())  # another image by now: done again
    with (folder / "predictions.jsonl").open("a") as lines:
        lines.write('{"file": "cut')
    assert wardround(capsys, *given)[0] == 0
    assert len(seen) == 3 + 5, "the one that changed and the four that were left"
    assert [each.name for each in (home / "predictions").iterdir()] == [folder.name]
    whole = json.loads((folder / "predictions.json").read_text())
    assert whole["complete"] and len(whole["images"]) == 6 and len(whole["refused"]) == 1
    assert all((folder / row["heatmap"]).is_file() for row in whole["images"])
    assert wardround(capsys, *given)[0] == 0
    assert len(list((home / "predictions").iterdir())) == 2, "what is complete is not gone on with"
    assert "is there already" in refused(capsys, 2, *given, "--out", folder)


def test_what_a_model_was_not_made_for_is_refused_or_marked(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    new, rng = tmp_path / "new", np.random.default_rng(1)
    mask = np.zeros((64, 64), np.uint8)
    mask[20:40, 20:40] = 1
    write_dicom(new / "seg.dcm", mask, SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4")
    write_dicom(new / "dose.dcm", mask, Modality="RTDOSE")
    write_dicom(new / "tiny.dcm", rng.integers(0, 255, (3, 3), np.uint8))
    bars = np.repeat(np.arange(0, 256, 32, dtype=np.uint8), 8)[None].repeat(64, 0)
    write_dicom(new / "bars.dcm", bars)
    write_dicom(new / "noise.dcm", rng.integers(0, 255, (64, 64), np.uint8))
    Image.fromarray(bars).save(new / "bars.png")
    out = tmp_path / "out"
    code, shown, _ = wardround(capsys, "predict", home, new, "--out", out, "--workers", 1)
    assert code == 0
    assert "Out of distribution: 3 images" in shown and " ?" in shown
    said = json.loads((out / "predictions.json").read_text())
    reasons = {Path(each["file"]).name: each["reason"] for each in said["refused"]}
    assert reasons == {
        "seg.dcm": "SOP Class UID (0008,0016) is of a mask, a dose or a map",
        "dose.dcm": "SOP Class UID (0008,0016) is of a mask, a dose or a map",
        "tiny.dcm": "fewer than 8 pixels on a side",
    }
    assert {Path(row["file"]).name for row in said["images"]} == {"bars.dcm", "noise.dcm", "bars.png"}
    assert all(row["ood_score"] > 1 and row["out_of_distribution"] for row in said["images"])


def test_predict_on_nothing_usable_ends_with_3_and_says_why(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    said = refused(capsys, 3, "predict", home, federation, "--out", tmp_path / "out", "--workers", 1)
    assert "of 1 file none could be used" in said
    assert "not DICOM" in (tmp_path / "out" / "refused.csv").read_text()
    said = refused(capsys, 2, "predict", home, federation, "--out", tmp_path / "out")
    assert "is there already" in said


def test_real_files_of_another_kind_are_refused_or_marked(
    home: Path, federation: Path, model: Path, shared_data: Path, tmp_path: Path, capsys: Capture
) -> None:
    """The model knows phantoms of CT and MR alone."""
    adapt(capsys, home, federation, model)
    cases, other = shared_data / "dicom_cases", shared_data / "dicom"
    files = [
        *(cases / "s01_seg" / "file.dcm", cases / "s02_rtdose" / "file.dcm", *(other / "ct_liver_seg").glob("seg*")),
        *(other / "us_ge" / "US1_UNCR.dcm", other / "other" / "pt_slice.dcm"),
    ]
    out = tmp_path / "out"
    assert wardround(capsys, "predict", home, *files, "--out", out, "--workers", 2)[0] == 0
    said = json.loads((out / "predictions.json").read_text())
    assert {each["reason"] for each in said["refused"]} == {"SOP Class UID (0008,0016) is of a mask, a dose or a map"}
    assert len(said["refused"]) == 4
    assert {row["unfamiliar"] for row in said["images"]} == {"the cohort has no US", "the cohort has no PT"}
    assert all(row["out_of_distribution"] for row in said["images"])
    assert sum(row["ood_score"] > 1 for row in said["images"]) > 0.5 * len(said["images"])


def test_metric_methods_name_the_nearest_cases(home: Path, tmp_path: Path, capsys: Capture) -> None:
    toml = tmp_path / "metric.toml"
    toml.write_text(
        FEDERATION_TOML.replace("features = 8", 'features = 8\nembedding = 4\n[algorithm]\nname = "prototypical"')
    )
    file = write_release(tmp_path / "file", load_federation(toml))
    adapt(capsys, home, toml, file, "--shots", 3, "--name", "metric")
    out = tmp_path / "out"
    assert wardround(capsys, "predict", home, new_images(tmp_path / "new"), "--out", out, "--workers", 1)[0] == 0
    support = [
        each.hex() for each in store.load(home, "metric", Hospital.open(home, ledger=Ledger(None)).device).support
    ]
    for image in json.loads((out / "predictions.json").read_text())["images"]:
        assert len(image["nearest"]) == 5
        assert all(support[case["case"]] == case["patient"] for case in image["nearest"])
    assert "case " in (out / "predictions.csv").read_text()


def test_erasing_a_patient_deletes_what_was_learned_from_them_and_what_names_them(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    """`withdraw` knows patients by PatientID, so these are taken in by one."""
    folder = write_patients(tmp_path / "dicom", patients=12)
    assert wardround(capsys, "ingest", home, folder, "--labels", folder / "labels.csv", "--size", 32)[0] == 0
    given = ("--classes", "a,b", "--shots", 1)
    for draw in range(6):
        adapt(capsys, home, federation, model, *given, "--seed", draw, "--name", f"draw-{draw}")
    hospital = Hospital.open(home, ledger=Ledger(None))
    gone = Pseudonyms(hospital.patients.key).patient("PAT-0")
    learned = {name for name in store.names(home) if gone in store.load(home, name, hospital.device).support}
    assert 0 < len(learned) < 6
    for out, patient in (("theirs", "p0"), ("another's", "p1")):
        to = ("--adapted", "draw-0", "--workers", 1, "--out", home / "predictions" / out)
        assert wardround(capsys, "predict", home, folder / patient, *to)[0] == 0
    (home / "predictions" / "cut off").mkdir()
    code, out, _ = wardround(capsys, "withdraw", home, "PAT-0", "--erase", "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()[-2:]] == [
        {"event": "forgot", "adapted": sorted(learned)},
        {"event": "forgot", "predictions": ["cut off", "theirs"]},
    ]
    assert set(store.names(home)) == {f"draw-{draw}" for draw in range(6)} - learned
    assert [each.name for each in (home / "predictions").iterdir()] == ["another's"]
