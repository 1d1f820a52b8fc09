"""Sensitivity by brute force: one patient comes or goes, everybody else draws alike; a sum moves by at most so much.

P59: "sensitivity by brute force (add, remove one patient; the un-noised sum moves by at most C or 2C) over
generated cohorts with duplicate IDs, one-image and many-image patients, empty classes".
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import (
    CLASSES,
    DECLARED,
    FEATURES,
    MODELS,
    asks,
    cohort,
    coupled,
    examples_of,
    hospitals,
    objective,
    without,
)
from tests.questions import blocks
from torch import Tensor

from wardround.config import Privacy
from wardround.questions import Shots, Summand
from wardround.schedule import QUESTIONS
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.contribution import clipped
from wardround_client.privacy.private_cohort import PrivateCohort

CLIP_NORMS = st.sampled_from([0.1, 1.0, 7.0])
SEEDS = st.integers(0, 10_000)


def theta_of(model: str, seed: int, scale: float) -> Tensor:
    return torch.randn(MODELS[model].layout.size, generator=torch.Generator().manual_seed(seed)) * scale


def bound(question: str, clip_norm: float) -> float:
    """P14, P16, P17: C for a gradient, 2C for episodes, 1 for a block."""
    return {"gradient": clip_norm, "episode_gradient": 2 * clip_norm}.get(question, 1.0)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("question", QUESTIONS.built_in)
def test_a_patient_who_leaves_moves_an_answer_by_no_more_than_its_noise_is_made_for(question: str, model: str) -> None:
    """P10, P16: "the WHOLE parameter vector clipped to C"; "sensitivity 2C"; "clipped jointly; one Gaussian"."""

    kinds = [hospitals(model), hospitals(model, findings=True)]

    @settings(max_examples=12 if model == "conv4" else 40)
    @given(
        examples=st.one_of(kinds if question != "confusion" else kinds[:1]),
        clip_norm=CLIP_NORMS,
        rate=st.sampled_from([1.0, 0.5]),
        sigma=st.sampled_from([0.5, 2.0]),
        images=st.sampled_from([1, 2, 64]),
        per_episode=st.sampled_from([2, 10, 50]),
        seed=SEEDS,
        size=st.sampled_from([0.0, 0.3, 1e3]),
        data=st.data(),
    )
    def never(
        examples: Examples,
        clip_norm: float,
        rate: float,
        sigma: float,
        images: int,
        per_episode: int,
        seed: int,
        size: float,
        data: st.DataObject,
    ) -> None:
        removed = data.draw(st.integers(0, examples.patients - 1))
        privacy = Privacy(clip_norm=clip_norm, images_per_patient=images, patients_per_episode=per_episode)
        open_cohort = partial(cohort, privacy=privacy, rate=rate, sigma=sigma)
        loss = replace(objective(model), labels=examples.labels)
        ask = asks(loss, theta_of(model, seed, size))[question]
        difference = coupled(open_cohort(examples), open_cohort(without(examples, removed)), removed, ask)
        assert difference.moved <= bound(question, clip_norm)
        assert difference.std == pytest.approx(sigma * bound(question, clip_norm))
        assert torch.isfinite(difference.answer).all()

    never()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("question", QUESTIONS.built_in)
@pytest.mark.parametrize("images", [[], [1], [5]])
def test_nobody_and_one_patient_get_an_answer_like_everybody_else(question: str, model: str, images: list[int]) -> None:
    """P11: "An empty sample still adds noise." An error here would tell who is not there."""
    asked = cohort(examples_of(images, model=model), Privacy(images_per_patient=3), rate=0.5)
    ask = asks(objective(model), theta_of(model, 0, 0.1))[question]
    answers = torch.stack([ask(asked) for _ in range(3)])
    assert torch.isfinite(answers).all()
    assert not (answers == answers[0]).all(0).any(), "a number without noise"


class Hostile:
    """A loss made to do harm. It sees a whole patient at once, or a whole episode."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self._of(theta, x.flatten(), y)

    def episode(self, theta: Tensor, support: Shots, query: Shots) -> Tensor:
        everything = torch.cat([support.x.flatten(), query.x.flatten()])
        loss = self._of(theta, everything, torch.cat([support.y, query.y]))
        # The direction turns with every patient who comes: nothing moves a sum further.
        patients = len(torch.unique(support.patient)) + len(torch.unique(query.patient))
        return -loss if patients % 2 else loss

    def _of(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        match self.kind:
            case "unbounded":
                return 1e12 * theta.sum() * (1 + x.abs().sum())
            case "huge":
                return 1e30 * (theta * x.sum()).sum() * (1 + y.sum())
            case "not finite":
                return torch.sqrt(theta.abs()).sum() * x.mean() + torch.log(theta * 0).sum()
            case "not finite for some":
                return theta.sum() * torch.where(x.sum() > 0, math.inf, 1.0)
            case "mixes its images":
                return (theta.sum() * torch.softmax(100 * x, 0).square().sum()) * 50 + theta.square().sum() * y.sum()
            case _:
                return 7 * (theta * torch.arange(len(theta))).sum() * x.numel()


HOSTILE = ("unbounded", "huge", "not finite", "not finite for some", "mixes its images", "counts its images")


@pytest.mark.parametrize("kind", HOSTILE)
@settings(max_examples=25)
@given(examples=hospitals(), clip_norm=CLIP_NORMS, per_episode=st.sampled_from([2, 50]), seed=SEEDS, data=st.data())
def test_no_loss_however_hostile_moves_a_sum_further(
    kind: str, examples: Examples, clip_norm: float, per_episode: int, seed: int, data: st.DataObject
) -> None:
    """P15, P16: "clip each EPISODE's meta-gradient to C; every sampled patient is in exactly one episode"."""
    removed = data.draw(st.integers(0, examples.patients - 1))
    privacy = Privacy(clip_norm=clip_norm, images_per_patient=64, patients_per_episode=per_episode)
    worlds = cohort(examples, privacy), cohort(without(examples, removed), privacy)
    theta, loss = theta_of("logistic", seed, 1.0), Hostile(kind)
    moved = coupled(*worlds, removed, lambda cohort: cohort.gradient(loss, theta)).moved
    assert moved <= clip_norm
    moved = coupled(
        *worlds, removed, lambda cohort: cohort.episode_gradient(torch.func.grad(loss.episode), theta)
    ).moved
    assert moved <= 2 * clip_norm


def test_an_episode_needs_the_whole_of_2c() -> None:
    """C alone would be a false promise: one patient turns a clipped gradient round."""
    privacy = Privacy(patients_per_episode=50)
    examples, theta = examples_of([1] * 12), torch.ones(MODELS["logistic"].layout.size)
    worlds = cohort(examples, privacy), cohort(without(examples, 3), privacy)
    hostile = torch.func.grad(Hostile("unbounded").episode)
    moved = [coupled(*worlds, 3, lambda cohort: cohort.episode_gradient(hostile, theta)).moved for _ in range(20)]
    assert 1.99 < max(moved) <= 2


@given(
    examples=hospitals(),
    norms=st.lists(st.sampled_from([1e-300, 1e-30, 1.0, 7.0, 1e30, 1e300]), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([1e-300, 0.5, 1.0, 1e20, 1e300]), min_size=3, max_size=3),
    size=st.sampled_from([1.0, 1e19, 1e38, math.inf, math.nan]),
    rate=st.sampled_from([1.0, 0.5]),
    data=st.data(),
)
def test_no_sum_moves_further_whatever_a_question_says_of_itself(
    examples: Examples, norms: list[float], weights: list[float], size: float, rate: float, data: st.DataObject
) -> None:
    """A question of another package may say of its norms what it likes: the cohort bounds what a patient adds."""
    summands = [Summand(f"part {n}", (FEATURES,), *each) for n, each in enumerate(zip(norms, weights, strict=False))]
    removed = data.draw(st.integers(0, examples.patients - 1))

    def everything(x: Tensor, y: Tensor, features: Tensor) -> Tensor:
        return (size * x).repeat(1, len(summands))

    def sums(of: PrivateCohort) -> Tensor:
        return of.sum(summands, everything)

    worlds = cohort(examples, rate=rate), cohort(without(examples, removed), rate=rate)
    assert coupled(*worlds, removed, sums).moved <= 1


@given(examples=hospitals(), size=st.sampled_from([0.0, 1.0, 1e4, 1e19, math.inf, math.nan]), seed=SEEDS)
def test_no_patient_s_block_is_longer_than_one(examples: Examples, size: float, seed: int) -> None:
    """P17, P19: "per patient one block ... over ALL classes, clipped jointly"; "one vector of norm <= 1"."""
    loss, theta = objective("logistic"), theta_of("logistic", seed, size)
    for question in ("statistics", "class_means", "confusion"):
        rows = blocks(question, cohort(examples), loss, theta)
        assert rows.shape[0] == examples.patients
        assert torch.isfinite(rows).all()
        assert rows.norm(dim=1).max() <= 1


@settings(max_examples=30)
@given(
    numbers=st.lists(st.integers(0, 5), min_size=1, max_size=25),
    labelled=st.lists(st.booleans(), min_size=25, max_size=25),
    seed=SEEDS,
)
def test_a_patient_whose_number_stands_in_many_rows_is_one_patient(
    numbers: list[int], labelled: list[bool], seed: int
) -> None:
    """The same PatientID again further down, with and without a label the task knows: still one block, one gradient."""
    rows = [(number, label) for number, label in zip(numbers, labelled, strict=False) if label]
    patient = torch.unique(torch.tensor([number for number, _ in rows], dtype=torch.int64), return_inverse=True)[1]
    z = torch.randn(len(rows), FEATURES, generator=torch.Generator().manual_seed(seed))
    examples = Examples(z, torch.arange(len(rows)) % CLASSES, patient, z, CLASSES)
    asked = cohort(examples, Privacy(images_per_patient=64))
    theta, loss = theta_of("logistic", seed, 1.0), objective("logistic")
    total = asked._clipped_gradients(loss, theta, torch.arange(examples.patients))
    expected = torch.zeros_like(total)
    for number in {number for number, _ in rows}:
        own = torch.tensor([each == number for each, _ in rows])
        expected += clipped(torch.func.grad(loss)(theta, z[own], examples.y[own]).unsqueeze(0), 1.0)[0]
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)
    assert len(blocks("statistics", asked, loss, theta)) == len({number for number, _ in rows})


def test_the_answer_is_the_noised_sum_over_a_public_number() -> None:
    """Neither the sample nor the true cohort enters a denominator: P8."""
    theta = theta_of("logistic", 1, 1.0)
    for images in ([1] * 3, [2] * 30):
        asked = cohort(examples_of(images), Privacy(patients_per_step=25, patients_per_episode=5), rate=0.5, sigma=1e-7)
        denominators: dict[str, float] = {"gradient": 0.5 * DECLARED, "episode_gradient": 5}
        for question, denominator in denominators.items():
            difference = coupled(asked, asked, 10**6, asks(objective("logistic"), theta)[question])
            assert difference.moved == 0
            torch.testing.assert_close(difference.answer.double() * denominator, difference.total, rtol=1e-4, atol=1e-5)
