"""What a hospital's classes look like to a federation's model."""

from __future__ import annotations

import tomllib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wardround.task import Task
from wardround_client.personal.resemblances import LEAST, Resemblance, lines, resemblances

THEIRS = ("akiec", "bcc", "mel", "nv")


def told(of: list[list[int]], a_class: int, *, seed: int = 0, bias: float = 0.0) -> tuple[Tensor, Tensor]:
    """Of each own class so many patients, each of whom shows one of the federation's classes of a list in turn.

    bias: how much the model takes everything here for nv. Probabilities [patients, theirs], and who shows what.
    """
    generator = torch.Generator().manual_seed(seed)
    truth = torch.tensor([parts[place % len(parts)] for parts in of for place in range(a_class)])
    logits = 2 * torch.nn.functional.one_hot(truth, 4).float() + 0.7 * torch.randn(len(truth), 4, generator=generator)
    logits[:, 3] += bias
    shows = torch.nn.functional.one_hot(torch.arange(len(of)).repeat_interleave(a_class), len(of)) > 0
    return logits.softmax(1), shows


def found(of: list[list[int]], a_class: int = 20, **other: float) -> list[Resemblance]:
    ours = tuple(f"own {number}" for number in range(len(of)))
    return resemblances(*told(of, a_class, **other), ours, THEIRS)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [0.0, 1.0])
def test_classes_under_other_names_are_found(bias: float) -> None:
    """Also where the model takes most of this hospital's images for one class."""
    assert [each.like for each in found([[2], [0], [3], [1]], bias=bias)] == [("mel",), ("akiec",), ("nv",), ("bcc",)]


def test_a_class_of_several_and_the_parts_of_one_are_found() -> None:
    assert [{*each.like} for each in found([[0, 1, 2], [3]], 60)] == [{"akiec", "bcc", "mel"}, {"nv"}]
    assert [each.like for each in found([[3], [3], [2], [0]], 60)] == [("nv",), ("nv",), ("mel",), ("akiec",)]


@given(st.integers(0, 200), st.integers(1, 60), st.integers(2, 4))
def test_where_nothing_tells_the_classes_apart_hardly_anything_is_said(seed: int, a_class: int, ours: int) -> None:
    """All classes are the same mixture, so whatever is said is wrong; the model cannot always know that."""
    said = [each for each in found([[0, 1, 2, 3, 3]] * ours, a_class, seed=seed) if each.like]
    assert len(said) <= ours - 1 or a_class < 20


@given(st.integers(1, LEAST - 1), st.integers(0, 20))
def test_a_few_patients_tell_nothing(a_class: int, seed: int) -> None:
    for each in found([[0], [1], [2], [3]], a_class, seed=seed):
        assert (each.like, each.patients) == ((), a_class)


@given(
    st.integers(0, 30), st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31), st.sampled_from([1.0, 30.0])
)  # fmt: skip
def test_it_holds_for_any_numbers(patients: int, ours: int, theirs: int, seed: int, sharp: float) -> None:
    """Nobody, one class, a class without a patient, patients with several findings, predictions of 0 and 1."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = (sharp * torch.randn(patients, theirs, generator=generator)).softmax(1)
    shows = torch.rand(patients, ours, generator=generator) > 0.6
    names = [str(number) for number in range(ours)], [str(number) for number in range(theirs)]
    once, again = (resemblances(probabilities, shows, *names, draws=50) for _ in range(2))
    assert once == again
    for each, count in zip(once, shows.sum(0).tolist(), strict=True):
        assert each.patients == count
        assert 0 <= each.sure <= 1
        assert set(each.like) <= set(names[1])
        assert (each.nearest in names[1]) if count else (each.nearest == "" and not each.like)
        assert each.record()["shares"].keys() == set(names[1])


@given(st.randoms(use_true_random=False), st.integers(0, 50))
def test_the_order_of_patients_and_classes_is_no_matter(random: object, seed: int) -> None:
    """Up to the draws of the bootstrap: what is nearest, and the shares."""
    probabilities, shows = told([[2], [0, 1], [3]], 9, seed=seed)
    mixed = torch.randperm(len(shows), generator=torch.Generator().manual_seed(seed))
    one = resemblances(probabilities, shows, ("a", "b", "c"), THEIRS)
    other = resemblances(probabilities[mixed][:, [3, 1, 0, 2]], shows[mixed][:, [2, 0, 1]], ("c", "a", "b"),
                         ("nv", "bcc", "akiec", "mel"))  # fmt: skip
    for each in one:
        same = next(another for another in other if another.own == each.own)
        assert same.nearest == each.nearest
        assert same.shares == pytest.approx(each.shares, abs=1e-5)


NAMES = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=8),
    min_size=2, max_size=4, unique=True,
)  # fmt: skip


@given(NAMES, NAMES, st.booleans())
def test_the_lines_are_toml_that_says_the_map(ours: list[str], theirs: list[str], whole: bool) -> None:
    task = Task(label_column="dx", classes=("a", "b")).model_copy(update={"classes": tuple(ours)})
    like = {own: theirs[:place] for place, own in enumerate(ours)}
    read = tomllib.loads("\n".join(lines(like, task, whole=whole)))["task"]
    assert read["same_as"] == like
    assert not whole or (read["label_column"], read["classes"]) == ("dx", ours)
