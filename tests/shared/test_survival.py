"""Times to an event: what a CSV may say of them, their likelihood, and who has the event first."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.client.privacy.generated import CLASSES, MODELS, times
from torch import Tensor
from torch.func import grad

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.labels.survival import CUTS, START, concordance, interval_times, kept, risk_of
from wardround.labels.survival import kind as survival
from wardround.models import Objective
from wardround.task import Task

ENDS = (365.0, 730.0, 1826.0)


def task_of(**changes: Any) -> Task:
    return Task.model_validate(
        {
            "label_column": "days",
            "event_column": "dead",
            "labels": "survival",
            "classes": ["1 year", "2 years", "5 years"],
            "ends": ENDS,
        }
        | changes
    )


def read(cell: str, **changes: Any) -> tuple[float, float] | None:
    """Interval time and event of a cell, None where it has no label."""
    task = task_of(**changes)
    y, used = survival.parse([task.label(cell)], task)
    return (float(y[0, 0]), float(y[0, 1])) if used[0] else None


# --- the agreement


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"ends": ()}, "ends holds 0 numbers for 3 classes"),
        ({"ends": (365.0, 730.0)}, "ends holds 2 numbers for 3 classes"),
        ({"ends": (365.0, 365.0, 1826.0)}, "each larger than the one before"),
        ({"ends": (0.0, 365.0, 1826.0)}, "greater than or equal to"),
        ({"event_column": "days"}, "name one column"),
        ({"values": {"x": "1 year"}}, "allowed: 'event', 'censored', ''"),
        ({"labels": "one"}, 'are for labels = "survival"'),
    ],
)
def test_an_agreement_that_cannot_be_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        task_of(**changes)


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_methods_that_compare_classes_refuse_times(name: str) -> None:
    if ALGORITHMS[name].one_class_each:
        with pytest.raises(ValidationError, match="needs images of one class"):
            Federation.model_validate({"name": "f", "task": task_of().model_dump(), "algorithm": {"name": name}})
    else:
        Federation.model_validate({"name": "f", "task": task_of().model_dump(), "algorithm": {"name": name}})


def test_an_agreement_without_times_has_the_text_that_it_always_had() -> None:
    plain = Federation(name="f", task=Task(label_column="y", classes=("a", "b")))
    assert "ends" not in plain.canonical() and "event_column" not in plain.canonical()
    timed = Federation(name="f", task=task_of())
    assert Federation.from_canonical(timed.canonical()) == timed


# --- the CSV


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("365;1", (1.0, 1.0)),
        ("365.5;1", (1 + 0.5 / 365, 1.0)),
        ("0;1", (0.0, 1.0)),
        ("0;0", (0.0, 0.0)),
        ("182,5;0", (0.5, 0.0)),
        (" 182.5 ; Dead", (0.5, 1.0)),
        ("365; alive ", (1.0, 0.0)),
        ("1e3;TRUE", (2 + 270 / 1096, 1.0)),
        ("3652;0", (4.0, 0.0)),
        ("365;1:DECEASED", (1.0, 1.0)),
        ("365;0:LIVING", (1.0, 0.0)),
        ("365", None),
        ("-1;1", None),
        ("1,234;1", None),
        ("365;2", None),
        ("365;", None),
        (";1", None),
        ("nan;1", None),
        ("inf;1", None),
        ("1e12;1", None),
        ("2019-03-04;1", None),
        ("3 months;1", None),
        ("365;1;1", None),
        ("", None),
    ],
)
def test_what_a_cell_may_say(cell: str, found: tuple[float, float] | None) -> None:
    said = read(cell)
    assert (said is None) == (found is None) and (found is None or said == pytest.approx(found, rel=1e-6)), cell
    unreadable = survival.named(cell, task_of())
    assert (unreadable == [cell]) == (found is None), "whoever ingests is told what cannot be read"


def test_what_texts_mean_is_agreed_and_touches_no_time() -> None:
    """Some write 1 for who is alive; a time of 1 day stays one day."""
    turned = {"1": "censored", "0": "event", "unclear": ""}
    assert read("1;1", values=turned) == pytest.approx((1 / 365, 0.0))
    assert read("1;0", values=turned) == pytest.approx((1 / 365, 1.0))
    assert read("1;unclear", values=turned) is None and read("1;unclear") is None


@given(st.text(max_size=30))
def test_no_text_at_all_raises(text: str) -> None:
    for cell in (text, f"{text};1", f"365;{text}"):
        y, used = survival.parse([task_of().label(cell)], task_of())
        assert y.shape == (1, 2) and np.isfinite(y).all() and used.shape == (1,)


@given(
    st.lists(st.floats(1e-3, 1e9), min_size=1, max_size=6, unique=True).map(sorted),
    st.lists(st.floats(0, 1e9), min_size=2, max_size=30),
)
def test_interval_times_tell_intervals_and_order(ends: list[float], given_times: list[float]) -> None:
    found_times = np.array([*given_times, *ends])
    found = interval_times(found_times, ends)
    inside = found_times <= ends[-1]
    assert (np.clip(np.ceil(found) - 1, 0, None)[inside] == np.searchsorted(ends, found_times)[inside]).all()
    assert (found[~inside] > len(ends)).all()
    order = np.argsort(found_times, kind="stable")
    assert (np.diff(found[order]) >= 0).all()
    assert found[-len(ends) :].tolist() == [float(at) for at in range(1, len(ends) + 1)]


# --- the likelihood


def likelihood(hazards: list[float], time: float, event: bool) -> float:
    """Singer and Willett's, interval by interval."""
    found = 1.0
    for number, hazard in enumerate(hazards):
        if event and number == max(math.ceil(time) - 1, 0):
            return found * hazard
        if time < number + 1:
            return found
        found *= 1 - hazard
    return found


