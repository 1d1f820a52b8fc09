"""The learned optimizer: where it starts it is MAML's inner loop and FOMAML's gradient; its weights are learned."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from tests.cohorts import LossOnly
from torch import Tensor

from wardround.algorithms.learned_optimizer import LearnedOptimizer, gains, preprocessed
from wardround.algorithms.maml import Maml
from wardround.meta.local import descend_on, differentiable_slope
from wardround.models import Objective
from wardround.models.extended import Extended
from wardround.models.tabular import Tabular
from wardround.questions import Shots
from wardround.vector import Layout

CLASSES, COLUMNS = 3, 4
MODEL = Tabular.mlp(COLUMNS, CLASSES, 5)
P = MODEL.layout.size
METHOD = LearnedOptimizer()


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def choice(steps: int) -> LearnedOptimizer:
    return LearnedOptimizer(local_steps=steps, local_learning_rate=0.7)


def extended() -> Extended:
    model = METHOD.extended(MODEL)
    assert isinstance(model, Extended)
    return model


def objective(*, plain: bool = False) -> Objective:
    shift, scale = torch.zeros(COLUMNS).double(), torch.ones(COLUMNS).double()
    return Objective(MODEL if plain else extended(), shift, scale, torch.tensor([0.2, 0.3, 0.5]).double().log())


def shots(seed: int, patients: int = 6) -> Shots:
    y = torch.arange(2 * patients) % CLASSES
    weight = torch.full((2 * patients,), 0.5).double()
    return Shots(3 * random(2 * patients, COLUMNS, seed=seed), y, torch.arange(2 * patients) // 2, weight)


SUPPORT, QUERY = shots(1), shots(2)


# --- the start


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_at_the_start_it_is_the_inner_loop_of_maml(steps: int) -> None:
    """theta_k and the episode's loss; theta is anywhere, phi where it starts."""
    loss, plain = objective(), objective(plain=True)
    theta = loss.model.initial().double()
    theta[:P] += 0.3 * random(P)
    adapted = choice(steps).fit(theta, SUPPORT, loss)["theta"]
    expected = descend_on(theta[:P], SUPPORT, plain, steps=steps, learning_rate=0.7)
    torch.testing.assert_close(adapted[:P], expected)
    assert torch.equal(adapted[P:], theta[P:])
    torch.testing.assert_close(
        choice(steps).episode_loss(theta, SUPPORT, QUERY, loss),
        Maml(local_steps=steps, local_learning_rate=0.7).episode_loss(theta[:P], SUPPORT, QUERY, plain),
    )


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_at_the_start_the_model_s_part_of_its_gradient_is_that_of_first_order_maml(steps: int) -> None:
    """Nothing but theta_k itself depends on theta, so it is the query's gradient at theta_k, without MAML's second
    derivatives; phi's part is there beside it."""
    loss, plain = objective(), objective(plain=True)
    theta = loss.model.initial().double()
    gradient = choice(steps).gradient_of(loss)(theta, SUPPORT, QUERY)
    theta_k = descend_on(theta[:P], SUPPORT, plain, steps=steps, learning_rate=0.7)
    torch.testing.assert_close(gradient[:P], differentiable_slope(theta_k, QUERY, plain))
    second_order = Maml(local_steps=steps, local_learning_rate=0.7).gradient_of(plain)(theta[:P], SUPPORT, QUERY)
    assert (gradient[:P] - second_order).norm() > 1e-3 * second_order.norm()
    assert loss.extras(gradient)["gains.weight"].norm() > 1e-4


# --- the steps


def test_the_inputs_are_the_paper_s() -> None:
    """Appendix A, p = 10: (log|g| / p, sign g), and (-1, e^p g) where |g| is below e^-p."""
    g = torch.tensor([1.0, -math.exp(-5), math.exp(-10), -math.exp(-11), 0.0, math.exp(3)]).double()
    size, sign = preprocessed(g)
    torch.testing.assert_close(size, torch.tensor([0, -0.5, -1, -1, -1, 0.3]).double())
    torch.testing.assert_close(sign, torch.tensor([1, -1, 1, -math.exp(-1), 0, 1]).double(), rtol=1e-6, atol=1e-6)


def test_with_a_constant_gain_of_the_momentum_it_is_torch_sgd_with_momentum() -> None:
    loss = objective()
    theta = loss.model.initial().double()
    theta[-1] = 0.9  # the last bias: b
    adapted = choice(6).fit(theta, SUPPORT, loss)["theta"]
    parameter = torch.nn.Parameter(theta[:P].clone())
    theirs = torch.optim.SGD([parameter], lr=0.7, momentum=0.9)
    for _ in range(6):
        parameter.grad = differentiable_slope(parameter.detach(), SUPPORT, objective(plain=True))
        theirs.step()
    torch.testing.assert_close(adapted[:P], parameter.detach())


def test_a_coordinate_without_a_gradient_does_not_move_whatever_the_weights_are() -> None:
    """What noise in phi cannot do."""
    loss = objective()
    theta = loss.model.initial().double()
    theta[P:] += 3 * random(len(theta) - P)
    one_class = replace(SUPPORT, x=torch.zeros_like(SUPPORT.x))  # no input, so the first layer's weights have none
    adapted = choice(4).fit(theta, one_class, loss)["theta"]
    first = COLUMNS * 5
    assert torch.equal(adapted[:first], theta[:first])
    assert not torch.equal(adapted[first:P], theta[first:P])


