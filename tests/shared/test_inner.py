"""The fast inner loop gives what plain autograd gives, to first and to second order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad

from wardround.memory import laid_out
from wardround.meta.inner import (
    Part,
    descended,
    meta_gradient,
    slope,
    task_loss,
)
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.tabular import Tabular
from wardround.questions import Shots

CLASSES = 3
RATE = 0.05


def shots_of(x: Tensor) -> Shots:
    """Ragged: the first two images are one patient's."""
    patient = (torch.arange(len(x)) - 1).clamp_min(0)
    counts = torch.bincount(patient)
    return Shots(x, torch.arange(len(x)) % CLASSES, patient, (1 / counts[patient]).float())


def objective(family: str) -> tuple[Objective, Tensor, Shots, Shots]:
    """A small model, a theta at which nothing is symmetric, and an episode.

    In float64, or a tie of relu or max-pooling that rounding decides would be taken for an error.
    """
    models: dict[str, tuple[Model, tuple[int, ...]]] = {
        "conv4": (Conv4.of(1, 16, CLASSES), (1, 28, 28)),
        "colour": (Conv4.of(3, 8, CLASSES), (3, 17, 20)),
        "linear": (Tabular.logistic(6, CLASSES), (6,)),
    }
    model, shape = models[family]
    size = model.scaling_size
    loss = Objective(model, torch.zeros(size), torch.ones(size), torch.tensor([0.1, -0.2, 0.3]))
    theta = model.initial().double() + 0.05 * torch.randn(model.layout.size)
    support, query = (torch.rand(n, *shape, dtype=torch.float64) for n in (7, 9))
    return loss, theta, shots_of(support), shots_of(query)


def plain(shots: Shots, loss: Objective) -> Part:
    return lambda theta: shots.mean(loss.each(theta, shots.x, shots.y))


def plainly_descended(value: Part, theta: Tensor, steps: int) -> Tensor:
    for _ in range(steps):
        theta = theta - RATE * grad(value)(theta)
    return theta


def assert_near(found: Tensor, expected: Tensor, tolerance: float = 1e-9) -> None:
    assert found.shape == expected.shape and not found.requires_grad
    assert float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("family", ["conv4", "colour", "linear"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_steps_are_those_of_plain_autograd(family: str, steps: int) -> None:
    loss, theta, support, query = objective(family)
    before = theta.clone()
    phi = descended(task_loss(support, loss.each), theta, steps=steps, learning_rate=RATE)
    expected = plainly_descended(plain(support, loss), theta, steps)
    assert_near(phi, expected)
    assert_near(slope(task_loss(query, loss.each), phi), grad(plain(query, loss))(expected))
    assert torch.equal(theta, before)
    assert phi.data_ptr() != theta.data_ptr()


@pytest.mark.parametrize("family", ["conv4", "colour", "linear"])
@pytest.mark.parametrize("steps", [0, 1, 3])
def test_a_meta_gradient_goes_through_the_steps(family: str, steps: int) -> None:
    loss, theta, support, query = objective(family)
    tasks = task_loss(support, loss.each), task_loss(query, loss.each)
    found = meta_gradient(*tasks, theta, steps=steps, learning_rate=RATE)
    expected = grad(lambda at: plain(query, loss)(plainly_descended(plain(support, loss), at, steps)))(theta)
    assert_near(found, expected)
    first_order = slope(tasks[1], descended(tasks[0], theta, steps=steps, learning_rate=RATE))
    if steps:
        assert float((first_order - expected).norm()) > 1e-3 * float(expected.norm()), "the second order is not tested"


def test_many_images_are_dealt_into_parts_of_one_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, theta, support, query = objective("colour")
    monkeypatch.setattr("wardround.meta.inner._PIXELS", 2 * 17 * 20)
    tasks = task_loss(support, loss.each), task_loss(query, loss.each)
    assert [len(task) for task in tasks] == [4, 5]
    assert_near(slope(tasks[0], theta), grad(plain(support, loss))(theta), tolerance=1e-6)
    found = meta_gradient(*tasks, theta, steps=2, learning_rate=RATE)
    expected = grad(lambda at: plain(query, loss)(plainly_descended(plain(support, loss), at, 2)))(theta)
    assert_near(found, expected, tolerance=1e-6)


def test_a_quadratic_has_the_meta_gradient_of_its_closed_form() -> None:
    """1/2 |theta - c|^2 for both: after k steps theta - c is shrunk by (1 - alpha)^k, and so is its derivative."""
    centre, theta = torch.tensor([1.0, -2.0, 0.5]), torch.zeros(3)

    def bowl(at: Tensor) -> Tensor:
        return 0.5 * (at - centre).square().sum()

    found = meta_gradient([bowl], [bowl], theta, steps=3, learning_rate=0.1)
    torch.testing.assert_close(found, (theta - centre) * 0.9**6)


def test_a_loss_without_curvature_has_the_query_gradient() -> None:
    weights = torch.tensor([1.0, 2.0])
    found = meta_gradient(
        [lambda at: (at * weights).sum()], [lambda at: at.square().sum()], torch.ones(2), steps=2, learning_rate=0.1
    )
    torch.testing.assert_close(found, 2 * (1 - 0.2 * weights))


def test_results_do_not_depend_on_the_callers_gradient_mode() -> None:
    loss, theta, support, query = objective("linear")
    tasks = task_loss(support, loss.each), task_loss(query, loss.each)
    expected = meta_gradient(*tasks, theta, steps=2, learning_rate=RATE)
    with torch.no_grad():
        assert torch.equal(meta_gradient(*tasks, theta.requires_grad_(), steps=2, learning_rate=RATE), expected)


@given(
    n=st.integers(1, 3),
    channels=st.sampled_from([1, 2, 4]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_laid_out_changes_no_value(n: int, channels: int, height: int, width: int) -> None:
    x = torch.rand(n, channels, width, height).transpose(2, 3)
    found = laid_out(x)
    assert torch.equal(found, x)
    assert found.stride(1) == 1


def test_what_is_no_image_is_left_as_it_is() -> None:
    x = torch.rand(3, 4)
    assert laid_out(x) is x
