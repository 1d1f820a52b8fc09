"""What survival probabilities are worth: by the formulas of the papers, patient by patient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, times
from torch import Tensor

from wardround.labels.survival import kind as survival
from wardround_client.cohort.examples import Examples
from wardround_client.personal.bootstrap import estimates
from wardround_client.personal.kinds.survival import METRICS, Outcomes


def examples_of(y: Tensor, patient: list[int]) -> Examples:
    z = torch.zeros(len(y), 1)
    return Examples(z, y, torch.tensor(patient), z, CLASSES, labels=survival)


def outcomes(seed: int, number: int) -> Outcomes:
    generator = torch.Generator().manual_seed(seed)
    free = torch.rand(number, CLASSES, generator=generator).double().cumprod(1)
    return Outcomes(free, times(number, generator).double(), torch.arange(number))


def still_seen(y: Tensor, before: float) -> float:
    found = 1.0
    for time in sorted({float(t) for t, e in y if not e and float(t) < before}):
        lost = sum(1 for t, e in y if float(t) == time and not e)
        found *= 1 - lost / (lost + sum(1 for t, _ in y if float(t) > time))
    return found


def kaplan_meier(y: Tensor, until: float) -> float:
    found = 1.0
    for time in sorted({float(t) for t, e in y if e and float(t) <= until}):
        had = sum(1 for t, e in y if float(t) == time and e)
        found *= 1 - had / sum(1 for t, _ in y if float(t) >= time)
    return found


@given(seed=st.integers(0, 999), number=st.integers(1, 15))
def test_brier_score_and_calibration_are_those_of_graf_and_of_kaplan_and_meier(seed: int, number: int) -> None:
    of = outcomes(seed, number)
    found = of.metrics(torch.ones(number, 1, dtype=torch.float64))[0]
    briers, errors = [], []
    for end in range(1, CLASSES + 1):
        past = [i for i in range(number) if float(of.y[i, 0]) >= end and not (of.y[i, 1] and float(of.y[i, 0]) == end)]
        if not past:
            continue  # nobody was seen so long
        total = 0.0
        for i in range(number):
            time, event, free = float(of.y[i, 0]), bool(of.y[i, 1]), float(of.free[i, end - 1])
            if event and time <= end:
                total += free**2 / still_seen(of.y, time)
            elif i in past:
                total += (1 - free) ** 2 / still_seen(of.y, end)
        briers.append(total / number)
        errors.append(abs(float(of.free[:, end - 1].mean()) - kaplan_meier(of.y, end)))
    expected = (np.mean(each) if each else np.nan for each in (briers, errors))
    assert found[1:].tolist() == [pytest.approx(each, nan_ok=True) for each in expected]


@given(seed=st.integers(0, 99), number=st.integers(2, 12))
def test_the_order_of_patients_does_not_matter(seed: int, number: int) -> None:
    of, weights = outcomes(seed, number), torch.randint(3, (number, 5)).double()
    turned = torch.randperm(number)
    other = Outcomes(of.free[turned], of.y[turned], of.patient)
    torch.testing.assert_close(of.metrics(weights), other.metrics(weights[turned]), equal_nan=True)


def test_who_knows_the_times_has_every_best_score() -> None:
    y = torch.tensor([[0.5, 1.0], [1.5, 1.0], [2.5, 1.0], [3.5, 0.0], [3.5, 0.0]])
    free = (y[:, :1] > torch.arange(1, 4)).double()
    one = torch.ones(5, 1, dtype=torch.float64)
    assert Outcomes(free, y.double(), torch.arange(5)).metrics(one)[0].tolist() == pytest.approx([1, 0, 0])


def test_rows_of_a_patient_make_one_prediction_for_each_outcome() -> None:
    y = torch.tensor([[0.5, 1.0], [0.5, 1.0], [2.5, 0.0]])
    free = torch.tensor([[0.2, 0.1, 0.0], [0.4, 0.3, 0.2], [0.9, 0.8, 0.7]])
    of = Outcomes.of(free, examples_of(y, [0, 0, 1]))
    torch.testing.assert_close(of.free, torch.tensor([[0.3, 0.2, 0.1], [0.9, 0.8, 0.7]]).double())
    assert of.patient.tolist() == [0, 1]


def test_metrics_have_intervals_also_where_few_had_the_event() -> None:
    of = outcomes(5, 40)
    found = estimates(of.metrics, (of.y[:, 1] > 0).long(), resamples=50, seed=0)
    assert len(found) == len(METRICS)
    assert all(each is not None and each.low <= each.value <= each.high for each in found)
