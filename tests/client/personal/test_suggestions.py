"""Which points are chosen: far from what is known, and unsure."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.labels import LABEL_KINDS
from wardround_client.personal.suggestions import farthest, uncertainty

ONE, SEVERAL = LABEL_KINDS["one"], LABEL_KINDS["several"]


@given(st.integers(1, 30), st.integers(0, 8), st.integers(0, 2**31))
def test_every_point_comes_once_and_in_the_same_order(n: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, seen = (torch.randn(each, 3, generator=generator) for each in (n, m))
    unsure = torch.rand(n, generator=generator)
    found = list(farthest(points, seen, unsure))
    assert sorted(number for number, _ in found) == list(range(n))
    assert found == list(farthest(points, seen, unsure))


@given(st.integers(2, 30), st.integers(1, 8), st.integers(0, 2**31))
def test_of_equal_doubt_the_farthest_comes_first(n: int, m: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points, seen = (torch.randn(each, 3, generator=generator) for each in (n, m))
    known = seen.clone()
    for number, distance in farthest(points, seen, torch.full((n,), 0.3)):
        every = torch.cdist(points, known).min(1).values
        assert distance == pytest.approx(float(every.max()), abs=1e-4)
        known = torch.cat([known, points[number : number + 1]])


def test_doubt_decides_between_points_that_are_as_far() -> None:
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    order = [number for number, _ in farthest(points, torch.zeros(1, 2), torch.tensor([0.1, 0.9, 0.5]))]
    assert order == [1, 2, 0]


def test_a_copy_of_a_labelled_patient_comes_last() -> None:
    points = torch.tensor([[3.0, 0.0], [0.1, 0.0], [2.0, 2.0]])
    order = [number for number, _ in farthest(points, points[:1], torch.tensor([1.0, 0.0, 0.0]))]
    assert order[-1] == 0


def test_the_first_of_all_is_a_usual_one() -> None:
    points = torch.tensor([[9.0, 9.0], [0.1, 0.0], [-9.0, 9.0], [0.0, -18.0]])
    assert next(farthest(points, torch.zeros(0, 2), torch.ones(4)))[0] == 1


def test_doubt_is_one_where_nothing_is_known_and_zero_where_all_is() -> None:
    classes = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [0.6, 0.2, 0.2]])
    assert torch.allclose(uncertainty(classes, ONE), torch.tensor([1.0, 0.0, 0.6]))
    findings = torch.tensor([[0.5, 1.0], [1.0, 0.0], [0.1, 0.9]])
    assert torch.allclose(uncertainty(findings, SEVERAL), torch.tensor([1.0, 0.0, 0.2]))
