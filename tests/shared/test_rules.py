"""Rules that make one delta of many: against their definitions, by brute force, and against liars in any place."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from tests.chosen import outer
from torch import Tensor

from wardround.rules import RULES as KIND
from wardround.rules import Rule, _matrix
from wardround.rules import geometric_median as geometric_median_file
from wardround.rules._matrix import capped, median, weighted_mean
from wardround.rules.centred_clipping import CentredClipping
from wardround.rules.geometric_median import GeometricMedian
from wardround.rules.trimmed_mean import TrimmedMean

RULES = KIND.built_in
ROBUST = [rule for rule in RULES if rule != "mean"]
LIES: dict[str, Callable[[Tensor], Tensor]] = {
    "far": lambda honest: torch.full((honest.shape[1],), 1e4),
    "opposite": lambda honest: -100 * honest.mean(0),
    "huge": lambda honest: torch.full((honest.shape[1],), -1e30),
    "one number": lambda honest: honest.mean(0).index_fill(0, torch.tensor([0]), 1e6),
    "another's": lambda honest: honest[0] * 50,
    "zero": lambda honest: torch.zeros(honest.shape[1]),
}


def made(hospitals: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(hospitals, size, generator=generator), torch.rand(hospitals, generator=generator) + 0.1


def of(rule: str, liars: float = 0.25) -> Rule:
    return outer(rule=rule, **({} if rule == "mean" else {"liars": liars})).rule


def trimmed_mean(deltas: Tensor, weights: Tensor, *, liars: int) -> Tensor:
    return TrimmedMean().robust(deltas, weights, liars)


def geometric_median(deltas: Tensor, weights: Tensor) -> Tensor:
    return GeometricMedian().robust(deltas, weights, 1)


def centred_clipping(deltas: Tensor, weights: Tensor) -> Tensor:
    return CentredClipping().robust(deltas, weights, 1)


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 999))
def test_the_weighted_mean_against_its_definition(hospitals: int, size: int, seed: int) -> None:
    deltas, weights = made(hospitals, size, seed)
    expected = sum(w * d for w, d in zip(weights, deltas, strict=True)) / weights.sum()
    torch.testing.assert_close(weighted_mean(deltas, weights), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weighted_mean(deltas, weights * 7), expected, rtol=1e-4, atol=1e-5)


def test_by_hand() -> None:
    deltas = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    even = torch.ones(5)
    assert median(deltas, even).item() == 2.0
    assert median(deltas[:4], even[:4]).item() == 1.5
    assert trimmed_mean(deltas, even, liars=1).item() == 2.0
    assert geometric_median(deltas, even).item() == pytest.approx(2.0, abs=1e-4)
    # From 2, distances are 2, 1, 0, 1, 98 and their median 1: -1 - 1 + 0 + 1 + 1 is no step at all.
    assert centred_clipping(deltas, even).item() == 2.0


def test_by_hand_with_weights() -> None:
    deltas, weights = torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([3.0, 1.0, 1.0])
    assert median(deltas, weights).item() == 0.0
    assert median(deltas, torch.tensor([2.0, 1.0, 1.0])).item() == 0.5
    # A weight of 3 is left out at either end: of 0, 0, 0, 1, 2 nothing would be left, so one liar is of weight 1.
    assert trimmed_mean(deltas, torch.tensor([1.0, 2.0, 2.0]), liars=1).item() == pytest.approx(1.0)


@given(st.integers(3, 9), st.integers(0, 999))
def test_the_median_is_torchs_for_equal_weights(hospitals: int, seed: int) -> None:
    deltas, _ = made(hospitals, 7, seed)
    np.testing.assert_allclose(median(deltas, torch.ones(hospitals)), np.median(deltas, axis=0), rtol=1e-6)


@given(st.lists(st.integers(1, 5), min_size=3, max_size=7), st.integers(0, 999))
def test_a_weight_of_k_is_k_hospitals(weights: list[int], seed: int) -> None:
    deltas, _ = made(len(weights), 5, seed)
    repeated = deltas.repeat_interleave(torch.tensor(weights), dim=0)
    one, many = torch.tensor(weights, dtype=torch.float32), torch.ones(len(repeated))
    for rule in (median, geometric_median, centred_clipping, weighted_mean):
        torch.testing.assert_close(rule(deltas, one), rule(repeated, many), rtol=1e-3, atol=1e-4)


@given(st.integers(3, 9), st.integers(1, 4), st.integers(0, 999))
def test_the_trimmed_mean_against_its_definition(hospitals: int, liars: int, seed: int) -> None:
    liars = min(liars, (hospitals - 1) // 2)
    deltas, _ = made(hospitals, 6, seed)
    expected = deltas.sort(dim=0).values[liars : hospitals - liars].mean(0)
    torch.testing.assert_close(trimmed_mean(deltas, torch.ones(hospitals), liars=liars), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_the_geometric_median_by_brute_force(seed: int) -> None:
    deltas, weights = made(6, 3, seed)
    points, w = deltas.double().numpy(), weights.double().numpy()

    def cost(x: np.ndarray) -> float:
        return float(w @ np.linalg.norm(points - x, axis=1))

    best = minimize(cost, points.mean(0), method="Nelder-Mead", options={"xatol": 1e-8, "fatol": 1e-12}).fun
    assert cost(geometric_median(deltas, weights).double().numpy()) <= best * (1 + 1e-6)


def test_the_geometric_median_where_one_hospital_is_it() -> None:
    deltas = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    torch.testing.assert_close(geometric_median(deltas, torch.ones(5)), torch.zeros(2), atol=1e-4, rtol=0)
    heavy = torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0])
    torch.testing.assert_close(geometric_median(deltas, heavy), deltas[1], atol=1e-3, rtol=0)


def test_centred_clipping_step_by_step() -> None:
    deltas, weights = made(7, 4, 3)
    centre, share = median(deltas, weights).double(), (weights / weights.sum()).double()
    distances = (deltas - centre).norm(dim=1)
    radius = median(distances.unsqueeze(1).float(), weights).double()
    for _ in range(3):
        apart = deltas.double() - centre
        factors = (radius / apart.norm(dim=1)).clamp_max(1)
        centre = centre + (share * factors) @ apart
    torch.testing.assert_close(centred_clipping(deltas, weights), centre.float(), rtol=1e-4, atol=1e-5)


@given(rule=st.sampled_from(RULES), seed=st.integers(0, 999), hospitals=st.integers(1, 9))
def test_the_order_of_the_hospitals_does_not_matter(rule: str, seed: int, hospitals: int) -> None:
    deltas, weights = made(hospitals, 5, seed)
    order = torch.randperm(hospitals, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(of(rule)(deltas[order], weights[order]), of(rule)(deltas, weights), rtol=1e-4, atol=1e-5)


@given(
    rule=st.sampled_from(RULES),
    seed=st.integers(0, 999),
    hospitals=st.integers(1, 9),
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
)
def test_units_and_origins_do_not_matter(rule: str, seed: int, hospitals: int, scale: float, shift: float) -> None:
    deltas, weights = made(hospitals, 5, seed)
    moved = of(rule)(scale * deltas + shift, weights)
    torch.testing.assert_close(moved, scale * of(rule)(deltas, weights) + shift, rtol=1e-3, atol=1e-3 * (1 + scale))


@given(rule=st.sampled_from(RULES), seed=st.integers(0, 999), hospitals=st.integers(1, 9))
def test_hospitals_that_agree_are_agreed_with(rule: str, seed: int, hospitals: int) -> None:
    deltas, weights = made(hospitals, 5, seed)
    torch.testing.assert_close(of(rule)(deltas[:1].expand(hospitals, -1), weights), deltas[0], rtol=1e-5, atol=1e-5)
    assert not of(rule)(torch.zeros(hospitals, 5), weights).any()


@given(
    rule=st.sampled_from(ROBUST),
    lie=st.sampled_from(sorted(LIES)),
    seed=st.integers(0, 999),
    hospitals=st.integers(3, 12),
    heavy=st.sampled_from([1.0, 1e3, 1e9]),
)
def test_liars_whoever_they_are_do_not_lead_past_the_honest(
    rule: str, lie: str, seed: int, hospitals: int, heavy: float
) -> None:
    deltas, weights = made(hospitals, 5, seed)
    liars = outer(rule=rule).rule.tolerated(hospitals)
    who = torch.randperm(hospitals, generator=torch.Generator().manual_seed(seed))[:liars]
    honest = deltas[[i for i in range(hospitals) if i not in who.tolist()]]
    deltas[who], weights[who] = LIES[lie](honest), weights[who] * heavy
    result = of(rule)(deltas, weights)
    if rule in ("median", "trimmed-mean"):
        assert (result >= honest.amin(0) - 1e-4).all()
        assert (result <= honest.amax(0) + 1e-4).all()
    # Liars weigh capped shares; for a share a of them, distances stay within 2 (1 - a) / (1 - 2 a) honest radii
    # (Lopuhaa and Rousseeuw 1991 for the geometric median; the others are well below).
    share = (liars / hospitals + 0.5) / 2
    radius = float((honest - honest.mean(0)).norm(dim=1).max())
    assert float((result - honest.mean(0)).norm()) <= 2 * (1 - share) / (1 - 2 * share) * radius + 1e-3


def test_the_mean_has_no_such_bound() -> None:
    deltas = torch.ones(8, 3)
    deltas[0] = -1e6
    assert float(of("mean")(deltas, torch.ones(8))[0]) < -1e5


@given(st.lists(st.floats(1, 1e9), min_size=3, max_size=20), st.floats(0.01, 0.49))
def test_capped_weights_leave_any_liars_less_than_half(weights: list[float], share: float) -> None:
    liars = of("median", share).tolerated(len(weights))
    assert 1 <= liars < len(weights) / 2
    cut = capped(torch.tensor(weights), liars)
    allowed = (liars / len(weights) + 0.5) / 2
    assert float(cut.sort(descending=True).values[:liars].sum() / cut.sum()) <= allowed + 1e-9 < 0.5
    assert (cut <= torch.tensor(weights).double()).all()


def test_weights_that_are_alike_are_left_alone() -> None:
    weights = torch.tensor([60.0, 90.0, 130.0, 150.0, 180.0, 200.0, 210.0, 220.0])
    assert torch.equal(capped(weights, 2), weights.double())


@pytest.mark.parametrize("rule", ROBUST)
@pytest.mark.parametrize("hospitals", [1, 2])
def test_of_two_hospitals_every_rule_is_the_mean(rule: str, hospitals: int) -> None:
    deltas, weights = made(hospitals, 5, 0)
    torch.testing.assert_close(of(rule)(deltas, weights), weighted_mean(deltas, weights))
    assert outer(rule=rule).rule.tolerated(hospitals) == 0


@pytest.mark.parametrize("rule", RULES)
def test_blocks_are_no_seams(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    deltas, weights = made(6, 50, 1)
    whole = of(rule)(deltas, weights)
    for module in (_matrix, geometric_median_file):
        monkeypatch.setattr(module, "BLOCK", 7)
    torch.testing.assert_close(of(rule)(deltas, weights), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_every_corner_gives_finite_numbers(rule: str) -> None:
    corners = [0.0, 1.0, -1.0, 3e38, 1e-45]
    for values in itertools.combinations_with_replacement(corners, 3):
        result = of(rule)(torch.tensor(values).unsqueeze(1).expand(3, 4).contiguous(), torch.tensor([1.0, 1e9, 1e-3]))
        assert result.isfinite().all(), values
