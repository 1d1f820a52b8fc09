"""Variants of an image go where the image goes: they are its patient's, and nobody but learning sees them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, FEATURES, MODELS, cohort, examples_of, hospitals, objective
from tests.questions import blocks
from torch import Tensor

from wardround.config import Privacy
from wardround.questions import Shots
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.contribution import clipped
from wardround_client.privacy.per_patient import clipped_sum, plain_gradient

IMAGES = st.lists(st.integers(1, 5), min_size=1, max_size=12)
VARIANTS = st.integers(2, 4)


def numbered(images: list[int], variants: int) -> Examples:
    """Variant v of image i is the number 100 i + v."""
    n = sum(images)
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images))
    patient = patient[torch.randperm(n, generator=torch.Generator().manual_seed(n))]
    z = 100 * torch.arange(n, dtype=torch.float32).unsqueeze(1)
    augmented = z.unsqueeze(1) + torch.arange(1, variants, dtype=torch.float32).view(1, -1, 1)
    return Examples(z, torch.arange(n) % CLASSES, patient, z, CLASSES, augmented=augmented)


def complete(x: Tensor, variants: int) -> list[int]:
    """The images that are shown, each of which must be there with all its variants, the image first."""
    shown = x.flatten().view(-1, variants)
    torch.testing.assert_close(shown - shown[:, :1], torch.arange(variants).float().expand_as(shown))
    assert (shown[:, 0] % 100 == 0).all(), "a variant without its image"
    return [int(each) for each in shown[:, 0] / 100]


@given(images=IMAGES, variants=VARIANTS, limit=st.integers(1, 4), rate=st.sampled_from([1.0, 0.6]))
def test_an_episode_shows_images_with_all_their_variants(
    images: list[int], variants: int, limit: int, rate: float
) -> None:
    """`images_per_patient` counts images; a patient weighs 1 and an image as much as another of the patient's."""
    examples = numbered(images, variants)
    seen: list[Shots] = []

    def looking(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        seen.extend([support, query])
        return theta

    privacy = Privacy(images_per_patient=limit, patients_per_episode=10)
    cohort(examples, privacy, rate=rate).episode_gradient(looking, torch.zeros(2))
    for shots in seen:
        rows = torch.tensor(complete(shots.x, variants))
        assert len(torch.unique(rows)) == len(rows), "an image twice"
        owners = examples.patient[rows]
        assert torch.bincount(owners).max() <= limit
        assert torch.equal(shots.y, examples.y[rows].repeat_interleave(variants))
        sums = torch.zeros(examples.patients).index_add_(0, owners.repeat_interleave(variants), shots.weight)
        torch.testing.assert_close(sums[sums > 0], torch.ones(len(torch.unique(owners))))
        assert all(len(torch.unique(part)) == 1 for part in torch.split(shots.weight, variants))


@given(images=IMAGES, variants=VARIANTS, limit=st.integers(1, 4), findings=st.booleans())
def test_what_is_drawn_for_a_gradient_are_images(images: list[int], variants: int, limit: int, findings: bool) -> None:
    """The draws do not know of variants: the same images, however many variants they have."""
    examples = numbered(images, variants)
    rows, valid = cohort(examples, Privacy(images_per_patient=limit))._chosen(torch.arange(len(images)))
    assert valid.sum(1).tolist() == [min(count, limit) for count in images]
    assert all(len(set(row[kept].tolist())) == int(kept.sum()) for row, kept in zip(rows, valid, strict=True))
    if findings:
        examples = replace(examples, y=examples.targets)
    x, y = examples.for_learning(rows[valid])
    assert complete(x, variants) == rows[valid].tolist()
    assert torch.equal(y, examples.y[rows[valid]].repeat_interleave(variants, 0))
    x, y = examples.for_learning(rows[:, :1])
    assert x.shape == (len(images), variants, 1)
    assert y.shape[:2] == (len(images), variants)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("findings", [False, True])
def test_a_patient_s_gradient_is_the_mean_over_variants_and_then_clipped(model: str, findings: bool) -> None:
    """De et al. 2022, section 3.2: against plain autograd, patient by patient."""
    examples = examples_of([1, 3, 2, 1], model=model, seed=5, findings=findings, variants=3)
    assert examples.augmented is not None
    loss, theta = objective(model, findings), MODELS[model].initial() + 0.05
    rows = torch.full((4, 3), -1)
    expected = torch.zeros(len(theta), dtype=torch.float64)
    for patient in range(4):
        own = (examples.patient == patient).nonzero().flatten()
        rows[patient, : len(own)] = own
        each = [
            plain_gradient(loss, theta, x.unsqueeze(0), examples.y[row : row + 1])
            for row in own.tolist()
            for x in (examples.z[row], *examples.augmented[row])
        ]
        mean = torch.stack(each).mean(0)
        assert mean.norm() > 0.05, "else nothing is clipped"
        expected += clipped(mean.unsqueeze(0), 0.05)[0]
    total = clipped_sum(loss, theta, examples, rows.clamp_min(0), rows >= 0, 0.05)
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-5)


@settings(max_examples=40)
@given(examples=hospitals(), seed=st.integers(0, 1000))
def test_judging_and_counting_see_the_images_as_they_are(examples: Examples, seed: int) -> None:
    """Whatever the variants hold: statistics, class means and confusion counts are those of a task without any."""
    poison = torch.full((len(examples.z), 2, FEATURES), math.nan)
    plain, varied = (cohort(replace(examples, augmented=each)) for each in (None, poison))
    loss = objective("logistic")
    theta = torch.randn(loss.model.layout.size, generator=torch.Generator().manual_seed(seed))
    for question in ("statistics", "class_means", "confusion"):
        one, other = (blocks(question, each, loss, theta) for each in (plain, varied))
        assert torch.equal(one, other)


@given(images=IMAGES, variants=VARIANTS, seed=st.integers(0, 1000))
def test_a_patient_takes_the_variants_along(images: list[int], variants: int, seed: int) -> None:
    examples = numbered(images, variants)
    chosen = torch.rand(len(examples.y), generator=torch.Generator().manual_seed(seed)) < 0.5
    left = examples.subset(chosen)
    x, _ = left.for_learning(torch.arange(len(left.y)))
    assert complete(x, variants) == chosen.nonzero().flatten().tolist()
