"""What is made of noised statistics: never worse than nothing, whatever the noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from wardround.labels import LEAST_PREVALENCE
from wardround.labels.one import kind as one_class
from wardround.models.scaling import (
    GREATEST_SHIFT,
    no_scaling,
    scaling_of,
    standardised,
)


def test_large_hospitals_without_noise_give_their_common_mean_and_deviation() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.tensor([0.5, -1.0]) + torch.tensor([2.0, 0.5]) * torch.randn(40_000, 2, generator=generator)
    shift, scale = scaling_of(z.sum(0), z.square().sum(0), torch.tensor(40_000.0))
    torch.testing.assert_close(shift, z.mean(0), atol=0.01, rtol=0)
    torch.testing.assert_close(scale, z.std(0), atol=0.02, rtol=0)


def test_without_patients_the_public_constants_remain() -> None:
    shift, scale = scaling_of(torch.zeros(2), torch.zeros(2), torch.zeros(()))
    assert (shift.tolist(), scale.tolist()) == ([0, 0], [1, 1])
    assert [part.tolist() for part in no_scaling(2)] == [[0, 0], [1, 1]]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=7, max_size=7))
def test_any_noise_gives_a_usable_scaling(numbers: list[float]) -> None:
    counts, z, zz = torch.split(torch.tensor(numbers), [3, 2, 2])
    shift, scale = scaling_of(z, zz, counts.sum())
    assert torch.isfinite(shift).all()
    assert (shift.abs() <= GREATEST_SHIFT).all()
    assert (scale > 0.2).all()
    assert (scale < 5).all()


def test_standardised_rows_have_a_norm_of_about_one() -> None:
    z = 3 + 2 * torch.randn(500, 40, generator=torch.Generator().manual_seed(0))
    rows = standardised(z, torch.full((40,), 3.0), torch.full((40,), 2.0))
    assert rows.norm(dim=1).mean().item() == pytest.approx(1, abs=0.05)


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=9))
def test_log_prior_is_a_distribution_with_a_floor(counts: list[float]) -> None:
    prior = one_class.prior(torch.tensor(counts), 100).exp()
    assert prior.sum().item() == pytest.approx(1, abs=1e-5)
    assert prior.min().item() >= LEAST_PREVALENCE / (1 + LEAST_PREVALENCE * len(counts)) - 1e-6


def test_log_prior_of_exact_counts_is_their_share() -> None:
    torch.testing.assert_close(
        one_class.prior(torch.tensor([60.0, 30.0, 10.0]), 100).exp(), torch.tensor([0.6, 0.3, 0.1])
    )
    assert one_class.prior(torch.tensor([-3.0, -1.0]), 100).exp().tolist() == [0.5, 0.5]
