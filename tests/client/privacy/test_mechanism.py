"""Noise and sampling: the promises P7 to P13."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from wardround_client.privacy import mechanism


def test_noise_is_normal_with_the_asked_standard_deviation() -> None:
    sample = mechanism.noised(torch.zeros(200_000), 3.0).double() / 3.0
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-9
    assert abs(sample.std().item() - 1) < 0.015
    assert abs(sample.mean().item()) < 0.02


def test_the_numbers_of_one_vector_do_not_depend_on_each_other() -> None:
    """Box-Muller gives two numbers of one pair: halves of the vector must be uncorrelated, squares as well."""
    size = 200_000
    a, b = torch.split(mechanism.standard_normal(size), size // 2)
    for left, right in ((a, b), (a.square(), b.square()), (a[1:], a[:-1])):
        assert abs(torch.corrcoef(torch.stack([left, right]))[0, 1].item()) < 0.02


def test_a_seed_neither_changes_nor_repeats_an_answer() -> None:
    torch.manual_seed(42)
    first = mechanism.noised(torch.zeros(64), 1.0)
    torch.manual_seed(42)
    assert not torch.equal(first, mechanism.noised(torch.zeros(64), 1.0))
    before = torch.random.get_rng_state()
    mechanism.noised(torch.zeros(64), 1.0)
    mechanism.poisson_sample(100, 0.3)
    assert torch.equal(before, torch.random.get_rng_state())


@given(std=st.floats(1e-6, 1e6), value=st.floats(-1e6, 1e6, width=32))
def test_what_leaves_lies_on_the_public_grid(std: float, value: float) -> None:
    grid = 2.0 ** (math.floor(math.log2(std)) - mechanism.GRID_BITS)
    on_grid = mechanism.noised(torch.full((50,), value), std).double() / grid
    assert torch.equal(on_grid, on_grid.round())


@given(std=st.floats(1e-3, 1e3), size=st.floats(-7, 7), other=st.sampled_from([0.0, 1e6, -1e30]))
def test_the_grid_does_not_follow_the_data(std: float, size: float, other: float) -> None:
    """Not coarser for a large sum or a large neighbour: of many numbers, some lie on the odd points of the grid."""
    grid = 2.0 ** (math.floor(math.log2(std)) - mechanism.GRID_BITS)
    total = torch.full((400,), size * std, dtype=torch.float64)
    total[0] = other
    small = mechanism.noised(total, std)[1:].double()
    small = small[small.abs() < 7.9 * 2.0 ** math.floor(math.log2(std))]  # there a float32 still has the whole grid
    points = small / grid
    assert torch.equal(points, points.round())
    assert len(points) < 60 or (points % 2 != 0).any()


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_no_noise_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="no noise"):
        mechanism.noised(torch.zeros(3), std)


@given(n=st.integers(0, 60), rate=st.floats(0.01, 1))
def test_a_poisson_sample_holds_each_patient_at_most_once(n: int, rate: float) -> None:
    sample = mechanism.poisson_sample(n, rate).tolist()
    assert sample == sorted(set(sample))
    assert all(0 <= patient < n for patient in sample)
    assert rate < 1 or len(sample) == n


def test_a_poisson_sample_meets_its_rate() -> None:
    n, rate = 200_000, 0.064
    size = len(mechanism.poisson_sample(n, rate))
    assert abs(size - n * rate) < 6 * math.sqrt(n * rate * (1 - rate))


@given(images=st.lists(st.integers(1, 9), max_size=20), limit=st.integers(1, 6))
def test_at_most_m_different_images_of_a_patient(images: list[int], limit: int) -> None:
    chosen = mechanism.choose_images(torch.tensor(images, dtype=torch.int64), limit)
    for count, row in zip(images, chosen.tolist(), strict=True):
        valid = [image for image in row if image >= 0]
        assert len(set(valid)) == len(valid) == min(count, limit)
        assert row[: len(valid)] == valid, "valid ones come first"
        assert all(image < count for image in valid)


@pytest.mark.parametrize("limit", [1, 2])
def test_each_image_is_chosen_equally_often(limit: int) -> None:
    chosen = mechanism.choose_images(torch.full((30_000,), 5), limit)
    shares = torch.bincount(chosen.flatten(), minlength=5) / (30_000 * limit)
    assert (shares - 0.2).abs().max() < 0.02


def test_half_of_the_cells_show_something_and_all_of_a_kind_are_drawn_equally_often() -> None:
    shown = torch.zeros(30_000, 8, dtype=torch.bool)
    shown[:, 2:5] = True  # two of these three, or three where the rest is drawn from all that are left
    chosen = mechanism.choose_cells(shown, 4)
    assert all(len(set(row)) == 4 for row in chosen[:100].tolist())
    shares = torch.bincount(chosen.flatten(), minlength=8) / len(chosen)
    # Two of the three, then two of the six that are left.
    expected = torch.where(shown[0], 2 / 3 + 1 / 3 * 2 / 6, 2 / 6)
    assert (shares - expected).abs().max() < 0.02
