"""The meta-learners: what they ask, what they send, and what the coordinator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.config import AlgorithmChoice, OuterOptimizer
from wardround.errors import ConfigError
from wardround.meta import algorithm_named, optimizers
from wardround.questions import EpisodeLoss, Loss, Shots

NAMES = ("reptile", "fomaml", "maml", "fedavg")


class Bowl:
    """1/2 |theta - centre|^2, whose gradient is theta - centre."""

    per_patient = "vmap"

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.each(theta, x, y).mean()

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (theta - x).square().sum(1)


@dataclass
class OnePatient(SilentCohort):
    """A cohort that answers exactly, and remembers where it was asked."""

    centre: Tensor
    asked_at: list[Tensor] = field(default_factory=list)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        self.asked_at.append(theta)
        gradient: Tensor = torch.func.grad(loss)(theta, self.centre[None], torch.zeros(1, dtype=torch.int64))
        return gradient

    def episode_gradient(self, loss: EpisodeLoss, theta: Tensor) -> Tensor:
        self.asked_at.append(theta)
        shots = Shots(self.centre[None], torch.zeros(1, dtype=torch.int64), torch.zeros(1), torch.ones(1))
        gradient: Tensor = torch.func.grad(loss)(theta, shots, shots)
        return gradient


@pytest.fixture
def centre() -> Tensor:
    return torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_round_asks_exactly_what_was_priced(name: str, steps: int, centre: Tensor) -> None:
    algorithm, cohort = algorithm_named(name), OnePatient(centre)
    choice = AlgorithmChoice(local_steps=steps, local_learning_rate=0.1)
    delta = algorithm.inner(torch.zeros(3), cohort, Bowl(), choice)
    assert len(cohort.asked_at) == algorithm.answers_per_round(choice)
    assert delta.shape == (3,)


@pytest.mark.parametrize("name", NAMES)
def test_the_outer_step_moves_towards_the_hospital(name: str, centre: Tensor) -> None:
    algorithm = algorithm_named(name)
    choice = AlgorithmChoice(local_steps=3, local_learning_rate=0.1)
    outer = OuterOptimizer(learning_rate=1.0, momentum=0.0)
    theta = torch.zeros(3)
    state = optimizers.initial_state(outer, theta)
    for _ in range(200):
        delta = algorithm.inner(theta, OnePatient(centre), Bowl(), choice)
        state, theta = optimizers.step(outer, state, theta, algorithm.outer_gradient(delta))
    torch.testing.assert_close(theta, centre, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", NAMES)
def test_the_theta_that_arrived_is_not_changed(name: str, centre: Tensor) -> None:
    theta = torch.zeros(3)
    algorithm_named(name).inner(theta, OnePatient(centre), Bowl(), AlgorithmChoice(local_steps=2))
    assert torch.equal(theta, torch.zeros(3))


def test_fomaml_asks_for_its_query_gradient_where_the_support_steps_ended(centre: Tensor) -> None:
    cohort, choice = OnePatient(centre), AlgorithmChoice(name="fomaml", local_steps=4, local_learning_rate=0.5)
    algorithm_named("fomaml").inner(torch.zeros(3), cohort, Bowl(), choice)
    torch.testing.assert_close(cohort.asked_at[-1], centre * (1 - 0.5**4))


def test_an_unknown_algorithm_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="fedavg, fomaml, maml, reptile"):
        algorithm_named("maml++")


@pytest.fixture(params=["sgd", "adam", "yogi"])
def outer(request: pytest.FixtureRequest) -> Iterator[OuterOptimizer]:
    yield OuterOptimizer(optimizer=request.param, learning_rate=0.1)


def test_an_optimizer_goes_on_from_a_checkpoint_as_if_nothing_had_happened(outer: OuterOptimizer) -> None:
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    theta, state = torch.zeros(4), optimizers.initial_state(outer, torch.zeros(4))
    resumed_theta, resumed = theta, state
    for gradient in gradients:
        state, theta = optimizers.step(outer, state, theta, gradient)
        resumed = optimizers.OptimizerState.unpack(resumed.pack())
        resumed, resumed_theta = optimizers.step(outer, resumed, resumed_theta, gradient)
    assert torch.equal(theta, resumed_theta)
    assert not torch.equal(theta, torch.zeros(4))


def test_a_step_changes_neither_the_old_state_nor_the_old_theta(outer: OuterOptimizer) -> None:
    theta = torch.ones(3)
    state = optimizers.initial_state(outer, theta)
    before = {name: tensor.clone() for name, tensor in state.pack().items()}
    optimizers.step(outer, state, theta, torch.full((3,), 2.0))
    assert torch.equal(theta, torch.ones(3))
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.pack().items())


def test_a_checkpoint_without_the_optimizer_is_noticed() -> None:
    with pytest.raises(KeyError):
        optimizers.OptimizerState.unpack({"theta": torch.zeros(3)})
