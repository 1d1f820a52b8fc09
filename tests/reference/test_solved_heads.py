"""Heads solved in the inner loop, against closed forms, scipy, optimality conditions and finite differences."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor
from torch.nn.functional import one_hot

from wardround.algorithms.ridge import Ridge, ridge
from wardround.algorithms.svm import MU, Svm, _solved, crammer_singer
from wardround.errors import ConfigError
from wardround.meta.embedded import ABSENT, Embedding, balanced
from wardround.models import Objective
from wardround.models.tabular import Tabular
from wardround.questions import Shots

CLASSES, COLUMNS, WIDTH = 3, 4, 5
METHODS: list[Embedding] = [Ridge(regularization=0.3), Svm(regularization=0.3)]
each_method = pytest.mark.parametrize("method", METHODS, ids=["ridge", "svm"])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-8)


def objective(method: Embedding) -> Objective:
    """In float64, so that finite differences tell something."""
    model = method.extended(Tabular.mlp(COLUMNS, CLASSES, WIDTH))
    return Objective(model, torch.zeros(COLUMNS).double(), torch.ones(COLUMNS).double())


def start(loss: Objective) -> Tensor:
    """The start, with what is learned beside the model moved from where it would change nothing."""
    theta = loss.model.initial().double()
    return theta + 0.3 * random(len(theta))


@dataclass(frozen=True)
class Support:
    """Embedded shots [n, e] and their shares [n, classes], of which some classes and rows may have none."""

    embedded: Tensor
    shares: Tensor


@st.composite
def supports(draw: st.DrawFn) -> Support:
    n, seed = draw(st.integers(1, 12)), draw(st.integers(0, 10_000))
    shown = draw(st.lists(st.integers(0, CLASSES - 1), min_size=1, unique=True))
    y = torch.tensor(draw(st.lists(st.sampled_from(shown), min_size=n, max_size=n)))
    weight = torch.tensor(draw(st.lists(st.sampled_from([1.0, 0.5, 0.25, 1e-3]), min_size=n, max_size=n))).double()
    scale = draw(st.sampled_from([0.1, 1.0, 3.0]))
    return Support(scale * random(n, WIDTH, seed=seed), one_hot(y, CLASSES) * weight.unsqueeze(1))


def logits(method: Embedding, support: Support) -> Tensor:
    """Of a few embedded queries, [7, classes]."""
    loss = objective(method)
    fitted = method.solve(start(loss), support.embedded, support.shares, loss)
    weight, bias = loss.head(fitted["theta"])
    return random(7, WIDTH, seed=99) @ weight.T + bias


# --- what holds for both


@each_method
@settings(max_examples=30)
@given(support=supports(), data=st.data())
def test_the_order_of_the_shots_does_not_matter(method: Embedding, support: Support, data: st.DataObject) -> None:
    order = torch.tensor(data.draw(st.permutations(range(len(support.shares)))))
    shuffled = Support(support.embedded[order], support.shares[order])
    assert_same(logits(method, shuffled), logits(method, support))


@each_method
@settings(max_examples=30)
@given(support=supports(), padding=st.integers(1, 9))
def test_padding_changes_nothing(method: Embedding, support: Support, padding: int) -> None:
    """Ridge goes over from the Woodbury form to the other here, when rows come to be more than columns."""
    padded = Support(
        torch.cat([support.embedded, 5 * random(padding, WIDTH, seed=3)]),
        torch.cat([support.shares, torch.zeros(padding, CLASSES).double()]),
    )
    assert_same(logits(method, padded), logits(method, support))


@each_method
@settings(max_examples=30)
@given(support=supports(), copies=st.integers(2, 4))
def test_a_patient_with_the_same_image_several_times_counts_once(
    method: Embedding, support: Support, copies: int
) -> None:
    copied = Support(support.embedded.repeat(copies, 1), support.shares.repeat(copies, 1) / copies)
    assert_same(logits(method, copied), logits(method, support))


@each_method
@settings(max_examples=30)
@given(support=supports())
def test_the_origin_of_the_embedding_does_not_matter(method: Embedding, support: Support) -> None:
    loss, query = objective(method), random(7, WIDTH, seed=99)
    away = random(WIDTH, seed=5)
    moved = method.solve(start(loss), support.embedded + away, support.shares, loss)
    weight, bias = loss.head(moved["theta"])
    assert_same((query + away) @ weight.T + bias, logits(method, support))


@each_method
@settings(max_examples=30)
@given(support=supports())
def test_only_classes_that_the_support_shows_are_predicted(method: Embedding, support: Support) -> None:
    shown = support.shares.sum(0) > 0
    predicted = logits(method, support)
    assert shown[predicted.argmax(1)].all()
    assert (predicted[:, ~shown] == ABSENT).all()
    assert torch.isfinite(predicted).all()


@each_method
def test_without_a_support_no_class_is_more_likely(method: Embedding) -> None:
    nothing = Support(random(4, WIDTH), torch.zeros(4, CLASSES).double())
    assert torch.equal(logits(method, nothing), torch.full((7, CLASSES), ABSENT).double())


@each_method
@pytest.mark.parametrize("many", [1, 10])
def test_many_shots_of_one_class_do_not_move_the_boundary(method: Embedding, many: int) -> None:
    """Between two points, of which one is shown `many` times: where the logits are equal."""
    loss = objective(method)
    a, b = random(2, WIDTH, seed=4)
    support = Support(torch.stack([a] * many + [b]), one_hot(torch.tensor([0] * many + [1]), CLASSES).double())
    theta = loss.model.initial().double()
    weight, bias = loss.head(method.solve(theta, support.embedded, support.shares, loss)["theta"])
    scores = torch.stack([a, (a + b) / 2, b]) @ weight.T + bias
    assert scores[0, 0] > scores[0, 1] + 0.01
    assert_same(scores[1, 0], scores[1, 1])
    assert scores[2, 1] > scores[2, 0] + 0.01


@each_method
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e300])
def test_an_embedding_that_is_not_finite_raises_nothing(method: Embedding, bad: float) -> None:
    """An exception would tell the coordinator that a patient was in the round."""
    embedded = random(6, WIDTH)
    embedded[2, 1] = bad
    support = Support(embedded, one_hot(torch.arange(6) % 2, CLASSES).double())
    assert logits(method, support).shape == (7, CLASSES)


@each_method
@pytest.mark.parametrize("seed", range(3))
def test_the_meta_gradient_is_the_slope_of_the_query_loss(method: Embedding, seed: int) -> None:
    """Central differences in every number of theta, those beside the model included; a class is missing."""
    loss = replace(objective(method), log_prior=torch.tensor([0.2, 0.3, 0.5]).double().log())
    theta = start(loss)
    x, patient = 3 * random(9, COLUMNS, seed=seed), torch.arange(9) // 2
    support = Shots(x, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1, 1]), patient, torch.tensor([0.5] * 8 + [1.0]).double())
    query = Shots(
        random(6, COLUMNS, seed=seed + 10),
        torch.tensor([0, 1, 0, 1, 2, 0]),
        torch.arange(6),
        torch.ones(6, dtype=torch.float64),
    )

    def after_learning(theta: Tensor) -> Tensor:
        return method.episode_loss(theta, support, query, loss)

    exact = method.gradient_of(loss)(theta, support, query)
    h = 1e-6
    slopes = [
        (after_learning(theta + e) - after_learning(theta - e)) / (2 * h)
        for e in h * torch.eye(len(theta), dtype=torch.float64)
    ]
    torch.testing.assert_close(exact, torch.stack(slopes), rtol=1e-5, atol=1e-7)
    body = loss.model.body_size
    assert exact[:body].norm() > 1e-3
    weight, bias = loss.head(exact)
    assert not weight.any()
    assert not bias.any()
    assert all(part.abs().sum() > 1e-5 for part in loss.extras(exact).values())


@each_method
def test_a_model_without_a_body_is_refused(method: Embedding) -> None:
    with pytest.raises(ConfigError, match="embedding"):
        method.extended(Tabular.logistic(COLUMNS, CLASSES))


@given(support=supports())
def test_balanced_weights_are_the_same_for_each_class_and_of_the_same_sum(support: Support) -> None:
    weights, shares = balanced(support.shares), support.shares
    per_class = (one_hot(shares.argmax(1), CLASSES) * weights.unsqueeze(1)).sum(0)
    shown = shares.sum(0) > 0
    torch.testing.assert_close(per_class, shown * shares.sum() / shown.sum())
    within = shares / shares.sum(0).where(shown, torch.ones(()).double())
    torch.testing.assert_close(weights, (within * per_class).sum(1))


def test_in_a_balanced_episode_of_single_images_all_weights_are_one() -> None:
    shares = one_hot(torch.tensor([0, 2, 2, 0]), CLASSES).double()
    assert torch.equal(balanced(shares), torch.ones(4).double())


# --- ridge


@pytest.mark.parametrize(("n", "e"), [(1, 4), (4, 9), (6, 6), (20, 3)])
def test_ridge_is_least_squares_with_rows_for_the_penalty(n: int, e: int) -> None:
    """torch.linalg.lstsq on [sqrt(d) X, sqrt(d); sqrt(lambda) I, 0]: the column of ones has no penalty."""
    x, y, d, penalty = random(n, e), random(n, 3, seed=1), random(n, seed=2).square(), 0.7
    root = d.sqrt().unsqueeze(1)
    penalties = torch.cat([penalty**0.5 * torch.eye(e), torch.zeros(e, 1)], 1).double()
    rows = torch.cat([torch.cat([root * x, root], 1), penalties])
    solved = torch.linalg.lstsq(rows, torch.cat([root * y, torch.zeros(e, 3).double()]), driver="gelsd").solution
    w, b = ridge(x, y, d, torch.tensor(penalty))
    torch.testing.assert_close(torch.cat([w.T, b.unsqueeze(0)]), solved, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("n", "e"), [(4, 9), (20, 3)])
def test_on_centred_data_ridge_is_the_paper_s(n: int, e: int) -> None:
    """Equation 4, by numpy: (X'X + lambda I)^-1 X'Y."""
    x, y = random(n, e), random(n, 3, seed=1)
    x, y = x - x.mean(0), y - y.mean(0)
    a = x.numpy()
    expected = np.linalg.inv(a.T @ a + 0.7 * np.eye(e)) @ a.T @ y.numpy()
    w, b = ridge(x, y, torch.ones(n).double(), torch.tensor(0.7).double())
    assert_same(w.T, torch.from_numpy(expected))
    assert_same(b, torch.zeros(3).double())


def test_ridge_s_outputs_are_scaled_and_moved() -> None:
    """Equation 6: alpha times the regression's outputs, plus beta."""
    method = Ridge(regularization=0.3)
    loss = objective(method)
    theta = loss.model.initial().double()
    learned = loss.extras(theta)
    assert learned["log_lambda"].exp() == pytest.approx(0.3)
    y = torch.tensor([0, 1, 2, 1])
    support, query = Support(random(4, WIDTH), one_hot(y, CLASSES).double()), random(7, WIDTH, seed=99)

    def outputs(log_alpha: float, beta: list[float]) -> Tensor:
        beside = torch.cat([learned["log_lambda"].view(1), torch.tensor([log_alpha, *beta])]).double()
        at = torch.cat([theta[: -len(beside)], beside])
        weight, bias = loss.head(method.solve(at, support.embedded, support.shares, loss)["theta"])
        return query @ weight.T + bias

    plain = outputs(0.0, [0.0, 0.0, 0.0])
    torch.testing.assert_close(plain.sum(1), torch.ones(7).double())  # a regression of one-hot rows, which sum to 1
    expected = torch.tensor(0.5).double().exp() * plain + torch.tensor([0.1, -0.2, 0.3])
    torch.testing.assert_close(outputs(0.5, [0.1, -0.2, 0.3]), expected, rtol=1e-6, atol=1e-7)


# --- the support vector machine


@pytest.mark.parametrize(("c", "alpha"), [(1.0, 1 / 8), (0.05, 0.05)])
def test_two_points_by_hand(c: float, alpha: float) -> None:
    """Points a and -a, |a|^2 = 2: w_1 = -w_2 = 2 alpha a; a margin of 1 wants alpha = 1 / (4 |a|^2), at most C."""
    a = torch.tensor([1.0, 1.0]).double()
    w = crammer_singer(torch.stack([a, -a]), torch.eye(2).bool(), torch.full((2,), c).double())
    torch.testing.assert_close(w, torch.stack([2 * alpha * a, -2 * alpha * a]), rtol=0, atol=1e-4)


def test_the_method_s_c_is_one_over_the_regularization_and_gamma_scales_its_logits() -> None:
    """The two points again, in a corner of the embedding: alpha = C = 1/20, below 1 / (4 |a|^2)."""
    method = Svm(regularization=20.0)
    loss = objective(method)
    a = torch.zeros(WIDTH).double()
    a[:2] = 1.0
    theta = loss.model.initial().double()
    theta[-1] = torch.tensor(3.0).log()  # log gamma
    shares = one_hot(torch.tensor([0, 1]), CLASSES).double()
    weight, bias = loss.head(method.solve(theta, torch.stack([7 + a, 7 - a]), shares, loss)["theta"])
    expected = 3 * torch.stack([0.1 * a, -0.1 * a, 0 * a])
    torch.testing.assert_close(weight, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(bias, torch.tensor([-4.2, 4.2, ABSENT]).double(), rtol=0, atol=1e-2)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("c", [0.1, 1.0, 20.0])
def test_the_machine_is_scipy_s(seed: int, c: float) -> None:
    """Equations 6 to 8 by sequential least squares: 1/2 sum_k |w_k|^2 - sum_n alpha_n^{y_n}, least over alpha."""
    n, k, e = 6, 3, 2 + seed
    x, y = random(n, e, seed=seed), one_hot(torch.arange(n) % k, k).bool()
    c_n = c * (0.2 + random(n, seed=seed + 50).abs())
    hot, upper = y.numpy().astype(float), c_n.numpy()[:, None] * y.numpy()
    gram = (x @ x.T).numpy()

    def dual(flat: npt.NDArray[np.float64]) -> float:
        alpha = flat.reshape(n, k)
        return float(0.5 * np.sum(alpha * (gram @ alpha)) - np.sum(alpha * hot))

    def slope(flat: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        steep: npt.NDArray[np.float64] = gram @ flat.reshape(n, k) - hot
        return steep.ravel()

    found = minimize(
        dual,
        np.zeros(n * k),
        jac=slope,
        method="SLSQP",
        bounds=[(-c * 100, high) for high in upper.ravel()],
        constraints={
            "type": "eq",
            "fun": lambda flat: flat.reshape(n, k).sum(1),
            "jac": lambda flat: np.kron(np.eye(n), np.ones((1, k))),
        },
        options={"maxiter": 1000, "ftol": 1e-14},
    )
    assert found.success or found.status == 8  # 8: no step makes it better, which is as near as float64 comes
    expected = torch.from_numpy(found.x.reshape(n, k)).T @ x
    w = crammer_singer(x, y, c_n)
    # The dual is off by at most k MU sum_n C_n, and the primal curves by 1.
    assert 0.5 * (w - expected).square().sum() <= k * MU * c_n.sum() + 1e-9
    torch.testing.assert_close(w, expected, rtol=0, atol=5e-3)


@given(support=supports(), c=st.sampled_from([0.01, 1.0, 100.0]), classes=st.integers(2, CLASSES))
def test_the_optimality_conditions_hold(support: Support, c: float, classes: int) -> None:
    """With the barrier, to rounding: sum_k p = 1, p > 0, z > 0, p z = MU, z = y - scores - nu."""
    x, y = support.embedded, one_hot(torch.arange(len(support.shares)) % classes, classes).double()
    c_n = c * support.shares.sum(1, keepdim=True)
    at = _solved(x @ x.T, y, c_n)
    assert (at.p > 0).all()
    assert (at.z > 0).all()
    torch.testing.assert_close(at.p.sum(1), torch.ones(len(x)).double())
    torch.testing.assert_close(at.p * at.z, torch.full_like(at.p, MU), rtol=1e-5, atol=0)
    w = (c_n * (y - at.p)).T @ x
    scores = x @ w.T
    torch.testing.assert_close(at.z, y - scores - at.nu, rtol=1e-6, atol=1e-9 * max(1.0, float(scores.abs().max())))

    margins = 1 - y + scores - (scores * y).sum(1, keepdim=True)
    primal = 0.5 * w.square().sum() + (c_n * margins.amax(1, keepdim=True)).sum()
    dual = (c_n * (y - at.p) * y).sum() - 0.5 * w.square().sum()
    gap = float(primal - dual)
    assert -1e-9 * float(primal) <= gap <= classes * MU * float(c_n.sum()) * 1.001 + 1e-9 * float(primal)


@pytest.mark.parametrize("e", [8, 64])
def test_a_hundred_overlapping_images_are_solved_too(e: int) -> None:
    y = one_hot(torch.arange(100) % 5, 5).double()
    x = random(100, e) + y @ random(5, e, seed=1)
    at = _solved(x @ x.T, y, torch.full((100, 1), 10.0).double())
    torch.testing.assert_close(at.p * at.z, torch.full_like(at.p, MU), rtol=1e-5, atol=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("c", [0.1, 3.0])
def test_the_implicit_gradient_is_the_slope_of_the_solver(seed: int, c: float) -> None:
    """Central differences of one random number of W, in all coordinates of x and under both ways to a gradient."""
    n, e = 7, 3
    x, y = random(n, e, seed=seed), one_hot(torch.arange(n) % CLASSES, CLASSES).bool()
    c_n, along = torch.full((n,), c).double(), random(CLASSES, e, seed=seed + 1)

    def number(x: Tensor) -> Tensor:
        return (along * crammer_singer(x, y, c_n)).sum()

    implicit = torch.func.grad(number)(x)
    h = 1e-6
    steps = h * torch.eye(n * e, dtype=torch.float64).view(-1, n, e)
    slopes = torch.stack([(number(x + step) - number(x - step)) / (2 * h) for step in steps]).view(n, e)
    torch.testing.assert_close(implicit, slopes, rtol=1e-4, atol=1e-6)
    leaf = x.clone().requires_grad_()
    (plain,) = torch.autograd.grad(number(leaf), leaf)
    torch.testing.assert_close(implicit, plain)
