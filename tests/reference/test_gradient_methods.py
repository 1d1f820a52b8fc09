"""The optimisation family against closed forms, finite differences, and the `higher` library.

Papers: Li et al. 2020 (FedProx), Fallah et al. 2020 (Per-FedAvg), Li et al. 2017 (Meta-SGD), Raghu et al. 2020 (ANIL).
"""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import algorithm
from tests.episodes import CLASSES, COLUMNS, MODEL, OneEpisode, episode, objective, one_image
from tests.reference.quadratic import MINIMUM, THETA, A, B, Quadratic, after_steps
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from wardround.algorithms.anil import Anil
from wardround.algorithms.maml import Maml
from wardround.algorithms.meta_sgd import MetaSgd
from wardround.errors import ConfigError
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround.questions import EpisodeGradient, Shots

EXACT = one_image(torch.zeros(1))
ALPHA = torch.tensor([0.3, -0.1, 0.2])
ETA = 0.2
RATE = 0.4
BODY = slice(0, MODEL.body_size)
HEAD = slice(MODEL.body_size, None)


def delta(name: str, theta: Tensor, **settings: object) -> Tensor:
    """What a hospital sends that is asked about the quadratic, and answers exactly."""
    choice = algorithm(name, **{"local_learning_rate": ETA, **settings})
    return choice.inner(theta, EXACT, Quadratic())


# --- FedProx and Per-FedAvg


@pytest.mark.parametrize("steps", [1, 3, 10])
@pytest.mark.parametrize("mu", [0.0, 0.5, 2.0])
def test_fedprox_descends_on_the_proximal_objective(mu: float, steps: int) -> None:
    """Equation 2 on a quadratic: w_k = m + (I - eta (A + mu I))^k (theta - m), where m minimises it."""
    proximal = A + mu * torch.eye(3)
    minimum = torch.linalg.solve(proximal, B + mu * THETA)
    shrink = torch.linalg.matrix_power(torch.eye(3) - ETA * proximal, steps)
    expected = minimum + shrink @ (THETA - minimum) - THETA
    torch.testing.assert_close(delta("fedprox", THETA, local_steps=steps, proximal=mu), expected)


def test_fedprox_without_the_term_or_with_one_step_is_fedavg() -> None:
    for steps, proximal in ((4, 0.0), (1, 2.0)):
        ours = delta("fedprox", THETA, local_steps=steps, proximal=proximal)
        torch.testing.assert_close(ours, delta("fedavg", THETA, local_steps=steps))


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_per_fedavg_takes_meta_steps_at_the_hospital(steps: int) -> None:
    """On a quadratic g(w - alpha g(w)) = (I - alpha A) A (w - m), so a meta-step shrinks w - m by one matrix."""
    shrink = torch.eye(3) - ETA * (torch.eye(3) - ETA * A) @ A
    expected = MINIMUM + torch.linalg.matrix_power(shrink, steps) @ (THETA - MINIMUM) - THETA
    torch.testing.assert_close(delta("per-fedavg", THETA, local_steps=steps), expected)


def test_per_fedavg_with_one_step_is_fomaml_with_one_step() -> None:
    torch.testing.assert_close(delta("per-fedavg", THETA, local_steps=1), delta("fomaml", THETA, local_steps=1))


# --- Meta-SGD


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_meta_sgd_in_first_order(steps: int) -> None:
    """On a quadratic: g_i = A (theta_i - m), and their sum is (theta - theta_k) / alpha."""
    theta_k = after_steps(THETA, steps, ALPHA)
    g_query = A @ theta_k - B
    expected = -ETA * torch.cat([g_query, -g_query * (THETA - theta_k) / ALPHA])
    torch.testing.assert_close(delta("meta-sgd", torch.cat([THETA, ALPHA]), local_steps=steps), expected)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_meta_sgd_s_theta_has_the_second_derivative(steps: int) -> None:
    """On a quadratic: (I - A diag(alpha))^k times the gradient at theta_k."""
    through = torch.linalg.matrix_power(torch.eye(3) - A @ ALPHA.diag(), steps)
    expected = -ETA * through @ (A @ after_steps(THETA, steps, ALPHA) - B)
    exact = delta("meta-sgd", torch.cat([THETA, ALPHA]), local_steps=steps, tasks="episodes")
    torch.testing.assert_close(exact[:3], expected)


