"""The meta-learners: what they ask, what they send, and what the coordinator makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from tests.cohorts import LossOnly
from tests.episodes import MODEL, episode, objective, one_image
from torch import Tensor

from wardround.algorithms import ALGORITHMS
from wardround.algorithms.meta_sgd import MetaSgd
from wardround.config import TASKS, AlgorithmChoice, OuterOptimizer
from wardround.errors import ConfigError
from wardround.meta import algorithm_named, optimizers
from wardround.models import Objective

CASES = [(name, tasks) for name, units in TASKS.items() for tasks in units]
OPTIMISATION = ("fedavg", "fedprox", "per-fedavg", "reptile", "fomaml", "maml")
CENTRE = torch.tensor([1.0, -2.0, 0.5])


class Bowl(LossOnly):
    """1/2 |theta - centre|^2, whose gradient is theta - centre; what follows theta is Meta-SGD's alpha."""

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (theta[:3] - x).square().sum(1)

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return {"alpha": theta[3:]}


def chosen(name: str, tasks: str, **settings: object) -> AlgorithmChoice:
    return AlgorithmChoice.model_validate({"name": name, "tasks": tasks, **settings})


def loss_of(choice: AlgorithmChoice) -> Objective:
    """Of a small model, with what the algorithm learns beside it."""
    return replace(objective(), model=algorithm_named(choice.name).extended(MODEL, choice))


def test_each_algorithm_that_an_agreement_can_name_is_there_under_its_name() -> None:
    assert set(ALGORITHMS.built_in) == set(TASKS)
    assert [algorithm_named(name).name for name in TASKS] == list(TASKS)


@pytest.mark.parametrize(("name", "tasks"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_round_asks_exactly_what_was_priced(name: str, tasks: str, steps: int) -> None:
    choice, cohort = chosen(name, tasks, local_steps=steps, local_learning_rate=0.1), episode()
    algorithm, loss = algorithm_named(name), loss_of(choice)
    delta = algorithm.inner(loss.model.initial(), cohort, loss, choice)
    assert [question for question, _ in cohort.asked] == [choice.question] * algorithm.answers_per_round(choice)
    assert delta.shape == (loss.model.layout.size,)
    assert torch.isfinite(delta).all()
    assert delta.norm() > 0


@pytest.mark.parametrize(("name", "tasks"), CASES)
def test_the_theta_that_arrived_is_not_changed(name: str, tasks: str) -> None:
    choice = chosen(name, tasks, local_steps=2)
    loss = loss_of(choice)
    theta = loss.model.initial()
    algorithm_named(name).inner(theta, episode(), loss, choice)
    assert torch.equal(theta, loss.model.initial())


@pytest.mark.parametrize(("name", "tasks"), CASES)
def test_at_home_neither_theta_nor_the_shots_are_changed(name: str, tasks: str) -> None:
    choice, shots = chosen(name, tasks), episode()
    algorithm, loss = algorithm_named(name), loss_of(choice)
    theta = loss.model.initial()
    fitted = algorithm.adapt(theta, shots.support, loss, choice)
    logits = algorithm.predict(fitted, shots.query.x, loss)
    assert logits.shape == (len(shots.query.y), loss.classes)
    assert torch.isfinite(logits).all()
    assert not any(tensor.requires_grad for tensor in fitted.values())
    assert torch.equal(theta, loss.model.initial())
    fresh = episode()
    for name in ("x", "y", "patient", "weight"):
        assert torch.equal(getattr(shots.support, name), getattr(fresh.support, name))
        assert torch.equal(getattr(shots.query, name), getattr(fresh.query, name))


def learned(choice: AlgorithmChoice, theta: Tensor) -> Tensor:
    """Theta after 200 rounds with one hospital, whose minimum is CENTRE."""
    algorithm = algorithm_named(choice.name)
    outer = OuterOptimizer(learning_rate=1.0, momentum=0.0)
    state = optimizers.initial_state(outer, theta)
    for _ in range(200):
        delta = algorithm.inner(theta, one_image(CENTRE), Bowl(), choice)
        state, theta = optimizers.step(outer, state, theta, algorithm.outer_gradient(delta))
    return theta


@pytest.mark.parametrize(("name", "tasks"), [(name, tasks) for name, tasks in CASES if name in OPTIMISATION])
def test_the_outer_step_moves_towards_the_hospital(name: str, tasks: str) -> None:
    theta = learned(chosen(name, tasks, local_steps=3, local_learning_rate=0.1), torch.zeros(3))
    torch.testing.assert_close(theta, CENTRE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tasks", TASKS["meta-sgd"])
def test_meta_sgd_learns_rates_with_which_its_start_reaches_the_hospital_in_one_step(tasks: str) -> None:
    """It learns both, so the start itself need not arrive."""
    choice = chosen("meta-sgd", tasks, local_learning_rate=0.1)
    theta = learned(choice, torch.cat([torch.zeros(3), torch.full((3,), 0.1)]))
    adapted = MetaSgd().fit(theta, one_image(CENTRE).support, Bowl(), choice)["theta"]
    assert (adapted[:3] - CENTRE).norm() < 0.01 * CENTRE.norm()
    assert (theta[3:] > 0.11).all()


def test_fomaml_asks_for_its_query_gradient_where_the_support_steps_ended() -> None:
    cohort, choice = one_image(CENTRE), AlgorithmChoice(name="fomaml", local_steps=4, local_learning_rate=0.5)
    algorithm_named("fomaml").inner(torch.zeros(3), cohort, Bowl(), choice)
    torch.testing.assert_close(cohort.asked[-1][1], CENTRE * (1 - 0.5**4))


def test_per_fedavg_asks_in_turn_where_it_is_and_where_a_step_would_lead() -> None:
    cohort, choice = one_image(CENTRE), AlgorithmChoice(name="per-fedavg", local_steps=2, local_learning_rate=0.5)
    algorithm_named("per-fedavg").inner(torch.zeros(3), cohort, Bowl(), choice)
    way = torch.tensor([0, 0.5, 0.25, 0.625])
    torch.testing.assert_close(torch.stack([theta for _, theta in cohort.asked]), way.unsqueeze(1) * CENTRE)


def test_an_unknown_algorithm_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(sorted(TASKS))):
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
