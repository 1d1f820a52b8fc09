"""`wardround hospital suggest`: from a list of whom to label, filled in, back to a cohort that has these labels."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tests.client.command_line import wardround
from tests.client.intake.dicom_files import write_dicom
from tests.client.personal.test_shared_model import write_release

from wardround.config import load_federation
from wardround_client.hospital import Hospital
from wardround_client.personal.shared_model import choose
from wardround_client.personal.suggestions import suggested
from wardround_client.privacy.ledger import Ledger

Capture = pytest.CaptureFixture[str]
CLASSES = ("dark", "grey", "bright")
FEDERATION = """
name = "greys"
[task]
label_column = "shade"
classes = ["dark", "grey", "bright"]
image_size_px = 32
[model]
features = 8
"""
TABLE = """
name = "table"
[task]
kind = "table"
label_column = "shade"
classes = ["dark", "grey", "bright"]
features = ["light", "size"]
[model]
family = "logistic"
"""
TRUTH = {f"PAT-{number}": CLASSES[number % 3] for number in range(15)}


def pixels(number: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A disc as bright as the class says."""
    y, x = np.mgrid[:32, :32]
    disc = (x - 16) ** 2 + (y - 12 - number % 7) ** 2 < 60
    found: np.ndarray[Any, np.dtype[np.uint8]] = (20 + number + disc * (40 + 80 * (number % 3))).astype(np.uint8)
    return found


class Place:
    """A hospital and what it has, with a federation's model."""

    def __init__(self, folder: Path, capsys: Capture, federation: str = FEDERATION) -> None:
        self.folder, self.home, self.capsys = folder, folder / "home", capsys
        self.federation, self.model = folder / "federation.toml", folder / "checkpoint.safetensors"
        self.federation.write_text(federation)
        write_release(self.model, load_federation(self.federation))
        self("init", self.home, "--name", "st-anna", "--patients", "15")

    def __call__(self, *arguments: object, expect: int = 0) -> str:
        code, out, err = wardround(self.capsys, *arguments)
        assert code == expect, out + err
        return " ".join((out + err).split())

    def ingest(self, *arguments: object) -> str:
        return self("ingest", self.home, *arguments, "--federation", self.federation)

    def suggest(self, *arguments: object) -> dict[str, Any]:
        asked = ("--task", self.federation, "--model", self.model, "--json")
        said: dict[str, Any] = json.loads(self("suggest", self.home, *arguments, *asked))
        return said

    def labelled(self) -> dict[str, int]:
        """Patients by label."""
        hospital = Hospital.open(self.home, ledger=Ledger(None))
        store = hospital.patients.cohort()
        of = zip(store.patients.tolist(), store.labels("shade"), strict=True)
        return dict(Counter(label for _, label in set(of) if label is not None))

    def dicom(self) -> Path:
        for number, patient in enumerate(TRUTH):
            for image in range(2):
                write_dicom(
                    self.folder / "dicom" / patient / f"{image}.dcm", pixels(number), PatientID=patient,
                    AccessionNumber=f"A{number}", StudyInstanceUID=f"1.9.{number}",
                    SOPInstanceUID=f"1.8.{number}.{image}",
                )  # fmt: skip
        return self.folder / "dicom"

    def csv(self, name: str, lines: Sequence[Mapping[str, object]]) -> Path:
        with (self.folder / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, list(lines[0]))
            writer.writeheader()
            writer.writerows(lines)
        return self.folder / name


@pytest.fixture
def place(tmp_path: Path, capsys: Capture) -> Place:
    return Place(tmp_path, capsys)


def fill_in(file: Path) -> list[str]:
    """Write the truth into the empty column, as a person would -> whose."""
    with file.open(encoding="utf-8-sig", newline="") as opened:
        lines = list(csv.DictReader(opened))
    whose = [line.get("# PatientID") or line["PatientID"] for line in lines]
    assert {line["shade"] for line in lines} == {""}
    with file.open("w", encoding="utf-8-sig", newline="") as opened:
        writer = csv.DictWriter(opened, list(lines[0]))
        writer.writeheader()
        writer.writerows(line | {"shade": TRUTH[patient]} for line, patient in zip(lines, whose, strict=True))
    return whose


def test_from_no_label_to_all_of_them(place: Place) -> None:
    """A hospital whose patients nobody has labelled asks, labels, asks again, until there is nobody left."""
    folder = place.dicom()
    assert "taken in without one" in place.ingest(folder)
    assert place.labelled() == {}
    seen: list[str] = []
    for turn in range(3):
        said = place.suggest(5, folder)
        assert (said["unlabelled"], said["labelled"], said["named"]) == (15 - 5 * turn, 5 * turn, 15 - 5 * turn)
        assert said["predicted"], "by the shared model, and by the adapted one as soon as there are labels"
        assert all(each["why"] for each in said["suggestions"])
        filled = Path(said["file"])
        assert filled.stat().st_mode & 0o777 == 0o600
        seen += fill_in(filled)
        place.ingest(folder, "--labels", filled)
    assert sorted(seen) == sorted(TRUTH)
    assert place.labelled() == dict.fromkeys(CLASSES, 5)
    nobody = place("suggest", place.home, 5, folder, "--task", place.federation, "--model", place.model, expect=3)
    assert "0 patients without a label" in nobody
    assert place.ingest(folder), "without a CSV the labels of before stay"
    assert place.labelled() == dict.fromkeys(CLASSES, 5)
    place.ingest(folder, "--remove-missing", 99)
    assert place.labelled() == dict.fromkeys(CLASSES, 5)


