"""What a hospital is told about its own data: each thing that is amiss, in words, and nothing where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.client.intake.dicom_files import ingest_folder, write_dicom

from wardround.errors import DataError
from wardround.task import Task
from wardround_client.cohort.examples import usable_rows
from wardround_client.cohort.store import CohortStore
from wardround_client.personal.data_checks import Finding, class_findings, label_findings, raise_errors
from wardround_simulation.phantoms import make_profiles, write_hospital

CLASSES = ("normal", "nodule", "effusion")
Image = tuple[int, int, str]  # class, patient, manufacturer

# Every class has three patients, and each manufacturer is in each class.
SOUND: list[Image] = [
    (label, 10 * label + patient, "aurelia" if patient else "boreal") for label in range(3) for patient in range(3)
]


def found(images: Sequence[Image], shots: int = 0, classes: Sequence[str] = CLASSES) -> list[Finding]:
    y, patient, manufacturers = ([image[part] for image in images] for part in range(3))
    return class_findings(
        np.array(y, np.int64), np.array(patient, np.int64), [str(m) for m in manufacturers], classes, shots=shots
    )


def only(findings: list[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_nothing_is_said_of_sound_data() -> None:
    assert found(SOUND, shots=3) == []
    raise_errors(found(SOUND, shots=3))


# Too few patients


def test_fewer_patients_than_ways_times_shots_are_an_error_that_counts_them() -> None:
    error, warning = found(SOUND, shots=4)
    assert (error.level, warning.level) == ("error", "warning")
    assert error.what == (
        "the cohort has 9 patients for this task, fewer than 3 classes x 4 shots = 12 "
        "(patients a class: 'normal' 3, 'nodule' 3, 'effusion' 3)"
    )
    assert "fewer patients than the 4 shots" in warning.what
    with pytest.raises(DataError, match=r"9 patients.*= 12.*Next: label more patients, or ask for fewer shots") as it:
        raise_errors([warning, error])
    assert it.value.exit_code == 3 and warning.what not in str(it.value)


def test_one_class_short_of_shots_is_a_warning_when_the_cohort_is_large_enough() -> None:
    many = [(0, 100 + patient, "aurelia") for patient in range(10)]
    finding = only(found([*SOUND, *many], shots=4))
    assert finding.level == "warning" and finding.what.endswith("that were asked for: 'nodule' 3, 'effusion' 3")


def test_images_of_one_patient_are_not_more_patients() -> None:
    assert found(SOUND, shots=4) == found(SOUND * 5, shots=4)


def test_an_empty_cohort_has_no_class_and_too_few_patients() -> None:
    error, missing = found([], shots=1)
    assert (
        error.what
        == "the cohort has 0 patients for this task, fewer than 1 class x 1 shot = 1 (patients a class: none)"
    )
    assert missing.what == "classes without a patient: 'normal', 'nodule', 'effusion'"


def test_a_class_that_nobody_has_is_a_warning_and_asks_for_no_patients() -> None:
    finding = only(found([image for image in SOUND if image[0] != 1], shots=3))
    assert finding.level == "warning" and finding.what == "classes without a patient: 'nodule'"


def test_a_class_with_one_patient_is_a_warning() -> None:
    finding = only(found([image for image in SOUND if image[1] not in (11, 12)]))
    assert finding.level == "warning" and finding.what == "classes with one patient only: 'nodule'"
    assert "in the support or be judged, not both" in finding.do


def test_of_many_classes_a_few_are_named_and_the_rest_counted() -> None:
    names = [f"class {number}" for number in range(256)]
    error, few, missing = found([(0, 1, "m"), (0, 2, "m")], shots=3, classes=names)
    assert error.level == "error" and "class 0" in few.what
    assert missing.what.endswith("'class 4', 'class 5', and 250 more")
    error = found([(number, number, "m") for number in range(256)], shots=2, classes=names)[0]
    assert "'class 19' 1, and 236 more)" in error.what


# Shortcuts


def test_a_class_of_one_scanner_among_others_is_a_possible_shortcut() -> None:
    images = [(label, patient, "boreal" if label == 1 else made_by) for label, patient, made_by in SOUND]
    finding = only(found(images))
    assert finding.level == "warning"
    assert finding.what.startswith(
        "a possible shortcut: all images of 'nodule' come from 'boreal', and images of other"
    )
    assert "learn the scanner instead of the disease" in finding.what and "by manufacturer" in finding.do


def test_two_classes_that_two_scanners_tell_apart_are_both_named() -> None:
    images = [(label, 10 * label + patient, "ab"[label]) for label in (0, 1) for patient in (0, 1)]
    assert "'normal' come from 'a', all images of 'nodule' come from 'b'," in found(images, classes=CLASSES[:2])[0].what


def test_a_class_whose_files_name_no_manufacturer_came_another_way() -> None:
    images = [(label, patient, "unknown" if label == 2 else made_by) for label, patient, made_by in SOUND]
    assert "all images of 'effusion' name no manufacturer" in only(found(images)).what


def test_one_image_from_elsewhere_is_no_shortcut_and_neither_is_one_scanner_for_all() -> None:
    images = [(label, patient, "boreal" if label == 1 else made_by) for label, patient, made_by in SOUND]
    assert found([*images, (1, 10, "aurelia")]) == []
    assert found([(label, patient, "aurelia") for label, patient, _ in SOUND]) == []


# Labels


def test_unknown_labels_are_counted_and_close_spellings_named() -> None:
    codes = ["Nodule"] * 4 + ["efusion"] * 2 + ["zzz"] + ["normal"] * 9 + [None] * 3
    finding = only(label_findings(codes, CLASSES))
    assert finding.level == "warning"
    assert finding.what == (
        "7 images have labels that the task does not know: "
        "'Nodule' (4, perhaps 'nodule'), 'efusion' (2, perhaps 'effusion'), 'zzz' (1)"
    )
    assert "ingest again" in finding.do


def test_at_most_five_labels_are_named_shortened_and_made_harmless() -> None:
    codes = [f"{'long ' * 20}{number}" for number in range(6)] + ["\x1b[31m"] * 2
    what = only(label_findings(codes, CLASSES)).what
    assert what.startswith("8 images have labels") and what.endswith("and 2 more") and what.count("…") == 4
    assert what.isprintable() and len(what) < 400


def test_one_unknown_label_is_told_in_the_singular_and_known_ones_are_not_told() -> None:
    assert only(label_findings(["x"], CLASSES)).what.startswith("1 image has a label that the task")
    assert label_findings([*CLASSES, None], CLASSES) == [] == label_findings([], CLASSES)


# What must hold of any data

images_of_a_cohort = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6), st.sampled_from(["a", "b", "unknown"])))


@given(images_of_a_cohort, st.integers(0, 4), st.randoms(use_true_random=False))
def test_order_numbers_of_patients_and_copies_of_images_change_nothing(
    images: list[Image], shots: int, random: Random
) -> None:
    shuffled = [(label, 97 - 5 * patient, made_by) for label, patient, made_by in images * 2]
    random.shuffle(shuffled)
    assert found(shuffled, shots) == found(images, shots)


@given(images_of_a_cohort, st.integers(0, 4))
def test_it_is_an_error_exactly_when_there_are_fewer_patients_than_ways_times_shots(
    images: list[Image], shots: int
) -> None:
    ways = max(1, len({label for label, _, _ in images}))
    short = len({patient for _, patient, _ in images}) < ways * shots
    assert [finding.level for finding in found(images, shots)].count("error") == short


@given(images_of_a_cohort)
def test_every_class_is_found_to_have_no_patient_one_or_more(images: list[Image]) -> None:
    told = {finding.what.partition(":")[0]: finding.what for finding in found(images)}
    for label, name in enumerate(CLASSES):
        patients = len({patient for other, patient, _ in images if other == label})
        assert (f"'{name}'" in told.get("classes without a patient", "")) == (patients == 0)
        assert (f"'{name}'" in told.get("classes with one patient only", "")) == (patients == 1)


@given(images_of_a_cohort)
def test_a_shortcut_is_told_only_where_a_manufacturer_gives_the_class_away(images: list[Image]) -> None:
    what = "".join(finding.what for finding in found(images) if "shortcut" in finding.what)
    for label, name in enumerate(CLASSES):
        own = {made_by for other, _, made_by in images if other == label}
        others = {made_by for other, _, made_by in images if other != label}
        patients = {patient for other, patient, _ in images if other == label}
        assert (f"'{name}'" in what) == (len(own) == 1 and bool(others - own) and len(patients) > 1)


@given(st.lists(st.one_of(st.none(), st.sampled_from(CLASSES), st.text(max_size=60))))
def test_every_label_is_known_or_counted(codes: list[str | None]) -> None:
    strange = sum(code is not None and code not in CLASSES for code in codes)
    findings = label_findings(codes, CLASSES)
    assert bool(findings) == bool(strange)
    assert all(finding.what.split()[0] == str(strange) and finding.what.isprintable() for finding in findings)


# From files to findings


def told_of(cohort: Path, task: Task, shots: int = 0) -> list[Finding]:
    store = CohortStore.open(cohort, withdrawn=())
    rows = usable_rows(store, task)
    of_kept = [store.manufacturers[row] for row in rows.kept]
    return [
        *label_findings(store.labels(task.label_column), task.classes),
        *class_findings(rows.y, rows.patient, of_kept, task.classes, shots=shots),
    ]


def test_a_synthetic_hospital_is_fit_for_one_shot_and_too_small_for_a_hundred(tmp_path: Path) -> None:
    profile = make_profiles(1, patients=(24, 24), seed=1)[0]
    write_hospital(profile, tmp_path / "dicom")
    ingest_folder(tmp_path / "dicom", tmp_path / "c")
    task = Task(label_column="finding", classes=("normal", "nodule", "diffuse", "effusion"), image_size_px=8)
    assert told_of(tmp_path / "c", task, shots=1) == []
    with pytest.raises(DataError, match=r"24 patients for this task, fewer than 4 classes x 100 shots = 400"):
        raise_errors(told_of(tmp_path / "c", task, shots=100))


def test_a_hospital_that_bought_a_scanner_for_one_disease_and_mistyped_another(tmp_path: Path) -> None:
    lines = ["PatientID,finding"]
    for number in range(12):
        label = ("normal", "nodule", "Efusion")[number % 3]
        write_dicom(
            tmp_path / "dicom" / f"{number}.dcm",
            np.arange(64, dtype=np.uint8).reshape(8, 8) + number,
            PatientID=f"PAT-{number}",
            SOPInstanceUID=f"1.8.{number}",
            Manufacturer="BOREAL Medical " if label == "nodule" else ("Aurelia", "Boreal  medical")[number % 2],
        )
        lines.append(f"PAT-{number},{label}")
    (tmp_path / "dicom" / "labels.csv").write_text("\n".join(lines))
    ingest_folder(tmp_path / "dicom", tmp_path / "c")
    labels, missing, shortcut = told_of(tmp_path / "c", Task(label_column="finding", classes=CLASSES, image_size_px=8))
    assert "'Efusion' (4, perhaps 'effusion')" in labels.what
    assert missing.what == "classes without a patient: 'effusion'"
    assert "all images of 'nodule' come from 'boreal medical'" in shortcut.what
    raise_errors([labels, missing, shortcut])  # warnings stop nothing
