"""Exact answers are the private ones without clipping and noise: the same units, the same weight for every patient."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from wardround.accountant import Answers, Calibration
from wardround.config import Privacy
from wardround.errors import ConfigError
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_simulation.exact import ExactCohort

FEATURES, CLASSES, DECLARED = 3, 2, 10
NO_NOISE = Calibration(statistics=1e-9, gradient=1e-9, confusion=1e-9, sampling_rate=1.0)


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
    others = 0.3 * torch.randn(len(patient), variants - 1, FEATURES, generator=generator) if variants > 1 else None
    return Examples(z=z, y=y, patient=patient, summary=z, classes=CLASSES, augmented=others)


def made(kind: type[ExactCohort] | type[PrivateCohort], examples: Examples, calibration: Calibration = NO_NOISE):  # type: ignore[no-untyped-def]
    privacy = Privacy(clip_norm=1e4, images_per_patient=8)
    reserved = (Answers(1e-9, 1.0, 3),)
    return kind(examples, calibration=calibration, privacy=privacy, declared_patients=DECLARED, reserved=reserved)


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
    torch.testing.assert_close(exact.statistics().pack(), private.statistics().pack().float(), rtol=1e-3, atol=1e-4)

    def predict(x: Tensor) -> Tensor:
        return x @ theta.view(FEATURES, CLASSES)

    if findings:
        for cohort in (exact, private):
            with pytest.raises(ConfigError, match="one class"):
                cohort.confusion(predict)
    else:
        torch.testing.assert_close(exact.confusion(predict), private.confusion(predict).float(), rtol=1e-3, atol=1e-4)


def test_counts_are_patients_and_not_images() -> None:
    statistics = made(ExactCohort, cohort_of([1, 5, 1, 2])).statistics()
    assert statistics.counts.tolist() == pytest.approx([2.0, 2.0])


def test_it_asks_as_often_as_it_likes_for_the_same_answer() -> None:
    cohort = made(ExactCohort, cohort_of([2, 1]))
    answers = [cohort.gradient(Logistic(), torch.zeros(FEATURES * CLASSES)) for _ in range(5)]
    assert all(torch.equal(answers[0], answer) for answer in answers)


def test_no_hospital_installation_contains_it() -> None:
    """It lives in the simulation package, which a hospital's wheel leaves out."""
    assert ExactCohort.__module__.split(".")[0] == "wardround_simulation"
