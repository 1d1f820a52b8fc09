"""Elementary arithmetic is right, and its bits depend on nothing but the operands."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.privacy.generated import CLASSES, MODELS, examples_of, objective
from torch import Tensor
from torch.func import grad

from wardround import elementary
from wardround.algorithms.discriminant import LENGTHS, Discriminant
from wardround.meta.class_sums import WithSums
from wardround.models import Objective

SHALLOW = [name for name, model in MODELS.items() if model.hidden != "deep"]


@given(st.lists(st.floats(-1e6, 1e6), max_size=70))
def test_a_sum_is_the_sum(values: list[float]) -> None:
    exact = math.fsum(values)
    found = float(elementary.total(torch.tensor(values, dtype=torch.float64)))
    assert found == pytest.approx(exact, rel=1e-12, abs=1e-12 * (1 + sum(map(abs, values))))


@pytest.mark.parametrize(
    ("ours", "theirs", "domain"),
    [
        (elementary.exp, torch.exp, (-690, 0)),
        (elementary.tanh, torch.tanh, (-30, 30)),
        (elementary.sigmoid, torch.sigmoid, (-40, 40)),
        (elementary.softmax, lambda x: torch.softmax(x, -1), (-300, 300)),
    ],
)
def test_functions_are_those_of_the_library(ours, theirs, domain: tuple[float, float]) -> None:  # type: ignore[no-untyped-def]
    x = torch.linspace(*domain, 4001, dtype=torch.float64)
    near_zero = torch.tensor([0.0, -0.0, -1e-300, -1e-9, -1e-3], dtype=torch.float64)
    for values in (x.view(-1, 1) + torch.zeros(3), near_zero):
        torch.testing.assert_close(ours(values.double()), theirs(values.double()), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("function", [elementary.exp, elementary.tanh, elementary.sigmoid])
def test_extremes_stay_in_their_range(function) -> None:  # type: ignore[no-untyped-def]
    x = torch.tensor([-math.inf, -1e300, -750.0, -0.0], dtype=torch.float64)
    assert function(x).isfinite().all()
    assert function(torch.tensor([math.nan], dtype=torch.float64)).isnan().all()


@given(size=st.integers(1, 40), offset=st.integers(0, 9), seed=st.integers(0, 99), threads=st.sampled_from([1, 2, 5]))
def test_place_company_and_threads_change_no_bit(size: int, offset: int, seed: int, threads: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, w, b = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((50, size), (3, size), (3,)))

    def answer(rows: Tensor) -> Tensor:
        return elementary.softmax(elementary.tanh(elementary.linear(rows, w, b)))

    whole = answer(x)
    store = torch.empty(51 * size + offset, dtype=torch.float64)
    moved = store[offset : offset + 50 * size].view(50, size).copy_(x)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for row in (0, 7, 49):
            assert torch.equal(answer(moved[row : row + 1])[0], whole[row])
            assert torch.equal(answer(moved[row:])[0], whole[row])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("findings", [False, True])
@pytest.mark.parametrize("name", SHALLOW)
def test_gradients_are_those_of_autograd(name: str, findings: bool) -> None:
    loss, examples = objective(name, findings), examples_of([1] * 9, model=name, findings=findings)
    theta = MODELS[name].initial() + 0.3 * torch.randn(MODELS[name].layout.size)
    found = loss.gradients(theta, examples.z, examples.y)
    for row in range(9):
        plain = grad(loss)(theta, examples.z[row : row + 1], examples.y[row : row + 1])
        torch.testing.assert_close(found[row].float(), plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SHALLOW)
def test_so_are_those_of_the_sums_that_ride_along(name: str) -> None:
    model = Discriminant().extended(MODELS[name])
    plain = objective(name)
    loss = WithSums(Objective(model, plain.shift, plain.scale, plain.log_prior), LENGTHS)
    examples = examples_of([1] * 9, model=name)
    theta = model.initial() + 0.3 * torch.randn(model.layout.size)
    assert loss.elementary
    found = loss.gradients(theta, examples.z, examples.y)
    for row in range(9):
        alone = grad(loss)(theta, examples.z[row : row + 1], examples.y[row : row + 1])
        torch.testing.assert_close(found[row].float(), alone, rtol=1e-4, atol=1e-5)
    assert found.shape == (9, len(theta)) and plain.classes == CLASSES
