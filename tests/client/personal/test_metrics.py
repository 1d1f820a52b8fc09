"""What `hospital evaluate` says: by hand, by brute force, and what must not change it."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import one_hot

from wardround.errors import ConfigError, DataError
from wardround.labels import LabelKind
from wardround.labels.one import kind as one_class
from wardround.labels.several import kind as findings_kind
from wardround.proportions import wilson
from wardround_client.personal import metrics
from wardround_client.personal.metrics import METRICS, Report, _metrics, _pooled

# Three patients of class 1, two of class 0; no two scores tie and none lies between two bins of calibration.
SCORES = torch.tensor([0.9, 0.61, 0.3, 0.39, 0.1])
SOFTMAX = torch.stack([1 - SCORES, SCORES], dim=1)
LABELS = torch.tensor([1, 1, 1, 0, 0])
EACH = torch.arange(5)


def kind_of(y: Tensor) -> LabelKind:
    return findings_kind if y.dim() == 2 else one_class


def report(probabilities: Tensor, y: Tensor, patient: Tensor, **named: Any) -> Report:
    return metrics.report(probabilities, y, patient, labels=kind_of(y), **named)


def values(of: Report) -> dict[str, float]:
    assert all(of.metrics.values())
    return {name: each.value for name, each in of.metrics.items() if each}


def drawn(seed: int, patients: int = 24, classes: int = 3, images: int = 1, signal: float = 1.0) -> tuple[Tensor, ...]:
    """Softmax probabilities, labels and patients; every class occurs."""
    generator = torch.Generator().manual_seed(seed)
    patient = torch.arange(patients).repeat_interleave(images)
    y = patient % classes
    logits = torch.randn(len(y), classes, generator=generator) + signal * one_hot(y, classes)
    return logits.softmax(1), y, patient


def test_two_classes_by_hand() -> None:
    judged = report(SOFTMAX, LABELS, EACH, resamples=50)
    assert values(judged) == pytest.approx(
        {
            "balanced_accuracy": (2 / 3 + 1) / 2,
            "macro_auroc": 5 / 6,
            "macro_f1": 0.8,
            "recall_at_specificity": (2 / 3 + 1 / 2) / 2,
            "expected_calibration_error": (2 * 0.1 + 2 * 0.39 + 0.7) / 5,
            "brier_score": 2 * (2 * 0.1**2 + 2 * 0.39**2 + 0.7**2) / 5,
        }
    )
    assert judged.confusion == ((2, 0), (1, 2))
    assert (judged.patients, judged.predictions, judged.classes) == (5, 5, (0, 1))


def test_a_lower_specificity_lets_a_negative_pass() -> None:
    judged = report(SOFTMAX, LABELS, EACH, specificity=0.6, resamples=1)
    assert values(judged)["recall_at_specificity"] == pytest.approx((2 / 3 + 1) / 2)
    assert judged.specificity == 0.6


def test_findings_by_hand() -> None:
    """The second finding is everyone's, so there is nothing to tell apart; the third scores alike for all."""
    probabilities = torch.stack([SCORES, torch.full((5,), 0.7), torch.full((5,), 0.2)], dim=1)
    y = torch.stack([LABELS, torch.ones(5).long(), LABELS], dim=1)
    judged = report(probabilities, y, EACH, resamples=50)
    assert judged.classes == (0, 2)
    assert judged.confusion is None
    assert values(judged) == pytest.approx(
        {
            "balanced_accuracy": ((2 / 3 + 1) / 2 + (0 + 1) / 2) / 2,
            "macro_auroc": (5 / 6 + 1 / 2) / 2,
            "macro_f1": (4 / 5 + 0) / 2,
            "recall_at_specificity": (2 / 3 + 0) / 2,
            "expected_calibration_error": ((2 * 0.1 + 2 * 0.39 + 0.7) / 5 + (3 / 5 - 0.2)) / 2,
            "brier_score": ((2 * 0.1**2 + 2 * 0.39**2 + 0.7**2) / 5 + (3 * 0.8**2 + 2 * 0.2**2) / 5) / 2,
        }
    )
    assert report(probabilities, y.bool(), EACH, resamples=50) == judged
    assert report(probabilities, y.float(), EACH, resamples=50) == judged


def test_a_patient_is_one_prediction_for_each_label_shown() -> None:
    """Two images of patient 0 are wrong and right and pool to right; patient 1 shows both classes."""
    probabilities = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])
    judged = report(probabilities, torch.tensor([1, 1, 0, 1]), torch.tensor([0, 0, 1, 1]), resamples=20)
    assert (judged.patients, judged.predictions) == (2, 3)
    assert judged.confusion == ((1, 0), (0, 2))
    assert values(judged)["brier_score"] == pytest.approx(2 * (0.35**2 + 0.2**2 + 0.3**2) / 3)


