"""Bootstrap over patients: strata keep their size, the spread is the textbook's, and a seed repeats it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from wardround.labels.several import rarest
from wardround_client.personal.bootstrap import Estimate, estimates


def test_every_resample_has_as_many_patients_of_each_stratum() -> None:
    stratum = torch.tensor([2, 0, 2, 0, 0, 4])
    seen: list[Tensor] = []

    def sizes(weights: Tensor) -> Tensor:
        seen.append(weights)
        return torch.stack([weights[stratum == each].sum(0) for each in (0, 2, 4)], dim=1)

    three, two, one = estimates(sizes, stratum, resamples=100, seed=0)
    assert (three, two, one) == (Estimate(3, 3, 3), Estimate(2, 2, 2), Estimate(1, 1, 1))
    weights = torch.cat(seen, dim=1)
    assert weights.shape == (6, 101)
    assert weights[:5].max() > 1 > weights[:5].min()


def test_the_interval_of_a_mean_is_the_one_of_the_textbook() -> None:
    values = torch.randn(400, dtype=torch.float64)
    (mean,) = estimates(lambda w: (values @ w / w.sum(0)).unsqueeze(1), torch.zeros(400).long(), resamples=2000, seed=1)
    assert mean is not None
    half_width = 1.96 * values.std() / 400**0.5
    torch.testing.assert_close(
        torch.tensor([mean.value, mean.low, mean.high]),
        torch.stack([values.mean(), values.mean() - half_width, values.mean() + half_width]).float(),
        atol=0.1 * float(half_width),
        rtol=0,
    )


def test_a_resample_without_the_statistic_is_left_out() -> None:
    def first_patient(weights: Tensor) -> Tensor:
        here = weights[0] / weights[0]
        return torch.stack([here, torch.full_like(here, torch.nan)], dim=1)

    assert estimates(first_patient, torch.zeros(3).long(), resamples=50, seed=0) == [Estimate(1, 1, 1), None]


def test_an_interval_holds_its_value_though_every_resample_is_greater() -> None:
    (most,) = estimates(lambda w: w.max(0).values.unsqueeze(1), torch.zeros(50).long(), resamples=50, seed=0)
    assert most is not None
    assert most.value == most.low == 1 < 3 <= most.high


def test_a_seed_repeats_the_interval() -> None:
    values = torch.rand(30, 1, dtype=torch.float64)

    def interval(seed: int) -> list[Estimate | None]:
        return estimates(lambda weights: weights.T @ values, torch.zeros(30).long(), resamples=20, seed=seed)

    assert interval(3) == interval(3)
    assert interval(3) != interval(4)


def test_a_patient_belongs_to_the_rarest_class_that_the_patient_shows() -> None:
    shown = torch.tensor([[1, 1, 0], [1, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]).bool()
    assert rarest(shown).tolist() == [1, 0, 0, 2, 3]


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=20))
def test_a_stratum_is_a_class_of_the_patient_and_the_rarest_class_is_a_stratum(rows: list[list[bool]]) -> None:
    shown = torch.tensor(rows)
    stratum = rarest(shown)
    padded = torch.cat([shown, ~shown.any(1, keepdim=True)], dim=1)
    assert padded.gather(1, stratum.unsqueeze(1)).all()
    counts = shown.sum(0)
    if shown.any():
        least = int(torch.where(counts > 0, counts, 99).argmin())
        assert torch.equal(stratum == least, shown[:, least])
