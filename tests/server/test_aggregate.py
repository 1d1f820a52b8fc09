from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.server.conftest import TASK

from wardround.config import AlgorithmChoice, Federation, ModelChoice, Privacy, Rounds
from wardround.schedule import Schedule
from wardround_server.aggregate import greatest_norm, weighted_mean


@given(st.integers(1, 8), st.integers(1, 20), st.integers(0, 999))
def test_the_weighted_mean_against_its_definition(hospitals: int, size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    deltas = torch.randn(hospitals, size, generator=generator)
    weights = torch.rand(hospitals, generator=generator) + 0.1
    expected = sum(w * d for w, d in zip(weights, deltas, strict=True)) / weights.sum()
    torch.testing.assert_close(weighted_mean(deltas, weights), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weighted_mean(deltas, weights * 7), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("declared", [50, 500, 10_000])
@pytest.mark.parametrize("epsilon", [0.5, 3.0, 8.0])
@pytest.mark.parametrize("per_step", [0, 32])
@pytest.mark.parametrize("name, steps", [("reptile", 1), ("reptile", 5), ("fomaml", 3), ("maml", 3)])
def test_no_honest_delta_reaches_the_bound(declared: int, epsilon: float, per_step: int, name: str, steps: int) -> None:
    federation = Federation(
        name="small",
        task=TASK,
        model=ModelChoice(family="logistic"),
        algorithm=AlgorithmChoice.model_validate({"name": name, "local_steps": steps}),
        privacy=Privacy(epsilon=epsilon, patients_per_step=per_step),
        rounds=Rounds(rounds=100),
    )
    plan, size = Schedule.of(federation)[1], 500
    bound = greatest_norm(federation, plan, size=size, declared_patients=declared)
    # More noise than any calibration for the whole run asks for (the plain Gaussian mechanism's sufficient condition,
    # Dwork and Roth 2014, theorem A.1, over all steps), and every sampled patient at the clip norm, all aligned.
    sigma = (2 * 100 * (steps + 1) * 20.0) ** 0.5 / epsilon
    expected = min(per_step or declared, declared)
    noise = sigma * torch.randn(size, generator=torch.Generator().manual_seed(0)).norm()
    honest = (steps + 1) * (expected + float(noise)) / expected
    if name == "maml":
        honest = 1 + 2 * float(noise) / federation.privacy.episodes(declared)
    assert honest < bound
    assert bound < 1e6 * honest, "and the bound still catches what is absurd"
