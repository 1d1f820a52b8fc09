"""Adapting at home: support and query share no patient, both starts are treated alike, and nothing is overclaimed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import algorithm
from torch import Tensor

from wardround.errors import DataError
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner, compare, k_shot

COLUMNS, CLASSES = 6, 3
MODEL = Tabular.logistic(COLUMNS, CLASSES)
SHIFT, SCALE = no_scaling(COLUMNS)
TRUTH = torch.eye(CLASSES, COLUMNS)


def cohort(patients: int = 60, *, noise: float = 1.0, seed: int = 0, images: int = 2) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    patient = torch.arange(patients).repeat_interleave(images)
    y = patient % CLASSES
    z = 2 * TRUTH[y] + noise * torch.randn(len(y), COLUMNS, generator=generator)
    return Examples(z=z, y=y, patient=patient, summary=z, classes=CLASSES)


def learner(theta: Tensor, **settings: float) -> Learner:
    return Learner(algorithm("fedavg", **settings), Objective(MODEL, SHIFT, SCALE), theta)


def good_start() -> Tensor:
    return MODEL.layout.pack({"weight": 5 * TRUTH, "bias": torch.zeros(CLASSES)})


def test_adapting_learns_the_support() -> None:
    examples = cohort(noise=0.1)
    fresh = learner(MODEL.initial())
    assert fresh.score(fresh.adapt(examples), examples) > 0.95
    assert torch.equal(MODEL.initial(), torch.zeros(MODEL.layout.size))


def test_adapting_finds_the_minimum_of_its_objective() -> None:
    """At the minimum the balanced cross entropy pulls exactly as hard as the way back to the start."""
    examples, start = cohort(), good_start()
    theta = learner(start, adapt_steps=600, adapt_pull=6.0).adapt(examples)["theta"]
    at = theta.clone().requires_grad_()
    logits = MODEL.logits(at, examples.z, SHIFT, SCALE)
    loss = torch.stack([torch.nn.functional.cross_entropy(logits[examples.y == k], examples.y[examples.y == k])
                        for k in range(CLASSES)]).mean()  # fmt: skip
    (gradient,) = torch.autograd.grad(loss, at)
    torch.testing.assert_close(gradient, -0.1 * (theta - start), atol=1e-4, rtol=0)


def test_no_steps_change_nothing_and_a_strong_pull_little() -> None:
    examples, start = cohort(), good_start()
    assert torch.equal(learner(start, adapt_steps=0).adapt(examples)["theta"], start)
    moved = [(learner(start, adapt_pull=pull).adapt(examples)["theta"] - start).norm() for pull in (0.6, 30.0)]
    assert moved[1] < moved[0] / 3


def test_balanced_accuracy_gives_every_class_the_same_weight() -> None:
    y = torch.tensor([0] * 9 + [1])
    z = torch.zeros(10, COLUMNS)
    always_zero = MODEL.layout.pack({"weight": torch.zeros(3, COLUMNS), "bias": torch.tensor([1.0, 0.0, 0.0])})
    examples = Examples(z=z, y=y, patient=torch.arange(10), summary=z, classes=3)
    judged = learner(always_zero)
    assert judged.score(judged.unadapted(), examples) == pytest.approx(0.5)


def test_predictions_are_probabilities() -> None:
    shared = learner(good_start())
    probabilities = shared.probabilities(shared.unadapted(), cohort().z)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(120))


@settings(max_examples=50, deadline=None)
@given(
    images=st.lists(st.tuples(st.integers(0, 11), st.integers(0, 2)), min_size=1, max_size=60),
    shots=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_support_and_query_share_no_patient_and_lose_no_image(
    images: list[tuple[int, int]], shots: int, seed: int
) -> None:
    raw = torch.tensor([patient for patient, _ in images])
    patient = torch.unique(raw, return_inverse=True)[1]
    z = torch.arange(len(images), dtype=torch.float32)[:, None]
    examples = Examples(z=z, y=torch.tensor([y for _, y in images]), patient=patient, summary=z, classes=3)
    split = k_shot(examples, shots, torch.Generator().manual_seed(seed))
    support, query = (part.z.flatten().long() for part in (split.support, split.query))
    assert sorted([*support.tolist(), *query.tolist()]) == list(range(len(images)))
    assert not set(patient[support].tolist()) & set(patient[query].tolist())
    assert split.support.patients <= 3 * shots
    assert len(query) > 0


def test_a_class_of_few_patients_gives_fewer_shots() -> None:
    y = torch.tensor([0] * 10 + [1] * 3 + [2])
    z = torch.randn(14, COLUMNS, generator=torch.Generator().manual_seed(0))
    examples = Examples(z=z, y=y, patient=torch.arange(14), summary=z, classes=3)
    split = k_shot(examples, 4, torch.Generator().manual_seed(0))
    assert torch.bincount(split.support.y, minlength=3).tolist() == [4, 1, 0]
    assert torch.bincount(split.query.y, minlength=3).tolist() == [6, 2, 1]


def test_a_good_start_helps_most_with_few_shots() -> None:
    starts = {"meta-learned": learner(good_start()), "fresh": learner(MODEL.initial())}
    scores = compare(starts, cohort(90, noise=1.5), shots=(0, 1), repeats=5)
    assert [(score.start, score.shots) for score in scores] == [
        ("meta-learned", 0), ("fresh", 0), ("meta-learned", 1), ("fresh", 1),
    ]  # fmt: skip
    by_name = {(score.start, score.shots): score for score in scores}
    assert by_name["fresh", 0].mean == pytest.approx(1 / 3)
    meta, fresh = by_name["meta-learned", 1], by_name["fresh", 1]
    assert meta.mean - meta.half_width > fresh.mean + fresh.half_width


def test_equal_starts_get_equal_scores_and_the_same_seed_the_same_table() -> None:
    def table(seed: int) -> list[float]:
        starts = dict.fromkeys(("one", "other"), learner(MODEL.initial()))
        scores = compare(starts, cohort(30, noise=2.0), shots=(2,), repeats=2, tuning_repeats=1, seed=seed)
        return [score.mean for score in scores]

    one, other = table(1)
    assert one == other
    assert table(1) == [one, other]
    assert table(2) != [one, other]


def test_nothing_to_adapt_to_or_to_judge_is_said() -> None:
    nobody = k_shot(cohort(), 0, torch.Generator()).support
    with pytest.raises(DataError, match="adapt"):
        learner(MODEL.initial()).adapt(nobody)
    with pytest.raises(DataError, match="evaluate"):
        learner(MODEL.initial()).score({"theta": MODEL.initial()}, nobody)