@given(seed=st.integers(0, 999))
def test_the_loss_is_the_likelihood_of_hazards(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y, logits = times(20, generator), 3 * torch.randn(20, CLASSES, generator=generator)
    hazards = torch.sigmoid(logits + START)
    expected = [
        -math.log(likelihood(row.tolist(), float(time), bool(event)))
        for row, (time, event) in zip(hazards.double(), y, strict=True)
    ]
    torch.testing.assert_close(survival.losses(logits, y), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    free = torch.cat([torch.ones(20, 1), survival.probabilities(logits)], 1)
    torch.testing.assert_close(1 - free[:, 1:] / free[:, :-1], hazards, rtol=1e-3, atol=1e-5)
    assert (free.diff(dim=1) <= 0).all()


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.hidden != "deep"])
def test_gradients_are_those_of_autograd(name: str) -> None:
    model, generator = MODELS[name], torch.Generator().manual_seed(3)
    d = model.scaling_size
    loss = Objective(model, torch.zeros(d), torch.ones(d), torch.zeros(CLASSES), survival)
    x, y = torch.randn(12, d, generator=generator), times(12, generator)
    theta = model.initial() + 0.3 * torch.randn(model.layout.size, generator=generator)
    assert loss.elementary
    found = loss.gradients(theta, x, y)
    for row in range(12):
        plain = grad(loss)(theta, x[row : row + 1], y[row : row + 1])
        torch.testing.assert_close(found[row].float(), plain, rtol=1e-4, atol=1e-5)


def test_who_is_lost_in_an_interval_says_nothing_of_it_and_nothing_behind() -> None:
    y = torch.tensor([[1.7, 0.0]])
    logits = torch.randn(1, 3)
    slope = torch.func.grad(lambda at: survival.losses(at, y).sum())(logits)
    assert slope[0, 0] > 0 and slope[0, 1:].tolist() == [0, 0]


# --- who has the event first


def uno(risk: Tensor, y: Tensor, classes: int) -> float:
    """By its formula, pair by pair; G by Kaplan and Meier, time by time."""

    def still(before: float) -> float:
        found = 1.0
        for time in sorted({float(t) for t, e in y if not e and float(t) < before}):
            lost = sum(1 for t, e in y if float(t) == time and not e)
            at_risk = sum(1 for t, e in y if float(t) > time) + lost
            found *= 1 - lost / at_risk
        return found

    right = pairs = 0.0
    for i, j in itertools.permutations(range(len(y)), 2):
        first, event, other, had = float(y[i, 0]), bool(y[i, 1]), float(y[j, 0]), bool(y[j, 1])
        if event and first <= classes and (other > first or (other == first and not had)):
            weight = still(first) ** -2
            pairs += weight
            right += weight * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    return right / pairs if pairs else math.nan