@pytest.mark.parametrize(("below", "recall"), [(55, 1.0), (54, 0.0)])
def test_a_specificity_is_reached_by_the_count_that_rounding_could_miss(below: int, recall: float) -> None:
    """In floating point 0.55 * 100 is more than 55."""
    probabilities = torch.cat([torch.arange(100) / 100, torch.tensor([(below - 0.5) / 100])]).unsqueeze(1)
    y = torch.arange(101).unsqueeze(1) == 100
    judged = report(probabilities, y, torch.arange(101), specificity=0.55, resamples=1)
    assert values(judged)["recall_at_specificity"] == recall


@pytest.mark.parametrize(
    ("right", "wrong", "error"), [(0.61, 0.66, (0.66 - 0.39) / 2), (0.68, 0.66, (0.66 + 0.32) / 2), (1.0, 1.0, 0.5)]
)
def test_errors_of_calibration_cancel_within_a_fifteenth_only(right: float, wrong: float, error: float) -> None:
    """A bin ends at 10/15 = 0.667."""
    probabilities = torch.tensor([[right, 1 - right], [wrong, 1 - wrong]])
    judged = report(probabilities, torch.tensor([0, 1]), torch.arange(2), resamples=1)
    assert values(judged)["expected_calibration_error"] == pytest.approx(error)


def pairwise_auroc(scores: Tensor, truth: Tensor) -> float:
    pairs = [(float(a > b) + float(a == b) / 2) for a in scores[truth] for b in scores[~truth]]
    return sum(pairs) / len(pairs)


def best_recall(scores: Tensor, truth: Tensor, specificity: float) -> float:
    fits = [t for t in [*scores.tolist(), 99] if float((scores[~truth] < t).double().mean()) >= specificity - 1e-9]
    return max(float((scores[truth] >= t).double().mean()) for t in fits)


@given(
    rows=st.lists(
        st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans(), st.booleans()), min_size=1, max_size=25
    ),
    specificity=st.sampled_from([0.5, 0.7, 0.8, 0.9]),
)
def test_auroc_and_recall_are_those_of_brute_force(rows: list[tuple[int, int, bool, bool]], specificity: float) -> None:
    """With ties: few distinct scores."""
    scores, truth = (torch.tensor([row[at : at + 2] for row in rows]) for at in (0, 2))
    judged = report(scores / 6, truth, torch.arange(len(rows)), specificity=specificity, resamples=1)
    if not judged.classes:
        assert set(judged.metrics.values()) == {None}
        return
    columns = [(scores[:, k], truth[:, k]) for k in judged.classes]
    got = values(judged)
    assert got["macro_auroc"] == pytest.approx(sum(pairwise_auroc(*c) for c in columns) / len(columns))
    assert got["recall_at_specificity"] == pytest.approx(
        sum(best_recall(*c, specificity) for c in columns) / len(columns)
    )


@settings(max_examples=30)
@given(seed=st.integers(0, 999), findings=st.booleans())
def test_a_weight_is_a_number_of_copies(seed: int, findings: bool) -> None:
    """What the bootstrap rests on: a patient drawn twice counts as two patients alike, in every metric."""
    probabilities, y, patient = drawn(seed)
    y = one_hot((y + 1) % 3, 3) + one_hot(y, 3) if findings else y
    copies = torch.randint(3, (24,), generator=torch.Generator().manual_seed(seed))
    rows = torch.arange(24).repeat_interleave(copies)
    weighed = _metrics(_pooled(probabilities.double(), y, patient, kind_of(y)), copies.double().unsqueeze(1), 0.9)[0]
    copied = report(probabilities[rows], y[rows], torch.arange(len(rows)), resamples=1)
    assert dict(zip(METRICS, weighed.tolist(), strict=True)) == pytest.approx(values(copied))


@given(seed=st.integers(0, 999))
def test_auroc_of_the_opposite_score_is_what_is_missing_to_one(seed: int) -> None:
    probabilities, y, patient = drawn(seed)
    forth, back = (report(p, one_hot(y, 3), patient, resamples=1) for p in (probabilities, 1 - probabilities))
    assert values(forth)["macro_auroc"] + values(back)["macro_auroc"] == pytest.approx(1)


