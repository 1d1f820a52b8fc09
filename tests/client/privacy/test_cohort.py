"""The private answers: sensitivity by brute force, noise, the reservation, and per-patient gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, DECLARED, FEATURES, cohort, without
from tests.questions import blocks, parts
from torch import Tensor, nn

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.errors import BudgetExceeded
from wardround.models import Objective
from wardround.models.conv4 import Conv4
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.privacy import per_patient
from wardround_client.privacy.contribution import clipped
from wardround_client.privacy.private_cohort import PrivateCohort

MODEL = Tabular.logistic(FEATURES, CLASSES)
LOSS = Objective(MODEL, torch.zeros(FEATURES), torch.ones(FEATURES))
SIZE = MODEL.layout.size


def examples_from(images: list[int], *, scale: float = 1.0, seed: int = 0) -> Examples:
    """One patient for each number, with so many images."""
    generator = torch.Generator().manual_seed(seed)
    n = sum(images)
    z = torch.randn(n, FEATURES, generator=generator) * scale
    y = torch.randint(CLASSES, (n,), generator=generator)
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images, dtype=torch.int64))
    return Examples(z, y, patient, z, CLASSES)


COHORTS = st.lists(st.integers(1, 12), min_size=2, max_size=8)
SCALES = st.sampled_from([0.0, 1e-3, 1.0, 50.0, 1e20, math.inf, math.nan])


@settings(max_examples=60, deadline=None)
@given(
    images=COHORTS, scale=SCALES, seed=st.integers(0, 1000), data=st.data(), clip_norm=st.sampled_from([0.1, 1.0, 7.0])
)
def test_one_patient_moves_the_sum_of_gradients_by_at_most_c(
    images: list[int], scale: float, seed: int, data: st.DataObject, clip_norm: float
) -> None:
    examples = examples_from(images, scale=scale, seed=seed)
    removed = data.draw(st.integers(0, len(images) - 1))
    theta = torch.randn(MODEL.layout.size, generator=torch.Generator().manual_seed(seed))
    privacy = Privacy(clip_norm=clip_norm, images_per_patient=64)

    def total(of: Examples) -> Tensor:
        return cohort(of, privacy=privacy)._clipped_gradients(LOSS, theta, torch.arange(of.patients))

    with_, without_ = total(examples), total(without(examples, removed))
    assert torch.isfinite(with_).all()
    assert (with_ - without_).norm().item() <= clip_norm


@settings(max_examples=60, deadline=None)
@given(images=COHORTS, scale=SCALES, seed=st.integers(0, 1000), data=st.data())
def test_one_patient_moves_statistics_and_confusion_by_at_most_1(
    images: list[int], scale: float, seed: int, data: st.DataObject
) -> None:
    examples = examples_from(images, scale=scale, seed=seed)
    fewer = without(examples, data.draw(st.integers(0, len(images) - 1)))

    for question in ("statistics", "confusion"):
        rows, fewer_rows = (blocks(question, cohort(of), LOSS, torch.ones(SIZE)) for of in (examples, fewer))
        assert torch.isfinite(rows).all()
        assert (rows.sum(0) - fewer_rows.sum(0)).norm().item() <= 1
        assert rows.norm(dim=1).max().item() <= 1


def test_statistics_are_in_natural_units() -> None:
    examples = examples_from([1, 3, 2] * 200)
    answer = parts("statistics", cohort(examples, sigma=1e-6), LOSS, torch.zeros(SIZE))
    assert answer["counts"].sum().item() == pytest.approx(600, rel=0.01)
    means = torch.zeros(600, FEATURES).index_add_(0, examples.patient, examples.z) / torch.tensor(
        [1, 3, 2] * 200
    ).unsqueeze(1)
    assert torch.allclose(answer["sum_z"] / 600, means.mean(0), atol=0.1)
    assert (answer["sum_zz"] / 600 - 1).abs().max() < 0.35


def test_confusion_counts_patients() -> None:
    examples = examples_from([1, 4, 2] * 30)
    z = nn.functional.one_hot(examples.y, FEATURES).float()  # which a model of weights 1 predicts right
    theta = torch.cat([torch.eye(CLASSES, FEATURES).flatten(), torch.zeros(CLASSES)])
    perfect = parts("confusion", cohort(replace(examples, z=z), sigma=1e-6), LOSS, theta)["confusion"]
    assert perfect.shape == (CLASSES, CLASSES)
    assert perfect.diagonal().sum().item() == pytest.approx(90, rel=0.01)
    assert (perfect - perfect.diagonal().diag()).abs().max() < 0.01


@pytest.mark.parametrize("sigma", [0.5, 4.0])
def test_the_noise_is_sigma_times_c_over_the_public_denominator(sigma: float) -> None:
    """The same cohort, its declared size, and never its true one: repeated answers differ by the noise alone."""
    examples, clip_norm = examples_from([1] * 10), 2.0
    asked = cohort(examples, sigma=sigma, privacy=Privacy(clip_norm=clip_norm))
    theta = torch.zeros(MODEL.layout.size)
    answers = torch.stack([asked.gradient(LOSS, theta) for _ in range(200)])
    # A standard deviation of n normal numbers is off by 1 / sqrt(2 n).
    rel = 7 / math.sqrt(2 * (answers.numel() - SIZE))
    assert rel < 0.1 and answers.std(0).mean().item() == pytest.approx(sigma * clip_norm / DECLARED, rel=rel)
    counts = [parts("statistics", asked, LOSS, theta)["counts"] for _ in range(200)]
    spread = torch.stack(counts).std(0).mean().item()
    assert spread == pytest.approx(sigma * math.sqrt(3), rel=7 / math.sqrt(2 * 199 * CLASSES))


def test_an_empty_sample_still_adds_noise() -> None:
    examples = examples_from([1, 1])
    rate = 1e-9
    asked = cohort(examples, rate=rate, sigma=1.0, privacy=Privacy())
    answers = torch.stack([asked.gradient(LOSS, torch.zeros(SIZE)) for _ in range(50)])
    assert (answers * rate * DECLARED).std().item() == pytest.approx(1.0, rel=7 / math.sqrt(2 * answers.numel()))
    assert (answers == 0).sum() <= 5  # one in two million falls on the grid's 0


def test_a_seed_repeats_no_answer() -> None:
    asked = cohort(examples_from([1] * 5))
    theta = torch.zeros(MODEL.layout.size)
    answers = []
    for _ in range(2):
        torch.manual_seed(0)
        answers.append(asked.gradient(LOSS, theta))
    assert not torch.equal(*answers)


def test_asking_more_than_was_reserved_raises_before_anything_is_computed() -> None:
    examples = examples_from([1] * 5)
    asked = PrivateCohort(
        examples,
        privacy=Privacy(),
        declared_patients=DECLARED,
        reserved=(Answers(3.0, 1.0, 2),),
    )
    theta = torch.zeros(MODEL.layout.size)
    asked.gradient(LOSS, theta)
    asked.gradient(LOSS, theta)

    class Unused:
        def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            raise AssertionError("computed")

    def unused(*_: Any, **__: Any) -> Any:
        raise AssertionError("computed")

    asks: list[Callable[[], Tensor]] = [
        lambda: asked.gradient(Unused(), theta),
        lambda: asked.episode_gradient(unused, theta),
        lambda: asked.sum((), unused),
    ]
    for again in asks:
        with pytest.raises(BudgetExceeded, match="more than was reserved"):
            again()


@settings(max_examples=30, deadline=None)
@given(images=st.lists(st.integers(1, 5), min_size=1, max_size=40), limit=st.integers(1, 6))
def test_the_sum_is_that_of_plain_autograd_patient_by_patient(images: list[int], limit: int) -> None:
    examples = examples_from(images)
    theta = torch.randn(MODEL.layout.size)
    rows = torch.full((len(images), limit), -1)
    starts = torch.tensor(images).cumsum(0) - torch.tensor(images)
    expected = torch.zeros(MODEL.layout.size, dtype=torch.float64)
    for patient, count in enumerate(images):
        used = min(count, limit)
        rows[patient, :used] = starts[patient] + torch.arange(used)
        own = rows[patient, :used]
        gradient = per_patient.plain_gradient(LOSS, theta, examples.z[own], examples.y[own])
        expected += clipped(gradient.unsqueeze(0), 0.5)[0]
    total = per_patient.clipped_sum(LOSS, theta, examples, rows.clamp_min(0), rows >= 0, 0.5)
    assert torch.allclose(total, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 17)])
@pytest.mark.parametrize("images", [1, 3])
def test_convolutional_gradients_are_right_in_every_memory_format(
    memory_format: torch.memory_format, channels: int, size: int, images: int
) -> None:
    """Against plain autograd, a patient at a time: Opacus' hooks are silently wrong for channels_last."""
    model = Conv4.of(channels, 16, 4)
    loss = Objective(model, torch.full((channels,), 0.1), torch.full((channels,), 0.7))
    patients = 5
    x = torch.rand(patients * images, channels, size, size).contiguous(memory_format=memory_format)
    y = torch.randint(4, (len(x),))
    rows = torch.arange(len(x)).view(patients, images)
    examples = Examples(x, y, rows.repeat_interleave(images, 0)[:, 0], x[:, :, 0, 0], 4)
    total = per_patient.clipped_sum(loss, model.initial(), examples, rows, torch.ones_like(rows, dtype=torch.bool), 0.3)
    expected = sum(
        clipped(per_patient.plain_gradient(loss, model.initial(), x[row], y[row]).unsqueeze(0), 0.3)[0] for row in rows
    )
    assert torch.allclose(total, torch.as_tensor(expected), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_a_broken_image_leaves_every_other_patient_as_it_is(value: float) -> None:
    model = Conv4.of(1, 16, 3)
    loss = Objective(model, torch.zeros(1), torch.ones(1))
    x, y, everyone = torch.rand(6, 1, 12, 12), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6).unsqueeze(1)
    x[2, 0, 3, 4] = value
    examples = Examples(x, y, torch.arange(6), x[:, :, 0, 0], 3)
    others = everyone[everyone[:, 0] != 2]

    def total(rows: Tensor) -> Tensor:
        return per_patient.clipped_sum(loss, model.initial(), examples, rows, rows >= 0, 0.4)

    assert (total(everyone) - total(others)).norm() <= (0.4 if math.isfinite(value) else 1e-5)