@given(seed=st.integers(0, 999), number=st.integers(1, 14))
def test_concordance_is_uno_s(seed: int, number: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y = times(number, generator).double()
    risk = torch.randint(5, (number,), generator=generator).double()
    found = float(concordance(risk, y, torch.ones(number, 1, dtype=torch.float64), CLASSES))
    assert found == pytest.approx(uno(risk, y, CLASSES), nan_ok=True)


def test_without_losses_it_is_harrell_s_and_of_one_interval_the_auc() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.stack([2 * torch.rand(60, generator=generator), torch.ones(60)], 1).double()
    risk = torch.randn(60, generator=generator).double()
    one = torch.ones(60, 1, dtype=torch.float64)
    assert float(concordance(risk, y, one, 2)) == pytest.approx(uno(risk, y, 2))
    late = torch.where((y[:, :1] > 1), 1.5, 0.5).expand(-1, 1)
    both = torch.cat([late, (late < 1).double()], 1)
    had = both[:, 1] > 0
    auc = (risk[had].unsqueeze(1) > risk[~had]).double().mean()
    assert float(concordance(risk, both, one, 1)) == pytest.approx(float(auc))


@given(seed=st.integers(0, 99))
def test_a_weight_is_a_number_of_copies(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    y, copies = times(12, generator).double(), torch.randint(4, (12,), generator=generator)
    risk, at = torch.randn(12, generator=generator).double(), torch.tensor([0.0, 0.5, 1.0, 2.5, 9.0]).double()
    weights = copies.double().unsqueeze(1)
    many, one = y.repeat_interleave(copies, 0), torch.ones(int(copies.sum()), 1, dtype=torch.float64)
    if len(many):
        torch.testing.assert_close(kept(y, weights, at), kept(many, one, at))
        found = concordance(risk.repeat_interleave(copies), many, one, CLASSES)
        torch.testing.assert_close(concordance(risk, y, weights, CLASSES), found, equal_nan=True)


@given(seed=st.integers(0, 99))
def test_what_is_counted_privately_tells_harrell_s_as_far_as_cells_do(seed: int) -> None:
    """Of times in the middle of intervals, and risks that CUTS tell apart, nothing is lost."""
    generator = torch.Generator().manual_seed(seed)
    y = times(30, generator)
    y[:, 0] = y[:, 0].floor() + 0.5
    logits = torch.randint(-2, 3, (30, 1), generator=generator).expand(-1, CLASSES) * 1.3
    judged = survival.judge(logits, y, CLASSES)
    assert (judged.sum(1) == 1).all() and ((judged == 0) | (judged == 1)).all()
    risk = torch.bucketize(risk_of(survival.probabilities(logits)), torch.tensor(CUTS))
    right = pairs = 0.0
    for i, j in itertools.permutations(range(30), 2):
        seen = float(
            y[j, 0].ceil() if y[j, 1] else y[j, 0].floor() + 0.5
        )  # who is lost within an interval is not past it
        if y[i, 1] and y[i, 0] < CLASSES and seen > float(y[i, 0].ceil()):
            pairs += 1
            right += 1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0
    found = survival.scores(judged.sum(0), CLASSES)["accuracy"]
    assert (found is None) if not pairs else (found == pytest.approx(right / pairs))


def test_noise_alone_is_no_score_of_anybody() -> None:
    for seed in range(50):
        noise = 5 * torch.randn((2 * CLASSES + 1) * 10, generator=torch.Generator().manual_seed(seed))
        score = survival.scores(noise, CLASSES)["accuracy"]
        assert score is None or 0 <= score <= 1


def test_a_cohort_without_events_teaches_nothing() -> None:
    lost = np.array([[0.5, 0.0], [2.0, 0.0], [3.5, 1.0]], np.float32)
    assert survival.alike(lost, ("a", "b", "c")) is not None
    assert survival.alike(np.array([[2.5, 1.0]], np.float32), ("a", "b", "c")) is None