@settings(max_examples=30)
@given(seed=st.integers(0, 999), order=st.permutations(range(48)), names=st.permutations(range(24)))
def test_the_order_of_images_and_the_numbers_of_patients_change_no_value(
    seed: int, order: list[int], names: list[int]
) -> None:
    probabilities, y, patient = drawn(seed, images=2)
    judged = report(probabilities, y, patient, resamples=10)
    moved = report(probabilities[order], y[order], patient[order], resamples=10)
    renamed = report(probabilities, y, torch.tensor(names)[patient], resamples=10)
    for other in (moved, renamed):
        assert other.confusion == judged.confusion
        assert values(other) == pytest.approx(values(judged))


@given(seed=st.integers(0, 999), copies=st.integers(2, 5))
def test_more_images_that_say_the_same_change_nothing(seed: int, copies: int) -> None:
    """Neither a value nor an interval: the patients are as many."""
    once = drawn(seed)
    assert report(*(each.repeat(copies, *[1] * (each.dim() - 1)) for each in once), resamples=10) == report(
        *once, resamples=10
    )


@pytest.mark.parametrize("findings", [False, True])
def test_who_is_always_right_and_sure_has_every_best_score(findings: bool) -> None:
    y = torch.arange(12) % 4
    judged = report(one_hot(y, 4).float(), one_hot(y, 4) if findings else y, torch.arange(12), resamples=30)
    best = {**dict.fromkeys(METRICS[:4], 1.0), "expected_calibration_error": 0.0, "brier_score": 0.0}
    assert {name: each.value for name, each in judged.metrics.items() if each} == best
    for each in judged.metrics.values():
        assert each is not None
        assert max(each.high - each.value, each.value - each.low) == pytest.approx(0.2425, abs=1e-3), "Wilson, of 12"


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    """Seeded: 100 hospitals of 60 patients, three images each that share the error of their patient."""
    generator = torch.Generator().manual_seed(0)

    def judged(patients: int, seed: int, resamples: int) -> Report:
        shift = torch.randn(patients, generator=generator) + torch.arange(patients) % 2
        p = shift.sigmoid().repeat_interleave(3)
        patient = torch.arange(patients).repeat_interleave(3)
        return report(torch.stack([1 - p, p], dim=1), patient % 2, patient, resamples=resamples, seed=seed)

    truth = values(judged(50_000, 0, 1))
    hospitals = [judged(60, seed, 200) for seed in range(100)]
    for name in ("balanced_accuracy", "macro_auroc", "macro_f1", "brier_score"):
        held = [each.low <= truth[name] <= each.high for of in hospitals if (each := of.metrics[name])]
        assert 88 <= sum(held) <= 99, name


