"""The meta-learners: what they ask, what they send, and what the coordinator makes of it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests.chosen import UNITS, algorithm, fitting
from tests.cohorts import LossOnly
from tests.episodes import MODEL, episode, objective, one_image
from torch import Tensor

from wardround.algorithms import ALGORITHMS, Algorithm, Federated, Personal, Pooled
from wardround.algorithms.meta_sgd import MetaSgd
from wardround.errors import ConfigError
from wardround.models import Objective
from wardround.optimizers import OPTIMIZERS
from wardround.optimizers.sgd import Sgd
from wardround.rules import RULES

CASES = [(name, tasks) for name, units in UNITS.items() for tasks in units]
OPTIMISATION = ("fedavg", "fedprox", "per-fedavg", "reptile", "fomaml", "maml")
CENTRE = torch.tensor([1.0, -2.0, 0.5])


class Bowl(LossOnly):
    """1/2 |theta - centre|^2, whose gradient is theta - centre; what follows theta is Meta-SGD's alpha."""

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (theta[:3] - x).square().sum(1)

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return {"alpha": theta[3:]}


def chosen(name: str, tasks: str, **settings: object) -> Algorithm:
    return fitting(name, tasks=tasks, **settings)


def loss_of(choice: Algorithm) -> Objective:
    """Of a small model, with what the algorithm learns beside it."""
    return replace(objective(), model=choice.extended(MODEL))


def test_each_algorithm_that_an_agreement_can_name_is_there_under_its_name() -> None:
    for kind in (ALGORITHMS, RULES, OPTIMIZERS):
        assert all(kind[name]().name == name for name in kind.built_in)  # type: ignore[call-arg]


@pytest.mark.parametrize(("name", "tasks"), CASES)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_round_asks_exactly_what_was_priced(name: str, tasks: str, steps: int) -> None:
    choice, cohort = chosen(name, tasks, local_steps=steps, local_learning_rate=0.1), episode()
    loss = loss_of(choice)
    delta = choice.inner(loss.model.initial(), cohort, loss)
    assert [question for question, _ in cohort.asked] == [choice.question] * choice.answers_per_round
    assert delta.shape == (loss.model.layout.size,)
    assert torch.isfinite(delta).all()
    assert delta.norm() > 0


@pytest.mark.parametrize(("name", "tasks"), CASES)
def test_the_theta_that_arrived_is_not_changed(name: str, tasks: str) -> None:
    choice = chosen(name, tasks, local_steps=2)
    loss = loss_of(choice)
    theta = loss.model.initial()
    choice.inner(theta, episode(), loss)
    assert torch.equal(theta, loss.model.initial())


@pytest.mark.parametrize(("name", "tasks"), CASES)
def test_at_home_neither_theta_nor_the_shots_are_changed(name: str, tasks: str) -> None:
    method, shots = chosen(name, tasks), episode()
    choice: Personal = method
    loss = loss_of(method)
    theta = loss.model.initial()
    fitted = choice.adapt(theta, shots.support, loss)
    logits = choice.predict(fitted, shots.query.x, loss)
    assert logits.shape == (len(shots.query.y), loss.classes)
    assert torch.isfinite(logits).all()
    assert not any(tensor.requires_grad for tensor in fitted.values())
    assert torch.equal(theta, loss.model.initial())
    fresh = episode()
    for name in ("x", "y", "patient", "weight"):
        assert torch.equal(getattr(shots.support, name), getattr(fresh.support, name))
        assert torch.equal(getattr(shots.query, name), getattr(fresh.query, name))


def learned(choice: Federated, theta: Tensor) -> Tensor:
    """Theta after 200 rounds with one hospital, whose minimum is CENTRE."""
    optimizer, loss = Sgd(learning_rate=1.0, momentum=0.0), Bowl()
    state = choice.start(theta, loss, optimizer)
    for _ in range(200):
        pooled = Pooled(choice.inner(theta, one_image(CENTRE), loss))
        state, theta = choice.outer(state, theta, pooled, loss, optimizer)
    return theta


@pytest.mark.parametrize(
    ("name", "tasks"), [case for case in CASES if case[0] in OPTIMISATION and case[1] != "stand-ins"]
)
def test_the_outer_step_moves_towards_the_hospital(name: str, tasks: str) -> None:
    theta = learned(chosen(name, tasks, local_steps=3, local_learning_rate=0.1), torch.zeros(3))
    torch.testing.assert_close(theta, CENTRE, atol=1e-4, rtol=0)


@pytest.mark.parametrize("tasks", UNITS["meta-sgd"])
def test_meta_sgd_learns_rates_with_which_its_start_reaches_the_hospital_in_one_step(tasks: str) -> None:
    """It learns both, so the start itself need not arrive."""
    choice = chosen("meta-sgd", tasks, local_learning_rate=0.1)
    theta = learned(choice, torch.cat([torch.zeros(3), torch.full((3,), 0.1)]))
    adapted = MetaSgd(local_learning_rate=0.1).fit(theta, one_image(CENTRE).support, Bowl())["theta"]
    assert (adapted[:3] - CENTRE).norm() < 0.01 * CENTRE.norm()
    assert (theta[3:] > 0.11).all()


def test_fomaml_asks_for_its_query_gradient_where_the_support_steps_ended() -> None:
    cohort, choice = one_image(CENTRE), algorithm("fomaml", local_steps=4, local_learning_rate=0.5)
    choice.inner(torch.zeros(3), cohort, Bowl())
    torch.testing.assert_close(cohort.asked[-1][1], CENTRE * (1 - 0.5**4))


def test_per_fedavg_asks_in_turn_where_it_is_and_where_a_step_would_lead() -> None:
    cohort, choice = one_image(CENTRE), algorithm("per-fedavg", local_steps=2, local_learning_rate=0.5)
    choice.inner(torch.zeros(3), cohort, Bowl())
    way = torch.tensor([0, 0.5, 0.25, 0.625])
    torch.testing.assert_close(torch.stack([theta for _, theta in cohort.asked]), way.unsqueeze(1) * CENTRE)


def test_an_unknown_algorithm_is_named_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=", ".join(UNITS)):
        ALGORITHMS["maml++"]


@pytest.mark.parametrize("name", OPTIMIZERS.built_in)
def test_an_optimizer_changes_only_what_is_its_own_in_the_state(name: str) -> None:
    optimizer = OPTIMIZERS[name].model_validate({"name": name, "learning_rate": 0.1})
    kept = torch.ones(2)
    gradients = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    theta, state = torch.zeros(4), {**optimizer.start(torch.zeros(4)), "algorithm.own": kept}
    for gradient in gradients:
        before = {name: tensor.clone() for name, tensor in state.items()}, theta.clone()
        after, moved = optimizer.step(state, theta, gradient)
        assert all(torch.equal(tensor, before[0][name]) for name, tensor in state.items())
        assert torch.equal(theta, before[1])
        state, theta = after, moved
    assert state["algorithm.own"] is kept
    assert not torch.equal(theta, torch.zeros(4))