def test_the_same_cohort_and_model_give_the_same_list(place: Place) -> None:
    folder = place.dicom()
    place.ingest(folder)
    first, second = (place.suggest(7, folder) for _ in range(2))
    assert first["suggestions"] == second["suggestions"]
    assert first["file"] != second["file"], "what somebody may be filling in is not written over"
    assert place.suggest(3, folder)["suggestions"] == first["suggestions"][:3]


def test_what_is_asked_of_a_pacs_is_named_by_its_worklist(place: Place) -> None:
    """Without files: the keys of the CSV say who is meant, and the lines that come back are its own."""
    folder = place.dicom()
    lines = [{"AccessionNumber": f"A{n}", "ward": "B", "shade": TRUTH[f"PAT-{n}"] if n < 4 else ""} for n in range(15)]
    worklist = place.csv("worklist.csv", lines)
    place.ingest(folder, "--labels", worklist)
    said = place.suggest(3, "--labels", worklist)
    assert (said["labelled"], said["unlabelled"]) == (4, 11)
    chosen = [each["line"] for each in said["suggestions"]]
    assert all(line["ward"] == "B" and int(line["AccessionNumber"][1:]) >= 4 for line in chosen)
    filled = place.csv("filled.csv", [line | {"shade": "grey"} for line in chosen])
    place.ingest(folder, "--labels", filled)
    assert sum(place.labelled().values()) == 7


def test_pictures_come_back_as_lines_of_their_csv(place: Place) -> None:
    lines = []
    for number, patient in enumerate(TRUTH):
        Image.fromarray(pixels(number)).save(place.folder / f"{number}.png")
        lines.append(
            {"file": f"{number}.png", "PatientID": patient, "shade": TRUTH[patient] if number in (0, 1) else ""}
        )
    pictures = place.csv("pictures.csv", lines)
    place.ingest(place.folder, "--labels", pictures)
    said = place.suggest(4, place.folder, "--labels", pictures)
    whose = fill_in(Path(said["file"]))
    assert not {"PAT-0", "PAT-1"} & set(whose)
    place.ingest(place.folder, "--labels", said["file"])
    assert sum(place.labelled().values()) == 6


def test_rows_of_a_table_come_back_as_rows(tmp_path: Path, capsys: Capture) -> None:
    place = Place(tmp_path, capsys, TABLE)
    lines = [
        {"PatientID": patient, "light": n % 3 + n / 50, "size": n % 5, "shade": TRUTH[patient] if n < 3 else "?"}
        for n, patient in enumerate(TRUTH)
    ]
    table, by = place.csv("table.csv", lines), ("--set", "patient_column=PatientID")
    place.ingest(table, *by)
    said = place.suggest(4, table, *by)
    assert len(fill_in(Path(said["file"]))) == 4
    place.ingest(said["file"], *by)
    assert sum(place.labelled().values()) == 7


def test_images_of_an_archive_come_back_by_their_numbers(place: Place) -> None:
    known = [TRUTH[patient] if n < 3 else "" for n, patient in enumerate(TRUTH)]
    images = np.stack([pixels(number) for number in range(15)])
    np.savez(place.folder / "all.npz", images=images, patients=np.array(list(TRUTH)), shade=np.array(known))
    place.ingest(place.folder / "all.npz")
    said = place.suggest(4, place.folder / "all.npz")
    assert len(fill_in(Path(said["file"]))) == 4
    place.ingest(place.folder / "all.npz", "--labels", said["file"])
    assert sum(place.labelled().values()) == 7


def test_nobody_who_withdrew_is_suggested(place: Place) -> None:
    folder = place.dicom()
    place.ingest(folder)
    before = place.suggest(15, folder)["suggestions"]
    gone = before[0]["line"]["# PatientID"]
    place("withdraw", place.home, gone)
    after = place.suggest(15, folder)
    assert after["unlabelled"] == len(after["suggestions"]) == 14
    assert gone not in [each["line"]["# PatientID"] for each in after["suggestions"]]
    assert gone not in Path(after["file"]).read_text()
    assert "Deleted suggestions that name them" in place("withdraw", place.home, gone, "--erase")
    assert [file.name for file in (place.home / "suggestions").iterdir()] == [Path(after["file"]).name]


