"""Wrong labels, rare classes, a dominant scanner: what is made of a hospital is what the table says."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.algorithms.meta_weight import MetaWeight
from wrong_labels import GENERALIZED, MOST_PATIENTS, RARER, ROWS, Part, dealt, rarer, ruled, scanned, wrong

CLASSES = ("a", "b", "c")
LABELS = st.lists(st.sampled_from(CLASSES), min_size=1, max_size=80)


def part(labels: list[str], images: int = 2) -> Part:
    """So many images of each patient."""
    patient = np.arange(len(labels)).repeat(images)
    n = len(patient)
    label = np.array(labels).repeat(images)
    return Part("here", np.zeros((n, 3, 4, 4), np.uint8), torch.arange(n).float().unsqueeze(1), label, patient)


@given(LABELS, st.sampled_from([0.0, 0.2, 0.4, 1.0]), st.integers(0, 99))
def test_so_many_patients_of_each_class_have_another_label_and_all_their_images_the_same(
    labels: list[str], share: float, seed: int
) -> None:
    before = part(labels)
    after = wrong(before, share, CLASSES, np.random.default_rng(seed))
    assert np.array_equal(after.patient, before.patient) and torch.equal(after.z, before.z)
    assert np.array_equal(after.label[::2], after.label[1::2])
    for name in CLASSES:
        own = np.array(labels) == name
        assert (after.label[::2][own] != name).sum() == round(share * own.sum())
    assert np.array_equal(before.label, part(labels).label), "and the hospital itself stays as it was"


@given(LABELS, st.integers(0, 99))
def test_other_classes_keep_a_twentieth_of_the_largest(labels: list[str], seed: int) -> None:
    after = rarer(part(labels), CLASSES, np.random.default_rng(seed))
    numbers = sorted((len(after.showing(name)) for name in CLASSES), reverse=True)
    assert numbers[0] == max(labels.count(name) for name in CLASSES)
    assert numbers[1] <= max(1, numbers[0] // RARER)


@given(LABELS, st.integers(1, 4))
def test_hospitals_share_no_patient(labels: list[str], hospitals: int) -> None:
    parts = dealt(part(labels), hospitals)
    patients = np.concatenate([each.patients for each in parts])
    assert len(np.unique(patients)) == len(patients) == len(labels)
    assert all(len(each.patients) <= MOST_PATIENTS for each in parts)
    assert len({each.name for each in parts}) == hospitals


def test_a_dominant_scanner_changes_every_image_and_keeps_its_range() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
    shown = scanned(images)
    assert shown.dtype == np.uint8 and shown.shape == images.shape
    assert shown.std() < 0.8 * images.std() and shown.mean() > images.mean()
    assert len({round(float(channel.mean())) for channel in shown.transpose(1, 0, 2, 3)}) == 3, "a tint"


def test_every_row_follows_the_public_rule() -> None:
    rows = {row.name: row for row in ruled()}
    assert tuple(rows) == ROWS
    assert all(len(row.exact) == 1 and len(row.private) <= 1 for row in rows.values())
    assert MetaWeight.model_validate(dict(rows[GENERALIZED].private[0].settings)).table == "generalized"
