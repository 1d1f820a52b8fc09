"""The number that a private evaluation shows is the one that its label kind names."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from wardround.labels import LABEL_KINDS
from wardround.labels.survival import CUTS, risk_of
from wardround.task import Task


def a_task(labels: str, classes: int) -> Task:
    ends = tuple(range(1, classes + 1)) if LABEL_KINDS[labels].timed else ()
    return Task(label_column="x", classes=tuple(map(str, range(classes))), labels=labels, ends=ends)


JUDGED = [name for name in LABEL_KINDS.names if LABEL_KINDS[name].judgement(2)]


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 30), classes=st.integers(2, 5))
@pytest.mark.parametrize("name", JUDGED)
def test_without_noise_the_number_is_what_its_name_says(name: str, seed: int, number: int, classes: int) -> None:
    labels, generator = LABEL_KINDS[name], torch.Generator().manual_seed(seed)
    everything = labels.invented(classes, a_task(name, classes))
    y = everything[torch.randint(classes, (number,), generator=generator)]
    logits = torch.randn(number, classes, generator=generator)
    found = labels.scores(labels.judge(logits, y, classes).sum(0), classes)["accuracy"]
    targets, taken = labels.targets(y, classes).argmax(1), logits.argmax(1)
    match labels.evaluated:
        case "accuracy":
            assert found == pytest.approx(float((targets == taken).float().mean()))
        case "Dice coefficient":
            either = [(targets == each).sum() + (taken == each).sum() for each in range(1, classes)]
            both = [2 * ((targets == each) & (taken == each)).sum() for each in range(1, classes)]
            dice = [float(b / e) for b, e in zip(both, either, strict=True) if e]
            assert found == (pytest.approx(sum(dice) / len(dice)) if dice else None)
        case "concordance":
            risks = torch.bucketize(risk_of(labels.probabilities(logits)), torch.tensor(CUTS))
            first = [(i, j) for i in range(number) for j in range(number) if before(y[i], y[j], classes)]
            wins = [(float(risks[i] > risks[j]) + float(risks[i] == risks[j]) / 2) for i, j in first]
            assert found == (pytest.approx(sum(wins) / len(wins)) if wins else None)
        case other:
            pytest.fail(f"what {other!r} is, this test is to say")


def before(one: torch.Tensor, other: torch.Tensor, classes: int) -> bool:
    """Whether one had the event in an interval that the other is known to have left without it."""
    interval = int(one[0].ceil()) - 1
    had, other_had = bool(one[1]) and interval < classes, bool(other[1]) and int(other[0].ceil()) - 1 < classes
    return had and (int(other[0].ceil()) - 1 > interval if other_had else int(other[0]) > interval)


@pytest.mark.parametrize("name", LABEL_KINDS.names)
@pytest.mark.parametrize("classes", [2, 5])
def test_chance_is_what_a_model_that_learned_nothing_reaches(name: str, classes: int) -> None:
    labels, generator = LABEL_KINDS[name], torch.Generator().manual_seed(classes)
    chance = labels.chance(classes)
    assert chance is None if labels.dense else chance is not None
    if chance is None:
        return
    y = labels.invented(5_000, a_task(name, classes))
    assert labels.score(torch.rand(len(y), classes, generator=generator), y, classes) == pytest.approx(chance, abs=0.02)