def test_a_label_never_becomes_another_patients(place: Place) -> None:
    """A Study Instance UID that two patients have names neither; a file that was changed is nobody's any more."""
    folder = place.dicom()
    for patient in ("PAT-3", "PAT-4"):
        file = folder / patient / "0.dcm"
        write_dicom(file, pixels(3), PatientID=patient, StudyInstanceUID="1.9.77", SOPInstanceUID=f"1.7.{patient[4:]}")
        (folder / patient / "1.dcm").unlink()
    place.ingest(folder)
    for image in range(2):
        file = folder / "PAT-5" / f"{image}.dcm"
        write_dicom(file, pixels(9), PatientID="PAT-5", StudyInstanceUID="1.9.5", SOPInstanceUID=f"1.8.5.{image}")
    said = place.suggest(15, folder)
    assert (said["unlabelled"], said["named"]) == (15, 12)
    assert {"PAT-3", "PAT-4", "PAT-5"}.isdisjoint(each["line"]["# PatientID"] for each in said["suggestions"])


def test_what_files_say_of_themselves_computes_nothing(place: Place) -> None:
    folder = place.dicom()
    formula = "=HYPERLINK(1)"
    write_dicom(folder / "x.dcm", pixels(40), PatientID=formula, StudyInstanceUID="1.9.40", SOPInstanceUID="1.8.40")
    with pytest.warns(UserWarning, match="Invalid value"):
        write_dicom(folder / "y.dcm", pixels(41), PatientID="Y", StudyInstanceUID="=1+1", SOPInstanceUID="1.8.41")
    place.ingest(folder)
    with Path(place.suggest(17, folder)["file"]).open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    assert f"'{formula}" in cells
    assert not [cell for cell in cells if cell.startswith(("=", " =", "+", "@"))]


def test_new_classes_that_nobody_has_are_chosen_by_how_patients_differ(place: Place) -> None:
    folder = place.dicom()
    place.ingest(folder)
    said = place.suggest(4, folder, "--classes", "scar,no scar", "--label-column", "shade")
    assert not said["predicted"]
    assert said["suggestions"][0]["why"] == "like most of those without a label"
    assert all(each["probabilities"] == {} for each in said["suggestions"])


def test_a_page_gets_a_picture_of_each(place: Place) -> None:
    folder = place.dicom()
    place.ingest(folder)
    hospital = Hospital.open(place.home, ledger=Ledger(None))
    start = choose(hospital, task=str(place.federation), file=place.model)
    store = hospital.patients.cohort()
    found = suggested(store, start, hospital.device, 2)
    for each in found.chosen:
        assert store.pseudonyms[store.patients[each.row]] == each.pseudonym
        picture = each.thumbnail(store)
        assert picture is not None and picture.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((5,), "nothing says who the patients of the cohort are"),
        ((0, "dicom"), "0 is not in the range"),
        ((5, "nowhere"), "nowhere is not a folder or a file"),
        ((5, "dicom", "--out", "federation.toml"), "is there already"),
    ],
)
def test_what_cannot_be_is_said(
    arguments: tuple[object, ...], said: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.ingest(place.dicom())
    monkeypatch.chdir(place.folder)
    code, out, err = wardround(
        place.capsys, "suggest", place.home, *arguments, "--task", place.federation, "--model", place.model
    )
    assert code != 0
    assert said in " ".join((out + err).split())


def test_masks_are_not_suggested(tmp_path: Path, capsys: Capture) -> None:
    place = Place(tmp_path, capsys)
    place.ingest(place.dicom())
    masks = tmp_path / "masks.toml"
    masks.write_text(FEDERATION.replace("[model]", 'labels = "mask"\n[model]'))
    write_release(tmp_path / "masks.safetensors", load_federation(masks))
    asked = ("--task", masks, "--model", tmp_path / "masks.safetensors")
    said = place("suggest", place.home, 5, tmp_path / "dicom", *asked, expect=2)
    assert "a label for a whole image" in said


def test_of_times_both_columns_are_to_be_filled_in(tmp_path: Path, capsys: Capture) -> None:
    times = 'labels = "survival"\nevent_column = "dead"\nclasses = ["1 year", "2 years"]\nends = [365, 730]'
    place = Place(
        tmp_path, capsys, TABLE.replace('classes = ["dark", "grey", "bright"]', times).replace("shade", "days")
    )
    known = [{"days": 100 * n + 50, "dead": n % 2} if n < 6 else {"days": "", "dead": ""} for n in range(15)]
    lines = [{"PatientID": f"P{n}", "light": n % 3, "size": n % 5, **each} for n, each in enumerate(known)]
    table, by = place.csv("table.csv", lines), ("--set", "patient_column=PatientID")
    place.ingest(table, *by)
    said = place.suggest(4, table, *by)
    assert (said["unlabelled"], said["labelled"], said["predicted"]) == (9, 6, False)
    filled = [each["line"] for each in said["suggestions"]]
    assert all((line["days"], line["dead"]) == ("", "") for line in filled)
    assert any("dead 1 where the event was" in name for name in filled[0])
    place.ingest(place.csv("filled.csv", [line | {"days": 400, "dead": 1} for line in filled]), *by)
    assert place.suggest(4, table, *by)["labelled"] == 10
