"""How far a method adapts, chosen by cross-validation on the support itself."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.chosen import algorithm

from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import TRIED, Learner, folds_of


def examples(labels: list[int], classes: int, noise: float = 0.1) -> Examples:
    """One image a patient; the class is where the patient lies."""
    y = torch.tensor(labels)
    z = torch.nn.functional.one_hot(y, classes).float() + noise * torch.randn(len(y), classes)
    return Examples(z=z, y=y, patient=torch.arange(len(y)), summary=z, classes=classes)


def learner(classes: int, theta: torch.Tensor | None = None) -> Learner:
    model = Tabular.logistic(classes, classes)
    start = model.initial() if theta is None else theta
    loss = Objective(model, torch.zeros(classes), torch.ones(classes))
    return Learner(algorithm("fedavg", adapt_pull=3.0), loss, start)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_every_class_of_two_patients_is_held_out_in_parts_and_never_whole(labels: list[int]) -> None:
    fold = folds_of(examples(labels, 4))
    y = torch.tensor(labels)
    for label in range(4):
        own = fold[y == label]
        if len(own) > 1:
            assert (own >= 0).all()
            assert all((own != number).any() for number in range(5))
            sizes = own.bincount(minlength=5)
            assert sizes.max() - sizes.min() <= 1
        else:
            assert (own == -1).all()


def test_a_start_that_is_right_is_held_and_one_that_is_wrong_is_left() -> None:
    support = examples([0, 1] * 5, 2)
    right = 20 * torch.tensor([1.0, -1.0, -1.0, 1.0, 0.0, 0.0])
    strongest, weakest = max(TRIED["adapt_pull"]), min(TRIED["adapt_pull"])
    assert learner(2, -right).tuned_on(support).algorithm == algorithm("fedavg", adapt_pull=weakest)
    # Six pairs of patients who are alike and differ in their class: whatever is learned of one is wrong of the other.
    pairs = examples([0, 1] * 6, 2)
    alike = Examples(pairs.z[::2].repeat_interleave(2, 0), pairs.y, pairs.patient, pairs.summary, 2)
    assert learner(2).tuned_on(alike).algorithm == algorithm("fedavg", adapt_pull=strongest)


def test_one_patient_a_class_leaves_nothing_to_judge() -> None:
    before = learner(3)
    assert before.tuned_on(examples([0, 1, 2], 3)) is before


def test_a_method_with_class_means_chooses_what_these_count_for() -> None:
    support = examples([0, 1, 2] * 4, 3)
    model = Tabular.mlp(3, 3, 4)
    loss = Objective(model, torch.zeros(3), torch.ones(3))
    tuned = Learner(algorithm("prototypical"), loss, model.initial()).tuned_on(support)
    assert tuned.algorithm.model_dump()["adapt_prior"] in TRIED["adapt_prior"]
