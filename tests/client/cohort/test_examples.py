"""From a cohort on disk to a model's examples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.augment import variants
from wardround.errors import DataError
from wardround.models.conv4 import Conv4
from wardround.models.tabular import Tabular
from wardround.task import Task
from wardround_client.cohort import examples as module
from wardround_client.cohort.examples import examples_of, usable_rows


@dataclass(frozen=True)
class Memory:
    """A cohort in memory."""

    inputs: Any
    patients: Any
    codes: list[str | None]
    kind: str = "image"
    channels: int = 1
    features: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    measured: str = ""

    def labels(self, column: str) -> list[str | None]:
        return self.codes


TASK = Task(label_column="finding", classes=("no", "yes"), image_size_px=8)
MODEL = Conv4.of(1, 8, 2)


def store(codes: list[str | None], patients: list[int]) -> Memory:
    pixels = np.arange(len(codes) * 64, dtype=np.uint16).reshape(-1, 1, 8, 8)
    return Memory(pixels, np.array(patients, dtype=np.int64), codes)


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_images_labels_and_patients_stay_together(monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", batch_bytes)
    cohort = store(["yes", "other", "no", None, "yes"], [7, 7, 3, 5, 9])
    examples = examples_of(cohort, TASK, MODEL)
    assert examples.y.tolist() == [1, 0, 1]
    assert examples.patient.tolist() == [1, 0, 2]
    assert (examples.patients, examples.left_out, examples.classes) == (3, 2, 2)
    assert torch.equal(examples.z, torch.from_numpy(cohort.inputs[[0, 2, 4]].astype(np.float32)) / 65535)
    assert examples.summary.shape == (3, MODEL.scaling_size)


def test_a_missing_label_is_not_a_class_called_none() -> None:
    task = TASK.model_copy(update={"classes": ("None", "yes", "no")})
    assert examples_of(store(["yes", None, "no"], [0, 1, 2]), task, Conv4.of(1, 8, 3)).left_out == 1


@pytest.mark.parametrize(
    ("codes", "patients", "message"),
    [
        ([], [], "empty"),
        (["other", None], [0, 1], "no example"),
        (["yes", "yes"], [0, 1], "one class"),
        (["yes", "no"], [0, 0], "1 patient "),
    ],
)
def test_a_cohort_of_little_use_is_said_at_home_and_answers_all_the_same(
    codes: list[str | None], patients: list[int], message: str
) -> None:
    """docs/privacy-specification.md P56: "Whether a round is answered does not depend on any patient"."""
    cohort = store(codes, patients)
    with pytest.raises(DataError, match=message):
        usable_rows(cohort, TASK).check(TASK)
    examples = examples_of(cohort, TASK, MODEL)
    assert examples.z.shape[1:] == (1, 8, 8) and examples.summary.shape[1:] == (MODEL.scaling_size,)
    assert len(examples.z) == len(examples.y) == len(examples.patient) == len(examples.summary)
    assert examples.patients == len({p for p, code in zip(patients, codes, strict=True) if code in TASK.classes})


def test_another_size_says_to_ingest_again() -> None:
    with pytest.raises(DataError, match="ingest again"):
        examples_of(store(["yes", "no"], [0, 1]), TASK.model_copy(update={"image_size_px": 16}), MODEL)


def test_a_table_must_have_the_task_s_columns_in_its_order() -> None:
    task = Task(label_column="ill", classes=("no", "yes"), kind="table", features=("age", "sugar"))
    table = np.ones((2, 2), np.float32)
    rows = Memory(table, np.array([0, 1]), ["no", "yes"], "table", 0, ("sugar", "age"))
    with pytest.raises(DataError, match="columns"):
        examples_of(rows, task, Tabular.logistic(2, 2))


FINDINGS = Task(label_column="finding", classes=("nodule", "effusion"), labels="several", image_size_px=8)


def test_a_cell_holds_several_findings_or_none() -> None:
    codes = ["nodule;effusion", "effusion ; mass", "normal", None, " nodule", ""]
    examples = examples_of(store(codes, [4, 4, 1, 1, 0, 2]), FINDINGS, MODEL)
    assert not examples.labels.exclusive
    assert examples.y.tolist() == examples.targets.tolist() == [[1, 1], [0, 1], [0, 0], [1, 0], [0, 0]]
    assert examples.y.dtype == torch.float32
    assert examples.patient.tolist() == [3, 3, 1, 0, 2]
    assert examples.left_out == 1


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ([], "empty"),
        ([None], "no example"),
        (["effusion;nodule", "nodule;effusion"], "same findings"),
        (["normal", "other"], "same findings"),
    ],
)
def test_findings_of_little_use_are_said_at_home_and_answer_all_the_same(codes: list[str | None], message: str) -> None:
    cohort = store(codes, list(range(len(codes))))
    with pytest.raises(DataError, match=message):
        usable_rows(cohort, FINDINGS).check(FINDINGS)
    assert examples_of(cohort, FINDINGS, MODEL).y.shape == (sum(code is not None for code in codes), 2)


def test_one_class_an_image_says_the_same_as_targets() -> None:
    examples = examples_of(store(["yes", "no"], [0, 1]), TASK, MODEL)
    assert examples.labels.exclusive
    assert examples.targets.tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("batch_bytes", [1, 1 << 20])
def test_variants_are_encoded_beside_their_image(monkeypatch: pytest.MonkeyPatch, batch_bytes: int) -> None:
    monkeypatch.setattr(module, "_BATCH_BYTES", batch_bytes)
    augment = TASK.model_copy(update={"augment": ("flip-horizontal", "shift")})
    cohort = store(["yes", "other", "no", "yes"], [7, 7, 3, 9])
    plain, examples = (examples_of(cohort, task, MODEL) for task in (TASK, augment))
    assert (plain.variants, examples.variants) == (1, 10)
    for name in ("z", "y", "patient", "summary"):
        assert torch.equal(getattr(plain, name), getattr(examples, name)), "judging sees images as they are"
    shown, y = examples.for_learning(torch.arange(3))
    assert torch.equal(shown.view(3, 10, 1, 8, 8), torch.stack(list(variants(plain.z, augment.augment)), 1))
    assert torch.equal(y, plain.y.repeat_interleave(10))


def test_nobody_has_variants_too() -> None:
    augment = TASK.model_copy(update={"augment": ("intensity",)})
    examples = examples_of(store([], []), augment, MODEL)
    assert examples.variants == 3
    assert examples.for_learning(torch.arange(0))[0].shape == (0, 1, 8, 8)


def test_a_cohort_that_measures_something_else_does_not_fit() -> None:
    hounsfield = Task(label_column="finding", classes=("no", "yes"), image_size_px=8, units="HU", window=(40, 400))
    with pytest.raises(DataError, match="as a viewer shows them"):
        examples_of(store(["no", "yes"], [0, 1]), hounsfield, MODEL)


@given(
    st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["no", "yes", None])), min_size=2, max_size=24),
    st.integers(1, 5),
)
def test_who_has_no_label_changes_nothing(images: list[tuple[int, str | None]], batch: int) -> None:
    """Bit for bit: patients without a label are in no answer, and in nobody else's."""
    codes, patients = [code for _, code in images], [patient for patient, _ in images]
    everybody = store(codes, patients)
    kept = np.flatnonzero([code is not None for code in codes])
    labelled = Memory(everybody.inputs[kept], everybody.patients[kept], [codes[row] for row in kept.tolist()])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BATCH_BYTES", batch * 256)
        found, alone = (examples_of(each, TASK, MODEL) for each in (everybody, labelled))
    for name in ("z", "y", "patient", "summary", "images", "by_patient", "targets"):
        one, other = getattr(found, name), getattr(alone, name)
        assert one.dtype == other.dtype
        assert one.numpy().tobytes() == other.numpy().tobytes()
    assert found.patients == alone.patients
