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
from tests.client.command_line import wardround
from tests.client.conftest import FEDERATION_TOML
from tests.client.intake.dicom_files import write_dicom, write_patients
from tests.client.personal.test_shared_model import write_release
from tests.rounds import TWO_COLUMNS

from wardround.config import load_federation
from wardround_client.hospital import Hospital
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.last_model import last_seen
from wardround_client.personal import adapted_file as store
from wardround_client.personal import learner as personalise
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.metrics import METRICS
from wardround_client.personal.predictions import predict, write
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
    """Adapt -> what --json says."""
    code, out, err = wardround(capsys, "adapt", home, "--task", federation, "--model", model, "--json", *more)
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


def test_one_approved_federation_and_its_last_model_need_no_option(
    home: Path, federation: Path, capsys: Capture
) -> None:
    agreed = Hospital.open(home, ledger=Ledger(None)).approvals.approve(federation).federation
    assert "seen no model of test" in refused(capsys, 2, "adapt", home)
    write_release(last_seen(home, agreed.digest), agreed, round=2)
    assert wardround(capsys, "adapt", home, "--name", "here")[0] == 0
    assert json.loads((home / "adapted" / "here" / "card.json").read_text())["round"] == 2
    assert wardround(capsys, "evaluate", home, "--unadapted")[0] == 0


def test_a_table_is_adapted_to_and_judged_but_holds_no_dicom(tmp_path: Path, capsys: Capture) -> None:
    home, toml, table = tmp_path / "home", tmp_path / "hearts.toml", tmp_path / "table.csv"
    toml.write_text(f'name = "hearts"{TWO_COLUMNS}')
    table.write_text("a,b,y\n" + "".join(f"{n / 10 - 2},{n % 3 - 1},{'yes' if n > 20 else 'no'}\n" for n in range(40)))
    assert wardround(capsys, "init", home, "--name", "here", "--patients", 40)[0] == 0
    assert wardround(capsys, "ingest", home, "--table", table, "--federation", toml)[0] == 0
    card = adapt(capsys, home, toml, write_release(tmp_path / "file", load_federation(toml)))
    assert card["after"]["metrics"]["balanced_accuracy"]["value"] > 0.8
    assert "'hearts' predicts from a table" in refused(capsys, 2, "predict", home, tmp_path)


def test_a_class_that_looks_like_a_formula_is_text_in_a_spreadsheet(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    hospital = Hospital.open(home, ledger=Ledger(None))
    found = store.load(home, "test", hospital.device)
    task = found.federation.task.model_copy(update={"classes": ("=1+1", "=2+2", "=3+3", "=4+4")})
    evil = replace(found, federation=found.federation.model_copy(update={"task": task}))
    said = predict(
        evil,
        [new_images(tmp_path / "new")],
        pseudonyms=Pseudonyms(hospital.patients.key),
        device=hospital.device,
        workers=1,
    )
    (tmp_path / "out").mkdir()
    write(said, tmp_path / "out")
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
    monkeypatch.setattr(personalise, "TRIED", {"adapt_pull": (7.0,)})
    assert adapt(capsys, home, federation, model, "--name", "tuned", "--tune")["adapt_pull"] == 7.0


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
    learned_from = {image["patient"] for image in said["images"] if image["learned_from"]}
    assert learned_from == {pseudonym.hex() for pseudonym in adapted.support}


def test_predict_on_nothing_usable_ends_with_3_and_says_why(
    home: Path, federation: Path, model: Path, tmp_path: Path, capsys: Capture
) -> None:
    adapt(capsys, home, federation, model)
    said = refused(capsys, 3, "predict", home, federation, "--out", tmp_path / "out", "--workers", 1)
    assert "none of 1 files could be used" in said
    assert "not DICOM" in (tmp_path / "out" / "refused.csv").read_text()
    said = refused(capsys, 2, "predict", home, federation, "--out", tmp_path / "out")
    assert "is there already" in said


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