def test_a_resample_has_every_class_as_often_as_the_cohort() -> None:
    """Of ten patients the only one of class 1 is taken for class 0: a tenth is wrong in every resample."""
    said = one_hot(torch.zeros(10).long(), 2).float()
    brier = report(said, torch.arange(10) // 9, torch.arange(10), resamples=100).metrics["brier_score"]
    assert brier is not None
    assert (brier.low, brier.value, brier.high) == pytest.approx((wilson(0.2, 10)[0], 0.2, wilson(0.2, 10)[1]))


def test_a_patient_of_two_labels_is_drawn_whole() -> None:
    """Each patient shows both classes and is right about one: every resample is right about half, if that is so."""
    patient = torch.arange(10).repeat_interleave(2)
    always = patient % 2
    judged = report(one_hot(always, 2).float(), torch.arange(20) % 2, patient, resamples=100)
    accuracy, f1 = judged.metrics["balanced_accuracy"], judged.metrics["macro_f1"]
    assert accuracy is not None
    assert f1 is not None
    assert (accuracy.low, accuracy.value, accuracy.high) == pytest.approx((wilson(0.5, 10)[0], 0.5, wilson(0.5, 10)[1]))
    assert f1.low < f1.value - 0.01


def test_more_patients_narrow_the_interval() -> None:
    judged = (report(*drawn(0, patients), resamples=200).metrics["macro_auroc"] for patients in (30, 120, 480))
    widths = [each.high - each.low for each in judged if each]
    assert all(1.3 * narrow < wide < 3.5 * narrow for wide, narrow in pairwise(widths))


def test_each_manufacturer_gets_its_own_report() -> None:
    probabilities, y, patient = drawn(0, patients=12, images=2)
    makers = ["Philips", "GE", "GE"] * 3 + ["Siemens"] * 3
    judged = report(probabilities, y, patient, manufacturer=makers, resamples=20)
    assert [(name, of.patients) for name, of in judged.manufacturers.items()] == [
        ("GE", 6), ("Philips", 3), ("Siemens", 3),
    ]  # fmt: skip
    rows = torch.tensor([makers[each] == "GE" for each in patient.tolist()])
    alone = report(probabilities[rows], y[rows], torch.arange(6).repeat_interleave(2), resamples=20)
    assert judged.manufacturers["GE"] == alone
    # All three of Philips are of class 0: nothing to tell apart, whatever the model says.
    assert judged.manufacturers["Philips"].classes == ()
    assert set(judged.manufacturers["Philips"].metrics.values()) == {None}
    without = report(probabilities, y, patient, resamples=20)
    assert (without.metrics, without.manufacturers) == (judged.metrics, {})


def test_json_has_no_nan_and_every_field() -> None:
    judged = report(SOFTMAX, LABELS, EACH, manufacturer=["GE"] * 2 + ["Philips"] * 3, resamples=20)
    data = json.loads(json.dumps(judged.to_json(), allow_nan=False))
    assert data["manufacturers"]["GE"]["metrics"] == dict.fromkeys(METRICS)
    auroc = judged.metrics["macro_auroc"]
    assert auroc is not None
    assert data["metrics"]["macro_auroc"] == {"value": auroc.value, "low": auroc.low, "high": auroc.high}
    assert data["confusion"] == [[2, 0], [1, 2]]
    assert (data["patients"], data["classes"], data["specificity"]) == (5, [0, 1], 0.9)


NOT_A_NUMBER = SOFTMAX.clone()
NOT_A_NUMBER[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("probabilities", "y", "patient", "says"),
    [
        (SOFTMAX[:0], LABELS[:0], EACH[:0], "no patient"),
        (SOFTMAX, LABELS[:4], EACH, "shapes"),
        (SOFTMAX, LABELS, EACH[:4], "shapes"),
        (SOFTMAX[:, 0], LABELS, EACH, "shapes"),
        (SOFTMAX, one_hot(LABELS, 3), EACH, "shapes"),
        (SOFTMAX + 0.5, LABELS, EACH, "0 to 1"),
        (SOFTMAX - 0.5, LABELS, EACH, "0 to 1"),
        (NOT_A_NUMBER, LABELS, EACH, "0 to 1"),
        (SOFTMAX / 2, LABELS, EACH, "softmax"),
        (SOFTMAX, LABELS + 1, EACH, "Allowed: 0 to 1"),
        (SOFTMAX, LABELS - 1, EACH, "Allowed: 0 to 1"),
        (SOFTMAX, one_hot(LABELS, 2) * 0.5, EACH, "labels 0 and 1"),
        (SOFTMAX, LABELS, EACH - 1, "negative number"),
    ],
)
def test_bad_input_is_said(probabilities: Tensor, y: Tensor, patient: Tensor, says: str) -> None:
    with pytest.raises(DataError, match=says):
        report(probabilities, y, patient)


def test_manufacturers_are_one_a_patient() -> None:
    with pytest.raises(DataError, match="2 manufacturers for 5 patients"):
        report(SOFTMAX, LABELS, EACH, manufacturer=["GE", "GE"])


@pytest.mark.parametrize(("specificity", "resamples"), [(0.0, 10), (1.0, 10), (0.9, 0)])
def test_impossible_options_are_said(specificity: float, resamples: int) -> None:
    with pytest.raises(ConfigError, match="above 0 and below 1, at least 1 resample"):
        report(SOFTMAX, LABELS, EACH, specificity=specificity, resamples=resamples)


@given(st.integers(0, 10_000), st.sampled_from([0.5, 0.8, 0.9, 0.99]))
def test_an_operating_point_keeps_its_specificity_and_is_where_the_recall_is(seed: int, specificity: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.tensor([0, 1]), torch.randint(2, (18,), generator=rng)])
    positive = (torch.rand(20, generator=rng) * 8).round() / 8  # with ties
    found = report(torch.stack([1 - positive, positive], 1), y, torch.arange(20), specificity=specificity, resamples=1)
    points = [point for point in found.operating_points if point]
    for label, point in enumerate(points):
        score = positive if label else 1 - positive
        assert float((score[y != label] <= point.threshold).double().mean()) == pytest.approx(point.specificity)
        assert point.specificity >= specificity - 1e-9
        assert float((score[y == label] > point.threshold).double().mean()) == pytest.approx(point.sensitivity.value)
        assert point.sensitivity.low <= point.sensitivity.value <= point.sensitivity.high
    recall = found.metrics["recall_at_specificity"]
    assert recall and recall.value == pytest.approx(sum(point.sensitivity.value for point in points) / 2)