def test_with_one_step_alpha_s_gradient_in_first_order_is_exact() -> None:
    """d L(theta - alpha g(theta)) / d alpha = -g_query g(theta): no second derivative is in it."""
    theta = torch.cat([THETA, ALPHA])
    first, exact = (delta("meta-sgd", theta, tasks=tasks) for tasks in ("hospitals", "episodes"))
    torch.testing.assert_close(first[3:], exact[3:])
    assert not torch.allclose(first[:3], exact[:3])


@pytest.mark.parametrize(("tasks", "like"), [("hospitals", "fomaml"), ("episodes", "maml")])
def test_meta_sgd_with_one_rate_for_all_moves_theta_as_maml(tasks: str, like: str) -> None:
    theta = torch.cat([THETA, torch.full((3,), ETA)])
    ours = delta("meta-sgd", theta, tasks=tasks, local_steps=3)
    torch.testing.assert_close(ours[:3], delta(like, THETA, local_steps=3))


def test_alpha_starts_at_the_local_learning_rate_one_number_a_parameter() -> None:
    model = MetaSgd(local_learning_rate=0.3).extended(MODEL)
    start = model.initial()
    assert torch.equal(start[: MODEL.layout.size], MODEL.initial())
    assert torch.equal(start[MODEL.layout.size :], torch.full((MODEL.layout.size,), 0.3))


def test_what_is_noise_at_alpha_s_place_in_an_answer_is_never_sent() -> None:
    """An answer is as long as (theta, alpha), and only its first half is a gradient."""

    class Noisy(OneEpisode):
        def gradient(self, loss: object, theta: Tensor) -> Tensor:
            noise = torch.tensor([0.0, 0.0, 0.0, 7.0, 7.0, 7.0])
            return super().gradient(loss, theta) + noise  # type: ignore[arg-type]

    theta = torch.cat([THETA, ALPHA])
    choice = algorithm("meta-sgd", local_steps=3, local_learning_rate=ETA)
    noisy = choice.inner(theta, Noisy(EXACT.support, EXACT.query), Quadratic())
    torch.testing.assert_close(noisy, delta("meta-sgd", theta, local_steps=3))


def test_at_home_a_parameter_moves_as_far_as_its_alpha_lets_it() -> None:
    """After many steps the loss pulls as hard as the start: slope = -pull (theta - start) / (alpha / eta)."""
    theta, pull = torch.cat([THETA, ALPHA]), 0.5
    choice = MetaSgd(local_learning_rate=ETA, adapt_steps=2000, adapt_learning_rate=0.1, adapt_pull=pull)
    adapted = choice.adapt(theta, EXACT.support, Quadratic())["theta"]
    slope, moved = A @ adapted[:3] - B, adapted[:3] - THETA
    climbs = ALPHA < 0
    assert torch.equal(adapted[3:], ALPHA)
    assert torch.equal(moved[climbs], torch.zeros(int(climbs.sum())))
    torch.testing.assert_close(slope[~climbs], (-pull * moved * ETA / ALPHA)[~climbs], atol=1e-4, rtol=0)


def test_at_home_meta_sgd_with_its_first_alpha_is_fine_tuning() -> None:
    theta = torch.cat([THETA, torch.full((3,), ETA)])
    choice = MetaSgd(local_learning_rate=ETA, adapt_steps=7, adapt_learning_rate=0.1)
    adapted = choice.adapt(theta, EXACT.support, Quadratic())["theta"]
    torch.testing.assert_close(
        adapted[:3], Maml(adapt_steps=7, adapt_learning_rate=0.1).adapt(THETA, EXACT.support, Quadratic())["theta"]
    )


# --- ANIL


def test_anil_s_first_step_from_zero_is_the_weighted_errors_times_the_embeddings() -> None:
    """W = alpha sum_i w_i (onehot_i - prior) f(x_i)': at a head of zeros every image is predicted as the prior says."""
    loss, support = objective(), episode().support
    choice = Anil(local_learning_rate=0.7)
    theta = MODEL.initial()
    assert loss.log_prior is not None
    errors = (one_hot(support.y, CLASSES) - loss.log_prior.softmax(0)) * support.weight.unsqueeze(1)
    errors = 0.7 * errors / support.weight.sum()
    weight, bias = loss.head(choice.fit(theta, support, loss)["theta"])
    torch.testing.assert_close(weight, errors.T @ loss.embed(theta, support.x))
    torch.testing.assert_close(bias, errors.sum(0))


