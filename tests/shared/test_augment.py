"""The variants of an image: as many as the task says, the image first, all different, always the same."""

from __future__ import annotations

from itertools import chain, combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from wardround.augment import made_by, variants
from wardround.task import MOST_VARIANTS, VERSIONS, Augmentation, Task


def task_of(augment: tuple[Augmentation, ...], side: int = 16) -> Task:
    return Task(label_column="y", classes=("no", "yes"), image_size_px=side, augment=augment)


def allowed() -> list[tuple[Augmentation, ...]]:
    """Every augment that a task accepts."""
    found = []
    for names in chain.from_iterable(combinations(VERSIONS, size) for size in range(len(VERSIONS) + 1)):
        try:
            found.append(task_of(names).augment)
        except ValidationError:
            continue
    return found


@pytest.mark.parametrize("augment", allowed(), ids="+".join)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 33)])
def test_variants_are_as_many_as_promised_and_all_different(
    augment: tuple[Augmentation, ...], channels: int, side: int
) -> None:
    x = 0.1 + 0.8 * torch.rand(2, channels, side, side)
    before = x.clone()
    made = list(variants(x, augment))
    assert len(made) == task_of(augment, side).variants <= MOST_VARIANTS
    assert torch.equal(made[0], before)
    assert torch.equal(x, before)
    assert len({each.contiguous().numpy().tobytes() for each in made}) == len(made)
    alone = zip(*(variants(x[image : image + 1], augment) for image in range(2)), strict=True)
    for each, again, images in zip(made, variants(x, augment), alone, strict=True):
        assert each.shape == x.shape
        assert 0 <= each.min() <= each.max() <= 1
        assert torch.equal(each, again)
        assert torch.equal(each, torch.cat(images)), "who else is there changes a bit of an image"


def test_what_each_one_does() -> None:
    x = torch.zeros(1, 1, 16, 16)
    x[0, 0, 2, 5] = 0.5
    marked = {
        "flip-horizontal": [(2, 10)],
        "flip-vertical": [(13, 5)],
        "rotate-90": [(10, 2), (13, 10), (5, 13)],
        "shift": [(3, 5), (1, 5), (2, 6), (2, 4)],
        "intensity": [(2, 5), (2, 5)],
    }
    for name, places in marked.items():
        _, *others = variants(x, (name,))  # type: ignore[arg-type]
        assert [tuple((each[0, 0] > 0).nonzero()[0].tolist()) for each in others] == places
        assert all((each > 0).sum() == 1 for each in others)
    _, brighter, darker = variants(x, ("intensity",))
    assert brighter.max() > 0.5 > darker.max()


def test_a_shift_repeats_the_edge() -> None:
    _, down, *_ = variants(torch.full((1, 1, 32, 32), 0.7), ("shift",))
    assert torch.equal(down, torch.full((1, 1, 32, 32), 0.7))


@given(st.lists(st.sampled_from(list(VERSIONS)), max_size=5))
def test_a_task_has_at_most_so_many_variants(names: list[Augmentation]) -> None:
    try:
        task = task_of(tuple(names))
    except ValidationError:
        return
    assert 1 <= task.variants <= MOST_VARIANTS
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (("shift", "intensity", "flip-horizontal"), "30 variants"),
        (("shift", "rotate-90"), "20 variants"),
        (("shift", "shift"), "twice"),
        (("flip-vertical", "rotate-90", "flip-horizontal"), "leave it out"),
        (("blur",), "flip-horizontal"),
    ],
)
def test_what_makes_too_many_or_no_sense_is_refused(augment: tuple[Augmentation, ...], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        task_of(augment)


def test_a_table_is_not_augmented() -> None:
    with pytest.raises(ValidationError, match="about a table"):
        Task(label_column="y", classes=("no", "yes"), kind="table", features=("age",), augment=("intensity",))


def test_nothing_is_augmented_unless_the_task_says_so() -> None:
    task = Task(label_column="y", classes=("no", "yes"))
    assert (task.augment, task.variants) == ((), 1)
    table = torch.rand(3, 4)
    (same,) = variants(table, ())
    assert same is table


@pytest.mark.parametrize("augment", allowed(), ids="+".join)
def test_variants_made_by_some_changes_are_those_of_a_task_that_names_these_alone(
    augment: tuple[Augmentation, ...],
) -> None:
    x = torch.rand(2, 1, 16, 16)
    made = list(variants(x, augment))
    for number in range(len(augment) + 1):
        for some in combinations(augment, number):
            places = made_by(augment, some)
            assert places[0] == 0 and len(places) == task_of(some).variants
            for place, alone in zip(places, variants(x, some), strict=True):
                assert torch.equal(made[place], alone)
