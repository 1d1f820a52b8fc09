"""The answers in their own units: how much noise is on each number, what it is divided by, and what was reserved."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from tests.client.privacy.generated import CLASSES, DECLARED, FEATURES, MODELS, asks, cohort, examples_of, objective
from tests.questions import parts
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.errors import BudgetExceeded
from wardround.models import Objective
from wardround.questions import ClassMeans
from wardround.schedule import QUESTIONS
from wardround_client.privacy.private_cohort import PrivateCohort

THETA = torch.zeros(MODELS["logistic"].layout.size)
FIRST = torch.eye(len(THETA))[0]
ASK = asks(objective("logistic"), THETA)
TIMES = 400


def stds_in_units(question: str, sigma: float, clip_norm: float, episodes: int) -> Tensor:
    """What the docstrings of `PrivateCohort` say, number by number."""
    ones = torch.ones
    match question:
        case "statistics":  # three parts of a block of norm 1: a patient's one-hot, z / sqrt d, z^2 / sqrt(3 d)
            d = FEATURES
            parts = [ones(CLASSES), ones(d) * math.sqrt(d), ones(d) * math.sqrt(3 * d)]
            return sigma * math.sqrt(3) * torch.cat(parts)
        case "gradient":
            return sigma * clip_norm / DECLARED * ones(len(THETA))
        case "episode_gradient":
            return sigma * 2 * clip_norm / episodes * ones(len(THETA))
        case "class_means":  # (lambda counts, sums / sqrt e) / sqrt(1 + lambda^2), lambda = 1/2
            counts, sums = 2 * ones(CLASSES), math.sqrt(FEATURES) * ones(CLASSES * FEATURES)
            return sigma * math.sqrt(1.25) * torch.cat([counts, sums])
        case _:
            return sigma * ones(CLASSES**2)


def measured_std(asked: PrivateCohort, question: str, size: int) -> Tensor:
    """Of answers about nobody, which are noise alone; mean square, because the mean is known to be 0."""
    answers = torch.stack([ASK[question](asked).double() for _ in range(TIMES)])
    assert answers.shape[1] == size
    return answers.square().mean(0).sqrt()


@pytest.mark.parametrize("question", QUESTIONS.built_in)
def test_the_noise_has_the_standard_deviation_of_its_sensitivity(question: str) -> None:
    """P11, P16: "add N(0, (sigma C)^2 I), divide by a public constant"; "sigma relative to 2C"."""
    sigma, clip_norm = 1.7, 0.4
    asked = cohort(examples_of([]), Privacy(clip_norm=clip_norm, patients_per_episode=10), sigma=sigma)
    expected = stds_in_units(question, sigma, clip_norm, episodes=5).double()
    found = measured_std(asked, question, len(expected))
    # A standard deviation of n normal numbers is off by 1 / sqrt(2 n): 7 of these, for each number and for all.
    assert (found / expected - 1).abs().max() < 7 / math.sqrt(2 * TIMES)
    assert abs((found / expected).square().mean().sqrt() - 1) < 7 / math.sqrt(2 * TIMES * len(expected))


@pytest.mark.parametrize("question", ["gradient", "episode_gradient"])
@pytest.mark.parametrize("rate", [1e-9, 1.0])
def test_an_empty_sample_has_the_noise_of_a_full_one(question: str, rate: float) -> None:
    """P11: "An empty sample still adds noise." And an episode with one side only is one that is empty."""
    sigma, times = 1.3, 500
    denominator = {"gradient": rate * DECLARED, "episode_gradient": 2}[question]
    scale = {"gradient": sigma, "episode_gradient": 2 * sigma}[question]
    privacy = Privacy(patients_per_episode=25)
    # Nobody is drawn of forty, or nobody is there; an episode is empty of one patient already.
    images = [1] * 40 if rate < 1 else [1] if question == "episode_gradient" else []
    asked = cohort(examples_of(images), privacy, sigma=sigma, rate=rate)
    answers = torch.stack([ASK[question](asked) for _ in range(times)]).double() * denominator
    assert (answers == 0).sum() <= 5  # one in two million falls on the grid's 0
    assert abs(answers.std().item() / scale - 1) < 7 / math.sqrt(2 * answers.numel())


@pytest.mark.parametrize("patients", [3, 20, 300])
def test_no_denominator_moves_with_the_true_number_of_patients(patients: int) -> None:
    """P8: "nothing computed from the true count enters q, the denominator, or delta".

    A loss whose clipped gradient is the same for everybody makes the sum count patients, and episodes.
    """
    asked = cohort(examples_of([1] * patients), Privacy(patients_per_episode=10), sigma=1e-6)

    class Counting:
        def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
            return 1e3 * theta[0]

    assert asked.gradient(Counting(), THETA)[0].item() == pytest.approx(patients / DECLARED, rel=1e-3)
    answers = [asked.episode_gradient(lambda theta, support, query: 1e3 * FIRST, THETA)[0] for _ in range(30)]
    assert max(answers).item() <= 1.001, "more than all five episodes"
    if patients == 300:
        assert min(answers).item() > 0.99


def test_class_means_are_in_natural_units() -> None:
    """Sums of embeddings and counts of patients; their quotients are the classes' centres."""
    examples = examples_of([1, 3, 2] * 300, seed=4)
    centres = torch.tensor([[1.0, 0, 0, 0], [0, -1.0, 0, 0.5], [0.0] * 4])
    z = centres[examples.y] + 0.1 * examples.z
    model = MODELS["logistic"]
    as_it_is = Objective(model, torch.zeros(FEATURES), torch.full((FEATURES,), model.embedding_gain / FEATURES**0.5))
    answer = parts("class_means", cohort(replace(examples, z=z), sigma=1e-6), as_it_is, THETA)
    weights = 1 / torch.bincount(examples.patient)[examples.patient]
    truth = torch.stack([weights[examples.y == number].sum() for number in range(CLASSES)])
    assert answer["counts"].sum().item() == pytest.approx(900, rel=1e-3)
    torch.testing.assert_close(answer["counts"], truth, rtol=1e-3, atol=0.01)
    means = ClassMeans(answer["sums"], answer["counts"]).means()
    torch.testing.assert_close(means[:2], centres[:2], atol=0.02, rtol=0)
    assert means[2].abs().max() < 1e-3, "a class that nobody has"


@pytest.mark.parametrize("question", QUESTIONS.built_in)
def test_a_question_is_answered_with_what_was_reserved_and_no_oftener(question: str) -> None:
    """Whatever is asked: the noise and the sampling are those of the reservation, which was priced."""
    rows = (Answers(1e9, 1.0, 1), Answers(1e-6, 1.0, 2))
    asked = PrivateCohort(examples_of([1] * 9), privacy=Privacy(), declared_patients=DECLARED, reserved=rows)
    loud, *exact = (ASK[question](asked).abs().max() for _ in range(3))
    assert loud > 1e3 > max(exact)
    with pytest.raises(BudgetExceeded, match="more than was reserved"):
        ASK[question](asked)