def test_anil_neither_reads_nor_sends_a_head() -> None:
    """Not even noise: here every answer is noise."""

    class Noise(OneEpisode):
        def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
            return super().episode_gradient(gradient, theta) + 1

    shots, loss, theta = episode(), objective(), MODEL.initial()
    choice = Anil(local_steps=2, local_learning_rate=0.5)
    sent = choice.inner(theta, shots, loss)
    noisy = choice.inner(theta, Noise(shots.support, shots.query), loss)
    assert torch.equal(noisy[HEAD], torch.zeros_like(noisy[HEAD]))
    torch.testing.assert_close(noisy[BODY], sent[BODY] - 0.5)
    assert sent[BODY].norm() > 0
    other = torch.cat([theta[BODY], 9 * torch.ones_like(theta[HEAD])])
    assert torch.equal(choice.inner(other, shots, loss), sent)
    assert torch.equal(choice.adapt(other, shots.support, loss)["theta"],
                       choice.adapt(theta, shots.support, loss)["theta"])  # fmt: skip
    logits = choice.predict(choice.unadapted(other, loss), shots.query.x, loss)
    assert torch.equal(logits, torch.zeros_like(logits))


@settings(max_examples=30, deadline=None)
@given(order=st.permutations(range(CLASSES)), seed=st.integers(0, 99), steps=st.integers(1, 3))
def test_anil_learns_the_same_whatever_the_classes_are_called(order: list[int], seed: int, steps: int) -> None:
    """So a hospital may have classes of its own. (The hospital's prior is of its classes, and left out here.)"""
    loss, shots = replace(objective(torch.float64), log_prior=None), episode(torch.float64, seed)
    choice = Anil(local_steps=steps)
    support, query = (replace(part, y=torch.tensor(order)[part.y]) for part in (shots.support, shots.query))
    theta = MODEL.initial().double()
    renamed = choice.inner(theta, OneEpisode(support, query), loss)
    torch.testing.assert_close(renamed, choice.inner(theta, shots, loss))


def test_anil_learns_nothing_from_queries_whose_class_the_support_lacks() -> None:
    shots, loss, choice = episode(), objective(), Anil()
    lacking = OneEpisode(replace(shots.support, y=shots.support.y.clamp(max=1)), shots.query)
    among = replace(shots.query, weight=shots.query.weight * (shots.query.y <= 1))
    expected = choice.inner(MODEL.initial(), replace(lacking, query=among), loss)
    assert torch.equal(choice.inner(MODEL.initial(), lacking, loss), expected)
    nothing = replace(lacking, query=replace(shots.query, y=torch.full_like(shots.query.y, 2)))
    assert torch.equal(choice.inner(MODEL.initial(), nothing, loss), torch.zeros(MODEL.layout.size))


def test_at_home_anil_trains_the_head_of_a_fixed_body_from_zero() -> None:
    """After many steps the loss of all patients, balanced, pulls on the head as hard as the way back to zero."""
    shots, loss = episode().support, replace(objective(), log_prior=None)
    choice = Anil(adapt_steps=3000, adapt_learning_rate=0.5, adapt_pull=0.5)
    theta = MODEL.initial()
    adapted = choice.adapt(theta, shots, loss)["theta"]
    assert torch.equal(adapted[BODY], theta[BODY])

    def balanced(at: Tensor) -> Tensor:
        each = loss.each(at, shots.x, shots.y) * shots.weight
        means = [each[shots.y == k].sum() / shots.weight[shots.y == k].sum() for k in range(CLASSES)]
        return torch.stack(means).mean()

    slope = shots.weight.sum() * torch.func.grad(balanced)(adapted)
    torch.testing.assert_close(slope[HEAD], -0.5 * adapted[HEAD], atol=1e-5, rtol=0)
    assert adapted[HEAD].norm() > 0.1


def test_anil_needs_a_body() -> None:
    with pytest.raises(ConfigError, match="'anil' learns an embedding"):
        Anil().extended(Tabular.logistic(COLUMNS, CLASSES))


# --- second derivatives, by finite differences

SECOND_ORDER = {method().name: method for method in (Maml, MetaSgd, Anil)}


def loss_of(name: str, dtype: torch.dtype) -> Objective:
    """Of the mlp with what the method learns beside it."""
    loss = objective(dtype)
    return replace(loss, model=algorithm(name, local_learning_rate=RATE).extended(MODEL))


def start_of(loss: Objective) -> Tensor:
    """Where nothing is special: every bias and every rate has its own value."""
    start = loss.model.initial()
    return (start + 0.1 * torch.randn(len(start), generator=torch.Generator().manual_seed(5))).to(loss.shift.dtype)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", SECOND_ORDER)
