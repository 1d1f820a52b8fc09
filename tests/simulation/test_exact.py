"""Exact answers are the private ones without clipping and noise: the same units, the same weight for every patient."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.questions import ask, parts
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.labels import LABEL_KINDS
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_simulation.exact import ExactCohort

FEATURES, CLASSES, DECLARED = 3, 2, 10
LOSS = Objective(Tabular.logistic(FEATURES, CLASSES), torch.zeros(FEATURES), torch.ones(FEATURES))


class Logistic:
    """Mean cross entropy of a linear model; theta float32 [FEATURES * CLASSES]."""

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ theta.view(FEATURES, CLASSES), y)


def cohort_of(images: list[int], seed: int = 0, *, findings: bool = False, variants: int = 1) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images))
    patient = patient[torch.randperm(len(patient), generator=generator)]  # images of a patient need not be neighbours
    z = 0.3 * torch.randn(len(patient), FEATURES, generator=generator)
    y = torch.randint(2, (len(patient), CLASSES), generator=generator).float() if findings else patient % CLASSES
    labels = LABEL_KINDS["several" if findings else "one"]
    others = 0.3 * torch.randn(len(patient), variants - 1, FEATURES, generator=generator) if variants > 1 else None
    return Examples(z=z, y=y, patient=patient, summary=z, classes=CLASSES, augmented=others, labels=labels)


def made(kind: type[ExactCohort] | type[PrivateCohort], examples: Examples):  # type: ignore[no-untyped-def]
    privacy = Privacy(clip_norm=1e4, images_per_patient=8)
    reserved = (Answers(1e-9, 1.0, 4),)
    return kind(examples, privacy=privacy, declared_patients=DECLARED, reserved=reserved)


cohorts = st.lists(st.integers(1, 5), min_size=2, max_size=8)


@settings(max_examples=25, deadline=None)
@given(images=cohorts, seed=st.integers(0, 99))
def test_the_gradient_is_the_sum_of_patients_means_over_the_declared_patients(images: list[int], seed: int) -> None:
    examples, theta = cohort_of(images, seed), torch.linspace(-1, 1, FEATURES * CLASSES)
    expected = torch.zeros_like(theta)
    for patient in range(len(images)):
        mine = examples.patient == patient
        point = theta.clone().requires_grad_()
        (slope,) = torch.autograd.grad(Logistic()(point, examples.z[mine], examples.y[mine]), point)
        expected += slope / DECLARED
    torch.testing.assert_close(made(ExactCohort, examples).gradient(Logistic(), theta), expected)


@settings(max_examples=25, deadline=None)
@given(images=cohorts, seed=st.integers(0, 99), findings=st.booleans(), variants=st.integers(1, 3))
def test_a_private_cohort_without_noise_answers_the_same(
    images: list[int], seed: int, findings: bool, variants: int
) -> None:
    examples = cohort_of(images, seed, findings=findings, variants=variants)
    theta = torch.linspace(-1, 1, FEATURES * CLASSES)
    exact, private = made(ExactCohort, examples), made(PrivateCohort, examples)
    torch.testing.assert_close(
        exact.gradient(Logistic(), theta), private.gradient(Logistic(), theta), rtol=1e-3, atol=1e-4
    )
    loss, theta = replace(LOSS, labels=examples.labels), torch.linspace(-1, 1, LOSS.model.layout.size)
    for question in ("statistics",) if findings else ("statistics", "class_means", "confusion"):
        one, other = (ask(question, cohort, loss, theta) for cohort in (exact, private))
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-4)


def test_counts_are_patients_and_not_images() -> None:
    cohort = made(ExactCohort, cohort_of([1, 5, 1, 2]))
    counts = parts("statistics", cohort, LOSS, torch.zeros(LOSS.model.layout.size))["counts"]
    assert counts.tolist() == pytest.approx([2.0, 2.0])


def test_it_asks_as_often_as_it_likes_for_the_same_answer() -> None:
    cohort = made(ExactCohort, cohort_of([2, 1]))
    answers = [cohort.gradient(Logistic(), torch.zeros(FEATURES * CLASSES)) for _ in range(5)]
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_no_hospital_installation_contains_it() -> None:
    """It lives in the simulation package, which a hospital's wheel leaves out."""
    assert ExactCohort.__module__.split(".")[0] == "wardround_simulation"
