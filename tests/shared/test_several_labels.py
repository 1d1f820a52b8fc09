"""Several findings an image: the task, the loss, its prior, and shots in which every finding counts the same."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.chosen import algorithm
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation, Rounds
from wardround.labels import LEAST_PREVALENCE
from wardround.labels.one import kind as one_class
from wardround.labels.several import kind as findings
from wardround.meta.local import fine_tune
from wardround.models import Objective
from wardround.models.scaling import no_scaling, scaling_of
from wardround.models.tabular import Tabular
from wardround.questions import Shots
from wardround.task import Task

COLUMNS, FINDINGS = 4, 3
MODEL = Tabular.logistic(COLUMNS, FINDINGS)
LOSS = Objective(MODEL, *no_scaling(COLUMNS), labels=findings)
ONE = replace(LOSS, labels=one_class)
TASK = Task(label_column="findings", classes=("nodule", "effusion", "mass"), labels="several")


def shots_of(y: Tensor, images: list[int] | None = None) -> Shots:
    """One patient an image, or as many images a patient as said."""
    counts = torch.tensor(images or [1] * len(y))
    patient = torch.repeat_interleave(torch.arange(len(counts)), counts)
    x = torch.randn(len(y), COLUMNS, generator=torch.Generator().manual_seed(1))
    return Shots(x, y, patient, (1 / counts)[patient].float(), findings if y.dim() == 2 else one_class)


some_labels = st.lists(st.lists(st.booleans(), min_size=FINDINGS, max_size=FINDINGS), min_size=1, max_size=9).map(
    lambda rows: torch.tensor(rows).float()
)


# --- the agreement


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
def test_methods_that_compare_classes_refuse_several_findings(name: str) -> None:
    def federation() -> Federation:
        return Federation(name="f", task=TASK, algorithm=algorithm(name))

    if ALGORITHMS[name].one_class_each:
        with pytest.raises(ValidationError, match=rf"{name} needs images of one class.*take .*maml.*reptile"):
            federation()
    else:
        assert federation().algorithm.name == name


def test_private_confusion_counts_are_refused() -> None:
    with pytest.raises(ValidationError, match="evaluate_every"):
        Federation(name="f", task=TASK, rounds=Rounds(evaluate_every=5))


def test_a_class_that_no_cell_can_name_is_refused() -> None:
    with pytest.raises(ValidationError, match='holds no ";"'):
        Task(label_column="findings", classes=("a;b", "other"), labels="several")
    assert Task(label_column="findings", classes=("a;b", "other")).classes[0] == "a;b"
    for name in (" a", "a "):
        with pytest.raises(ValidationError, match="single blanks"):
            Task(label_column="findings", classes=(name, "other"))


# --- the loss


@given(y=some_labels, size=st.sampled_from([0.0, 1.0, 30.0, 1e4]))
def test_the_loss_is_the_mean_over_findings_of_binary_cross_entropies(y: Tensor, size: float) -> None:
    logits = size * torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    expected = binary_cross_entropy_with_logits(logits, y, reduction="none").mean(1)
    torch.testing.assert_close(LOSS.of_logits(logits, y), expected)
    prior = torch.tensor([-2.0, 0.0, 1.0])
    adjusted = replace(LOSS, log_prior=prior).of_logits(logits - prior, y)
    torch.testing.assert_close(adjusted, expected, rtol=1e-4, atol=1e-5)


def test_one_finding_of_two_classes_is_what_two_classes_are() -> None:
    """Binary cross entropy of l is cross entropy of (0, l): the two kinds of labels speak of one loss."""
    found = torch.tensor([0, 1, 1, 0])
    logit = torch.tensor([[-3.0], [0.2], [4.0], [1.0]])
    both = torch.cat([torch.zeros_like(logit), logit], 1)
    torch.testing.assert_close(LOSS.of_logits(logit, found.unsqueeze(1).float()), ONE.of_logits(both, found))


def test_log_odds_make_a_frequent_and_a_rare_finding_aim_at_balance() -> None:
    odds = findings.prior(torch.tensor([50.0, 450.0, 250.0]), 500)
    torch.testing.assert_close(odds, torch.tensor([0.1, 0.9, 0.5]).logit())
    floor = findings.prior(torch.tensor([-30.0, 900.0]), 500)
    torch.testing.assert_close(floor, torch.tensor([LEAST_PREVALENCE, 1 - LEAST_PREVALENCE]).logit())


def test_a_constant_that_minimises_the_adjusted_loss_tells_nothing_of_prevalence() -> None:
    """Where the features say nothing, the best adjusted logit is 0: half and half, whatever the prevalence."""
    y = torch.tensor([[1.0, 0, 1]] * 3 + [[0, 0, 1]] * 9 + [[1, 1, 1]] * 3 + [[0, 0, 0]] * 5)
    loss = replace(LOSS, log_prior=findings.prior(y.sum(0), len(y)))
    slope = torch.func.grad(lambda logit: loss.of_logits(logit.expand(len(y), 3), y).sum())(torch.zeros(3))
    torch.testing.assert_close(slope, torch.zeros(3), atol=1e-5, rtol=0)


def test_features_are_pooled_over_declared_patients_where_counts_do_not_add_up_to_them() -> None:
    """A patient with three findings is one patient."""
    z = 2 + 0.5 * torch.randn(5000, 2)
    sums, counts = (z.sum(0), z.square().sum(0)), torch.tensor([[5000.0, 4000.0, 5000.0]])
    shift, scale = scaling_of(*sums, findings.patients(counts, torch.tensor([5000.0])).sum())
    torch.testing.assert_close(shift, torch.tensor([2.0, 2.0]), atol=0.05, rtol=0)
    assert scale.max() < 0.6
    assert scaling_of(*sums, one_class.patients(counts, torch.tensor([5000.0])).sum())[0].max() < 1


# --- shots


@given(y=some_labels)
def test_balanced_shots_weigh_every_finding_and_every_absence_alike(y: Tensor) -> None:
    shots = shots_of(y)
    mass = (shots.balanced(FINDINGS).y * shots.weight[:, None, None]).sum(0)
    occurs = torch.stack([(y == 0).any(0), (y == 1).any(0)])
    assert (mass[~occurs] == 0).all()
    torch.testing.assert_close(mass[occurs], torch.full_like(mass[occurs], len(y) * FINDINGS / int(occurs.sum())))


@given(y=some_labels)
def test_where_findings_are_half_and_half_balance_changes_nothing(y: Tensor) -> None:
    shots = shots_of(torch.cat([y, 1 - y]))
    logits = torch.randn(shots.y.shape, generator=torch.Generator().manual_seed(3))
    plain, balanced = (each.mean(LOSS.of_logits(logits, each.y)) for each in (shots, shots.balanced(FINDINGS)))
    torch.testing.assert_close(plain, balanced)


@given(
    y=st.lists(st.integers(0, FINDINGS - 1), min_size=1, max_size=9).map(torch.tensor),
    logits=st.integers(0, 1000).map(
        lambda seed: torch.randn(9, FINDINGS, generator=torch.Generator().manual_seed(seed))
    ),
)
def test_balanced_shots_of_one_class_each_weigh_every_class_alike(y: Tensor, logits: Tensor) -> None:
    shots = shots_of(y).balanced(FINDINGS)
    each = ONE.of_logits(logits[: len(y)], y)
    expected = torch.stack([each[y == k].mean() for k in torch.unique(y)]).mean()
    torch.testing.assert_close(shots.mean(ONE.of_logits(logits[: len(y)], shots.y)), expected)


def test_shares_and_known_findings() -> None:
    shots = shots_of(torch.tensor([[1.0, 1, 0], [0, 0, 0], [0, 1, 0]]), images=[2, 1])
    assert shots.shares(FINDINGS).tolist() == [[0.5, 0.5, 0], [0, 0, 0], [0, 1, 0]]
    assert shots.among(torch.tensor([True, False, False])) is shots, "that a finding is absent is known of every image"


def test_fine_tuning_learns_a_rare_finding() -> None:
    """One image in twenty shows it, and plain training would say that nobody has it."""
    y = torch.zeros(40, FINDINGS)
    y[:2, 0], y[::2, 1] = 1, 1
    shots = shots_of(y)
    x = shots.x.clone()
    x[:, 0], x[:, 1] = 2 * y[:, 0], 2 * y[:, 1]
    shots = replace(shots, x=x)
    theta = fine_tune(MODEL.initial(), shots, LOSS, steps=200, learning_rate=1.0, pull=0.001)
    said = LOSS.logits(theta, x) > 0
    assert torch.equal(said[:, :2], y[:, :2] > 0)


# What texts of the CSV mean


def task_of(labels: str = "one", **values: str) -> Task:
    return Task(label_column="finding", classes=("0", "1"), labels=labels, values=values)  # type: ignore[arg-type]


def test_an_uncertain_value_is_a_class_or_no_label_as_the_consortium_agreed() -> None:
    ones, zeros, ignored = ({"-1": meaning, "maybe": ""} for meaning in ("1", "0", ""))
    cells = ["1", "-1", None, "maybe", "2"]
    assert [*map(task_of(**ones).label, cells)] == ["1", "1", None, None, "2"]
    assert [*map(task_of(**zeros).label, cells)] == ["1", "0", None, None, "2"]
    assert [*map(task_of(**ignored).label, cells)] == ["1", None, None, None, "2"]
    assert task_of(**ones).written == ("0", "1", "-1") and [*map(task_of().label, cells)] == cells
    several = Task(label_column="x", classes=("a", "b"), labels="several", values={"a?": "a", "b?": "none", "?": ""})  # type: ignore[arg-type]
    assert [several.label(cell) for cell in ("a?; b?", "b", "b;?", "")] == ["a;none", "b", None, ""]


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"-1": "2"}, "is no class"),
        ({"1": "0"}, "is a class already"),
        ({"-1": "none"}, "is no class"),
        ({"a" * 101: "1"}, "100"),
        ({"a\u200b": "1"}, "invisible"),
    ],
)
def test_a_meaning_that_cannot_be_is_refused(values: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        task_of(**values)


@given(st.dictionaries(st.text("abc", min_size=1, max_size=3), st.sampled_from(["0", "1", ""]), max_size=5))
def test_an_agreement_says_what_texts_mean_in_one_way_only(values: dict[str, str]) -> None:
    made = Federation(name="a", task=task_of(**values))
    turned = Federation(name="a", task=task_of(**dict(reversed(values.items()))))
    assert made.digest == turned.digest and Federation.from_canonical(made.canonical()) == made
    assert bool(values) == ("values" in made.canonical())