def test_a_direction_is_the_slope_of_the_query_loss_after_adapting(name: str, steps: int) -> None:
    """Central differences through the steps on the support, in float64."""
    loss, shots = loss_of(name, torch.float64), episode(torch.float64)
    method = SECOND_ORDER[name](local_steps=steps, local_learning_rate=RATE)
    theta = start_of(loss)

    def after_adapting(theta: Tensor) -> float:
        return float(method.episode_loss(theta, shots.support, shots.query, loss))

    slopes = [
        (after_adapting(theta + e) - after_adapting(theta - e)) / 2e-5
        for e in 1e-5 * torch.eye(len(theta), dtype=torch.float64)
    ]
    exact = method.gradient_of(loss)(theta, shots.support, shots.query)
    torch.testing.assert_close(exact, torch.tensor(slopes, dtype=torch.float64), rtol=1e-6, atol=1e-9)


# --- the meta-gradients of `higher` (Grefenstette et al., "Generalized Inner Loop Meta-Learning", 2019)


def module_at(theta: Tensor) -> nn.Sequential:
    """An ordinary module with the model's parameters at theta."""
    module = copy.deepcopy(MODEL.network.module).to(theta.dtype).requires_grad_()
    assert isinstance(module, nn.Sequential)
    module.load_state_dict(MODEL.layout.unpack(theta[: MODEL.layout.size]))
    return module


def their_loss(module: nn.Module, shots: Shots, loss: Objective) -> Tensor:
    """The mean over patients, written out."""
    assert loss.log_prior is not None
    x = (shots.x - loss.shift) / (loss.scale * COLUMNS**0.5)
    each = cross_entropy(module(x) + loss.log_prior, shots.y, reduction="none")
    return (each * shots.weight).sum() / shots.weight.sum()


def adapted(
    module: nn.Module,
    groups: list[dict[str, list[nn.Parameter]]],
    shots: OneEpisode,
    loss: Objective,
    steps: int,
    *,
    rates: list[Tensor] | None = None,
    second_order: bool = True,
) -> nn.Module:
    """The module after steps on these groups of its parameters, each at its own rates."""
    higher = pytest.importorskip("higher")
    optimizer = torch.optim.SGD(groups, lr=RATE)
    with higher.innerloop_ctx(module, optimizer, copy_initial_weights=False, track_higher_grads=second_order) as (
        fast,
        inner,
    ):
        for _ in range(steps):
            inner.step(their_loss(fast, shots.support, loss), override={"lr": rates} if rates else None)
    result: nn.Module = fast
    return result


def their_gradient(name: str, theta: Tensor, shots: OneEpisode, loss: Objective, steps: int) -> Tensor:
    """The meta-gradient float32 or float64 [P] that `higher` finds; 0 for what the method does not learn."""
    model, rest = theta[: MODEL.layout.size], theta[MODEL.layout.size :]
    if name == "anil":
        model = torch.cat([model[BODY], torch.zeros_like(model[HEAD])])
    module = module_at(model)
    parameters = list(module.parameters())
    alpha = [each.clone().requires_grad_() for each in MODEL.layout.unpack(rest).values()] if name == "meta-sgd" else []
    groups = [{"params": [each]} for each in (parameters[-2:] if name == "anil" else parameters)]
    fast = adapted(module, groups, shots, loss, steps, rates=alpha, second_order=name != "fomaml")
    learned = {"anil": parameters[:-2], "fomaml": list(fast.parameters())}.get(name, [*parameters, *alpha])
    found = torch.autograd.grad(their_loss(fast, shots.query, loss), learned)
    gradient = torch.cat([each.flatten() for each in found])
    return torch.cat([gradient, gradient.new_zeros(len(theta) - len(gradient))])


@pytest.mark.parametrize(("dtype", "rtol", "atol"), [(torch.float32, 1e-5, 1e-6), (torch.float64, 1e-10, 1e-12)])
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("name", ["maml", "fomaml", "meta-sgd", "anil"])
def test_a_meta_gradient_is_that_of_higher(name: str, steps: int, dtype: torch.dtype, rtol: float, atol: float) -> None:
    loss, shots = loss_of(name, dtype), episode(dtype)
    theta = start_of(loss)
    choice = algorithm(name, tasks="episodes", local_steps=steps, local_learning_rate=RATE)
    ours = choice.inner(theta, shots, loss) / -RATE
    theirs = their_gradient(name, theta, shots, loss, steps)
    assert theirs.norm() > 0.01
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=atol)


def test_a_pull_of_fedprox_that_overshoots_ever_further_is_refused() -> None:
    algorithm("fedprox", local_learning_rate=19.0, proximal=0.1)
    with pytest.raises(ValueError, match="local_learning_rate x proximal below 2"):
        algorithm("fedprox", local_learning_rate=20.0, proximal=0.1)
