"""Meta-learners and optimizers against closed forms, torch.optim and numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import algorithm, outer
from tests.episodes import MODEL, OneEpisode, episode, objective, one_image
from tests.reference.quadratic import THETA, A, B, Quadratic, after_steps
from torch import Tensor

from wardround.algorithms import Pooled
from wardround.meta.local import descend_on, differentiable_slope
from wardround.optimizers.adam import Adam
from wardround.optimizers.sgd import Sgd
from wardround.questions import Shots

EXACT = one_image(torch.zeros(1))


@pytest.mark.parametrize("name", ["reptile", "fedavg"])
@pytest.mark.parametrize("steps", [1, 3, 10])
def test_delta_of_local_steps_on_a_quadratic(name: str, steps: int) -> None:
    choice = algorithm(name, local_steps=steps, local_learning_rate=0.2)
    delta = choice.inner(THETA, EXACT, Quadratic())
    torch.testing.assert_close(delta, after_steps(THETA, steps, 0.2) - THETA)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_fomaml_on_a_quadratic_is_the_gradient_at_the_adapted_parameters(steps: int) -> None:
    choice = algorithm("fomaml", local_steps=steps, local_learning_rate=0.2)
    delta = choice.inner(THETA, EXACT, Quadratic())
    torch.testing.assert_close(delta, -0.2 * (A @ after_steps(THETA, steps, 0.2) - B))


def together(shots: OneEpisode) -> Shots:
    """Support and query, whose patients are numbered on."""
    query = shots.query.patient + int(shots.support.patient.max()) + 1
    x, y, weight = (
        torch.cat([getattr(shots.support, part), getattr(shots.query, part)]) for part in ("x", "y", "weight")
    )
    return Shots(x, y, torch.cat([shots.support.patient, query]), weight)


def some(shots: Shots, rows: Tensor) -> Shots:
    return Shots(shots.x[rows], shots.y[rows], shots.patient[rows], shots.weight[rows])


def reptile(shots: OneEpisode, theta: Tensor, **chosen: object) -> Tensor:
    choice = algorithm("reptile", tasks="episodes", **chosen)
    return choice.inner(theta, shots, objective())


def test_reptile_s_second_minibatch_gives_the_gradient_of_fomaml() -> None:
    """Nichol et al. 2018, section 3: of two steps FOMAML keeps g_2, Reptile g_1 + g_2."""
    shots, theta, alpha = episode(), MODEL.initial(), 0.5
    everyone = together(shots)
    first, second = (some(everyone, everyone.patient % 2 == turn) for turn in (0, 1))
    ours = reptile(shots, theta, local_steps=2, local_batches=2, local_learning_rate=alpha)
    choice = algorithm("fomaml", tasks="episodes", local_learning_rate=alpha)
    g_2 = choice.inner(theta, OneEpisode(first, second), objective()) / -alpha
    g_1 = differentiable_slope(theta, first, objective())
    assert (g_2 - differentiable_slope(theta, second, objective())).norm() > 0.01
    torch.testing.assert_close(ours, -alpha * (g_1 + g_2))


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(1, 7), batches=st.integers(1, 12))
def test_reptile_takes_an_episode_s_minibatches_in_turn(steps: int, batches: int) -> None:
    """Of whole patients; where there are fewer of these than minibatches, of one patient each."""
    shots, theta = episode(), MODEL.initial()
    everyone = together(shots)
    patients = int(everyone.patient.max()) + 1
    phi = theta
    for step in range(steps):
        turn = step % min(batches, patients)
        phi = descend_on(
            phi, some(everyone, everyone.patient % batches == turn), objective(), steps=1, learning_rate=0.5
        )
    ours = reptile(shots, theta, local_steps=steps, local_batches=batches, local_learning_rate=0.5)
    torch.testing.assert_close(ours, phi - theta)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_maml_has_the_second_derivative_that_fomaml_leaves_out(steps: int) -> None:
    """On a quadratic: (I - alpha A)^k times the gradient at theta_k (Finn et al. 2017, equation 1)."""
    maml, fomaml = (
        algorithm(name, local_steps=steps, local_learning_rate=0.2).inner(THETA, EXACT, Quadratic())
        for name in ("maml", "fomaml")
    )
    torch.testing.assert_close(maml, torch.linalg.matrix_power(torch.eye(3) - 0.2 * A, steps) @ fomaml)


def test_fedavg_with_server_rate_one_is_the_weighted_mean_of_the_models() -> None:
    models, weights = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 0.2, 0.3, 0.4])
    theta = torch.tensor([3.0, 1.0, 2.0])
    optimizer, fedavg = Sgd(learning_rate=1.0, momentum=0.0), algorithm("fedavg")
    state = fedavg.start(theta, Quadratic(), optimizer)
    mean_delta = weights @ (models - theta)
    _, moved = fedavg.outer(state, theta, Pooled(mean_delta), Quadratic(), optimizer)
    torch.testing.assert_close(moved, weights @ models)


def gradients(steps: int = 30) -> Tensor:
    return torch.randn(steps, 5, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_sgd_is_torch_sgd(momentum: float) -> None:
    optimizer = Sgd(learning_rate=0.3, momentum=momentum)
    parameter = torch.nn.Parameter(torch.ones(5))
    theirs = torch.optim.SGD([parameter], lr=0.3, momentum=momentum)
    theta, state = torch.ones(5), optimizer.start(torch.ones(5))
    for gradient in gradients():
        parameter.grad = gradient.clone()
        theirs.step()
        state, theta = optimizer.step(state, theta, gradient)
        torch.testing.assert_close(theta, parameter.data)


def test_adam_is_torch_adam_once_the_bias_correction_is_moved_into_its_rate_and_tau() -> None:
    """torch divides m by 1 - beta1^t and v by 1 - beta2^t; the same step has rate lr c / (1 - beta1^t) and tau eps c,
    where c = sqrt(1 - beta2^t). FedAdam starts from v = tau^2, here 1e-24."""
    parameter = torch.nn.Parameter(torch.ones(5))
    theirs = torch.optim.Adam([parameter], lr=0.01, betas=(0.9, 0.99), eps=1e-8)
    theta, state = torch.ones(5), Adam(tau=1e-12).start(torch.ones(5))
    for t, gradient in enumerate(gradients(), start=1):
        parameter.grad = gradient.clone()
        theirs.step()
        c = math.sqrt(1 - 0.99**t)
        optimizer = Adam(learning_rate=0.01 * c / (1 - 0.9**t), tau=1e-8 * c)
        state, theta = optimizer.step(state, theta, gradient)
        torch.testing.assert_close(theta, parameter.data)


def test_adam_and_yogi_by_hand() -> None:
    """beta1 = 0.5, beta2 = 0.75, tau = 0.1, eta = 1; gradients 2, then 0.4. v starts at tau^2 = 0.01.

    m: 1, then 0.7. Adam v: 0.0075 + 1 = 1.0075; then 0.755625 + 0.04 = 0.795625.
    Yogi v: 0.01 + 0.25 x 4 = 1.01 (4 is above 0.01); then 1.01 - 0.25 x 0.16 = 0.97 (0.16 is below 1.01).
    """
    expected = {"adam": (1.0075, 0.795625), "yogi": (1.01, 0.97)}
    for name, (v1, v2) in expected.items():
        optimizer = outer(optimizer=name, learning_rate=1.0, beta1=0.5, beta2=0.75, tau=0.1).optimizer
        theta = torch.zeros(1)
        state = optimizer.start(theta)
        state, theta = optimizer.step(state, theta, torch.tensor([2.0]))
        torch.testing.assert_close(state["second"], torch.tensor([v1]))
        torch.testing.assert_close(theta, torch.tensor([-1 / (math.sqrt(v1) + 0.1)]))
        before = float(theta)
        state, theta = optimizer.step(state, theta, torch.tensor([0.4]))
        torch.testing.assert_close(state["second"], torch.tensor([v2]))
        torch.testing.assert_close(theta, torch.tensor([before - 0.7 / (math.sqrt(v2) + 0.1)]))
