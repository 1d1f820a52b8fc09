"""How far a method adapts, chosen by cross-validation on the support itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import algorithm

from wardround.algorithms import ALGORITHMS
from wardround.algorithms.fedavg import FedAvg
from wardround.labels import LABEL_KINDS
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround.task import Augmentation
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import TRIED, Learner, folds_of, shots_of


def examples(labels: list[int], classes: int, noise: float = 0.1) -> Examples:
    """One image a patient; the class is where the patient lies."""
    y = torch.tensor(labels)
    z = torch.nn.functional.one_hot(y, classes).float() + noise * torch.randn(len(y), classes)
    return Examples(z=z, y=y, patient=torch.arange(len(y)), summary=z, classes=classes)


def learner(classes: int, theta: torch.Tensor | None = None, adapt_steps: int = 100) -> Learner:
    model = Tabular.logistic(classes, classes)
    start = model.initial() if theta is None else theta
    loss = Objective(model, torch.zeros(classes), torch.ones(classes))
    return Learner(algorithm("fedavg", adapt_pull=3.0, adapt_steps=adapt_steps), loss, start)


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
    held, left = (learner(2, start, adapt_steps=30).tuned_on(support) for start in (right, -right))
    assert sum(way.weight for way in held.ways if way.start == "untrained") < 0.3
    assert sum(way.weight for way in left.ways if way.start == "untrained") > 0.5
    assert all(way.start == "untrained" or (way.value or 1e9) < 10 for way in left.ways)
    # Six pairs of patients who are alike and differ in their class: whatever is learned of one is wrong of the other.
    pairs = examples([0, 1] * 6, 2)
    alike = Examples(pairs.z[::2].repeat_interleave(2, 0), pairs.y, pairs.patient, pairs.summary, 2)
    unsure = learner(2, adapt_steps=30).tuned_on(alike)
    assert sum(way.weight for way in unsure.ways if (way.value or 1e9) > 1) > 0.5, "nothing can be learned"


@settings(max_examples=6)
@given(st.lists(st.integers(0, 2), min_size=6, max_size=30), st.integers(0, 2**31))
def test_the_weights_are_shares_and_the_mean_predicts_the_mean_of_the_logits(labels: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    support = examples(labels, 3, noise=0.7)
    before = learner(3, torch.randn(12), adapt_steps=10)
    tuned = before.tuned_on(support)
    if not tuned.ways:
        return
    assert sum(way.weight for way in tuned.ways) == pytest.approx(1)
    fits = [replace(before, ways=(replace(way, weight=1.0),)).adapt(support) for way in tuned.ways]
    logits = [before.algorithm.predict(fitted, support.z, before.loss) for fitted in fits]
    mean = sum(way.weight * each for way, each in zip(tuned.ways, logits, strict=True))
    assert torch.allclose(
        before.algorithm.predict(tuned.adapt(support), support.z, before.loss), torch.as_tensor(mean), atol=1e-3
    )
    assert tuned.unadapted() == before.unadapted(), "before is the shared model, whatever comes after"


@pytest.mark.parametrize("labels", [[0, 1] * 10, [0] * 10 + [1] * 10])
def test_a_shared_model_that_misleads_is_left_behind(labels: list[int]) -> None:
    """Local training is one of the ways, so that what was shared cannot make a hospital worse for long."""
    support, others = examples(labels, 2), examples(labels, 2)
    wrong = learner(2, 20 * torch.tensor([-1.0, 1.0, 1.0, -1.0, 0.0, 0.0]))
    tuned = wrong.tuned_on(support)
    alone = learner(2).tuned_on(support)
    assert tuned.score(tuned.adapt(support), others) >= alone.score(alone.adapt(support), others) - 0.05


@pytest.mark.parametrize("name", [each for each in ALGORITHMS.names if ALGORITHMS[each].adapts_by == "adapt_pull"])
def test_every_method_that_is_held_to_its_start_can_leave_it(name: str) -> None:
    support = examples([0, 1] * 6, 2)
    method = algorithm(name, adapt_steps=5)
    for model in (Tabular.mlp(2, 2, 4), *([] if method.needs_embedding else [Tabular.logistic(2, 2)])):
        whole = method.extended(model)
        loss = Objective(whole, torch.zeros(2), torch.ones(2))
        tuned = Learner(method, loss, whole.initial().detach()).tuned_on(support)
        assert tuned.ways and (len(tuned.ways) == 1 or model.hidden == "none")
        assert tuned.probabilities(tuned.adapt(support), support.z).isfinite().all()


def test_one_patient_a_class_leaves_nothing_to_judge() -> None:
    before = learner(3)
    assert before.tuned_on(examples([0, 1, 2], 3)) is before


def test_a_method_with_class_means_chooses_what_these_count_for() -> None:
    support = examples([0, 1, 2] * 4, 3)
    model = Tabular.mlp(3, 3, 4)
    loss = Objective(model, torch.zeros(3), torch.ones(3))
    tuned = Learner(algorithm("prototypical"), loss, model.initial()).tuned_on(support)
    assert tuned.algorithm.model_dump()["adapt_prior"] in TRIED["adapt_prior"]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), min_size=1, max_size=4),
    st.lists(st.sampled_from([0.0, 0.1, 1.0, 100.0]), min_size=1, max_size=3),
    st.sampled_from(["one", "several"]),
    st.integers(0, 2**31),
)
def test_many_starts_at_once_are_the_same_as_one_after_another(
    labels: list[list[int]], pulls: list[float], kind: str, seed: int
) -> None:
    """On supports of several sizes, where some classes may be missing and patients have several images."""
    torch.manual_seed(seed)
    method, model = FedAvg(name="fedavg", adapt_steps=30), Tabular.logistic(5, 3)
    loss = Objective(model, torch.randn(5), torch.ones(5), labels=LABEL_KINDS[kind])
    supports = []
    for each in labels:
        y = torch.tensor(each)
        y = y if kind == "one" else torch.nn.functional.one_hot(y, 3).float()
        patient = torch.arange(len(each)) // 2
        supports.append(shots_of(Examples(torch.randn(len(each), 5), y, patient, y, 3, labels=LABEL_KINDS[kind])))
    theta = torch.randn(len(supports), len(pulls), model.layout.size)
    together = method.heads_tuned(theta, supports, loss, torch.tensor(pulls))
    for support, starts, ends in zip(supports, theta, together, strict=True):
        for pull, start, end in zip(pulls, starts, ends, strict=True):
            alone = method.model_copy(update={"adapt_pull": pull}).adapt(start, support, loss)["theta"]
            torch.testing.assert_close(end, alone, rtol=1e-3, atol=1e-4)


def scored(names: list[int], classes: int, labels: list[int], seed: int) -> tuple[Learner, Examples, Examples]:
    """A federation that knows four places in many dimensions; a hospital whose classes lie at some, by other names."""
    torch.manual_seed(seed)
    y = torch.tensor(labels)
    z = 2 * torch.nn.functional.one_hot(torch.tensor(names)[y], 40).float() + torch.randn(len(y), 40)
    here = Examples(z=z, y=y, patient=torch.arange(len(y)), summary=z, classes=classes)
    model = Tabular.logistic(40, classes)
    loss = Objective(model, torch.zeros(40), torch.ones(40))
    knows = (12 * (torch.eye(40)[:4] - torch.eye(40)[:4].mean(0)), torch.zeros(4))
    before = Learner(algorithm("fedavg", adapt_steps=40), loss, model.initial(), scores=knows)
    inside = torch.arange(len(y)) < 15
    return before, here.subset(inside), here.subset(~inside)


def test_classes_of_other_names_are_told_by_what_the_federation_knows() -> None:
    gains = []
    for seed in range(4):
        before, support, others = scored([2, 0, 3], 3, [0, 1, 2] * 40, seed)
        alone = replace(before, scores=None)
        assert (before.scored, alone.scored) == (1, 0)
        gains.append(before.score(before.adapt(support), others) - alone.score(alone.adapt(support), others))
    assert sum(gains) / len(gains) > 0.1
    tuned = before.tuned_on(support)
    assert tuned.scored > 0.6
    assert tuned.locally == pytest.approx(1 - tuned.scored), "a head of zeros is local training"


def test_a_head_on_scores_is_a_head_on_features() -> None:
    before, support, _ = scored([2, 0, 3], 3, [0, 1, 2] * 10, 1)
    assert before.scores is not None
    weight, bias = before.scores
    (theta,) = before.algorithm.of_scores(before.theta, [shots_of(support)], before.loss, weight, bias)
    found = before.loss.head(theta)[0]
    there = torch.linalg.lstsq(weight.T, found.T).solution
    torch.testing.assert_close(weight.T @ there, found.T, rtol=1e-3, atol=1e-4)
    assert not before.theta.any(), "and before stays before"


def test_scores_that_know_nothing_are_harmless() -> None:
    before, support, others = scored([4, 5, 6], 3, [0, 1, 2] * 20, 2)
    nothing = replace(before, scores=(torch.zeros(4, 40), torch.zeros(4)))
    assert all(each.isfinite().all() for each in nothing.adapt(support).values())
    tuned, alone = before.tuned_on(support), replace(before, scores=None).tuned_on(support)
    assert tuned.score(tuned.adapt(support), others) >= alone.score(alone.adapt(support), others) - 0.05


def with_variants(labels: list[int], classes: int, wrong: int, seed: int) -> Examples:
    """Images of 2 x 3 variants; those that a change makes, 0: rotations, 1: tones, show another class."""
    torch.manual_seed(seed)
    plain = examples(labels, classes, noise=0.3)
    others = []
    for place in range(1, 12):
        misleads = (place // 3 > 0, place % 3 > 0)[wrong]
        others.append(plain.z.roll(1, 1) if misleads else plain.z + 0.1 * torch.randn_like(plain.z))
    return replace(plain, augmented=torch.stack(others, 1))


def varying(before: Learner, augment: tuple[Augmentation, ...]) -> Learner:
    return replace(before, augment=augment).learning_from(augment)


@pytest.mark.parametrize("wrong", [0, 1])
def test_variants_that_mislead_are_not_learned_from(wrong: int) -> None:
    augment: tuple[Augmentation, ...] = ("rotate-90", "intensity")
    support, others = with_variants([0, 1, 2] * 6, 3, wrong, 0), examples([0, 1, 2] * 40, 3, noise=0.3)
    before = varying(learner(3), augment)
    tuned = before.tuned_on(support)
    assert tuned.loss.augment in ((), (augment[1 - wrong],))
    assert tuned.score(tuned.adapt(support), others) > before.score(before.adapt(support), others) + 0.2
    nothing = before.learning_from(())
    plain = learner(3).adapt(replace(support, augmented=None))
    assert torch.equal(nothing.adapt(support)["theta"], plain["theta"])


def test_what_the_task_names_is_learned_from_unless_it_is_behind() -> None:
    """Variants that are the images themselves tell nothing, and nothing changes."""
    plain = examples([0, 1, 2] * 4, 3)
    support = replace(plain, augmented=plain.z.unsqueeze(1).repeat(1, 11, 1))
    before = varying(learner(3, adapt_steps=20), ("rotate-90", "intensity"))
    assert before.augmented_on(support) is before
    without = learner(3)
    assert without.augmented_on(plain) is without, "a task without variants has none to choose from"
    alone = support.subset(torch.arange(12) < 3)
    assert before.augmented_on(alone) is before, "of one patient a class nothing can be judged"