def test_gains_are_coordinatewise_and_tell_time() -> None:
    model = extended()
    phi = model.beside.unpack(model.start + 0.5 * random(len(model.start)).float())
    gradient, m = random(9, seed=1).float(), random(9, seed=2).float()
    order = torch.randperm(9)
    for whole, part in zip(gains(phi, gradient, m, 0.5), gains(phi, gradient[order], m[order], 0.5), strict=True):
        torch.testing.assert_close(whole[order], part)
    assert not torch.equal(gains(phi, gradient, m, 0.5)[0], gains(phi, gradient, m, 0.0)[0])


def test_at_home_every_class_weighs_the_same_and_nothing_keeps_a_graph() -> None:
    """Ten patients of one class and one of the other two adapt as one of each."""
    loss = replace(objective(), log_prior=None)
    theta = (loss.model.initial().double() + 0.1 * random(len(loss.model.initial()))).requires_grad_()
    x, ones = random(3, COLUMNS), torch.ones(12).double()
    rows = torch.tensor([0] * 10 + [1, 2])
    many = choice(3).adapt(theta, Shots(x[rows], rows, torch.arange(12), ones), loss)["theta"]
    one = choice(3).adapt(theta, Shots(x, torch.arange(3), torch.arange(3), ones[:3]), loss)["theta"]
    torch.testing.assert_close(many, one)
    assert not many.requires_grad


# --- learning


def slopes(function: object, at: Tensor, coordinates: range) -> Tensor:
    assert callable(function)
    h = 1e-6
    steps = [h * torch.eye(len(at), dtype=torch.float64)[i] for i in coordinates]
    return torch.stack([(function(at + step) - function(at - step)) / (2 * h) for step in steps])


def test_the_gradient_of_the_network_is_the_slope_of_the_episode_s_loss() -> None:
    """Central differences, one step: its gradient does not depend on phi, so nothing is left out."""
    loss = objective()
    theta = loss.model.initial().double()
    theta = theta + 0.5 * random(len(theta))
    exact = choice(1).gradient_of(loss)(theta, SUPPORT, QUERY)
    found = slopes(lambda at: choice(1).episode_loss(at, SUPPORT, QUERY, loss), theta, range(P, len(theta)))
    torch.testing.assert_close(exact[P:], found, rtol=1e-5, atol=1e-8)
    assert found.norm() > 1e-3


@dataclass
class Sloped(LossOnly):
    """Linear in theta where the first number of x is 0, so that gradients never change; quadratic where it is 1."""

    beside: Layout

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return self.logits(theta, x)[:, 0]

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        return logits[:, 0]

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        model = theta[: x.shape[1] - 1]
        return (x[:, 1:] @ model + x[:, 0] * model.square().sum()).unsqueeze(1)

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        return self.beside.unpack(theta[-self.beside.size :])


def test_the_gradient_goes_through_all_steps() -> None:
    """Central differences of theta and phi through five steps, where gradients depend on neither, as is assumed."""
    model = extended()
    theta = torch.cat([random(4), model.start.double() + 0.5 * random(len(model.start), seed=3)])
    flag = torch.tensor([[0.0], [1.0]]).double()
    x = torch.cat([flag, random(2, 4, seed=5)], 1)
    support, query = (Shots(row, torch.zeros(1), torch.zeros(1), torch.ones(1).double()) for row in (x[:1], x[1:]))
    loss = Sloped(model.beside)
    exact = choice(5).gradient_of(loss)(theta, support, query)
    found = slopes(lambda at: choice(5).episode_loss(at, support, query, loss), theta, range(len(theta)))
    torch.testing.assert_close(exact, found, rtol=1e-5, atol=1e-7)


@dataclass
class Bowls(Sloped):
    """1/2 sum_i h_i (theta_i - c_i)^2, where x is (h, c): a quadratic of another shape in every episode."""

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        h, c = x.chunk(2, dim=1)
        return (0.5 * h * (theta[: h.shape[1]] - c).square()).sum(1, keepdim=True)


def bowl(size: int, generator: torch.Generator) -> Shots:
    h = 10 ** (-1.5 * torch.rand(1, size, generator=generator))
    x = torch.cat([h, torch.randn(1, size, generator=generator)], 1)
    return Shots(x, torch.zeros(1), torch.zeros(1), torch.ones(1))


def test_it_learns_to_beat_plain_steps_of_any_size_on_random_quadratics() -> None:
    """Quadratics that were not shown, curvatures from 0.03 to 1, 5 steps. A coordinate is a problem of its own here."""
    size, steps, rounds = 200, 5, 200
    model, generator = extended(), torch.Generator().manual_seed(0)
    loss, base = Bowls(model.beside), LearnedOptimizer(local_steps=steps)
    gradient = base.gradient_of(loss)
    start = torch.cat([torch.zeros(size), model.start])
    learned = start.clone()
    adam = torch.optim.Adam([learned], lr=0.03)
    decay = torch.optim.lr_scheduler.LinearLR(adam, 1.0, 0.0, rounds)
    for _ in range(rounds):
        shown = bowl(size, generator)
        learned.grad = gradient(learned, shown, shown)
        learned.grad[:size] = 0.0  # the start stays: it is the optimizer that is asked about
        adam.step()
        decay.step()

    fresh = bowl(5 * size, generator)

    def after(at: Tensor, alpha: float) -> float:
        at = torch.cat([torch.zeros(5 * size), at[size:]])
        rate = base.model_copy(update={"local_learning_rate": alpha})
        return float(rate.episode_loss(at, fresh, fresh, loss))

    plain = min(after(start, alpha) for alpha in (0.5, 1.0, 1.3, 1.5, 1.7, 1.9))
    assert after(learned, 1.0) < 0.6 * plain
