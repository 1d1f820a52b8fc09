"""Weights that are learned beside a model: the meta-gradient by finite differences, tables, and what they are for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.privacy.generated import MODELS, examples_of
from tests.client.privacy.generated import objective as generated
from tests.cohorts import SilentCohort
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy, one_hot

from wardround.algorithms import Pooled
from wardround.algorithms.fedavg import FedAvg
from wardround.algorithms.meta_weight import EXPONENT, KNOTS, MetaWeight, Tabled, near, nearest
from wardround.meta.weighed import QUERY, RAREST, SHARE, Weighed
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss, Shots

FEATURES, CLASSES = 6, 3
PRIOR = torch.tensor([0.7, 0.2, 0.1]).log()
METHOD = MetaWeight(local_learning_rate=1.0)
SHALLOW = [name for name, model in MODELS.items() if model.hidden != "deep"]


def weighed(log_prior: Tensor | None = PRIOR) -> Objective:
    return Objective(METHOD.extended(Tabular.logistic(FEATURES, CLASSES)), *no_scaling(FEATURES), log_prior)


def patients(seed: int, n: int = 400, wrong: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """x, the label as it is known, and as it is: so many are of another class, evenly."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % CLASSES
    x = torch.randn(n, FEATURES, generator=generator) + 2.5 * torch.eye(CLASSES, FEATURES)[truth]
    other = (truth + torch.randint(1, CLASSES, (n,), generator=generator)) % CLASSES
    return x, torch.where(torch.rand(n, generator=generator) < wrong, other, truth), truth


def somewhere(loss: Objective, seed: int = 0) -> Tensor:
    """A theta with a head, a direction, and a table that is not flat."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(loss.model.layout.size, generator=generator)
    return loss.with_extras(theta, weights=torch.linspace(0.2, 1.0, len(KNOTS)))


class Mean(SilentCohort):
    """Answers with the mean vector of its patients, who have one image each."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        gradient: Tensor = grad(loss)(theta, self.x, self.y)
        return gradient


def probability(loss: Objective, own: Tensor, x: Tensor, y: Tensor) -> Tensor:
    weight, bias = own[:-CLASSES].view(CLASSES, -1), own[-CLASSES:]
    f = x / FEATURES**0.5
    shown: Tensor = (f @ weight.T + bias).softmax(1) * one_hot(y, CLASSES)
    return shown.sum(1)


def test_what_a_patient_adds_for_the_table_is_the_meta_gradient() -> None:
    """By central differences of the query's loss after one step, in each knot, at the query's true gradient."""
    loss, (x, y, _), eta, h = weighed(), patients(0, n=40, wrong=0.3), 1e-4, 1e-2
    theta = somewhere(loss).double()
    own, rare = loss.own(theta), (1 / (CLASSES * PRIOR.double().exp())).clamp_max(RAREST)
    x64 = x.double()

    def query(at: Tensor) -> Tensor:
        return (rare[y] * (1 - probability(loss, at, x64, y))).mean()

    def stepped(table: Tensor) -> Tensor:
        """theta' for a table, the weights read by interpolation."""
        right = probability(loss, own, x64, y).detach()
        low = torch.bucketize(right, torch.tensor(KNOTS[1:-1], dtype=torch.float64), right=True)
        knots = torch.tensor(KNOTS, dtype=torch.float64)
        share = (right - knots[low]) / (knots[low + 1] - knots[low])
        w = (1 - share) * table[low] + share * table[low + 1]

        def training(at: Tensor) -> Tensor:
            weight, bias = at[:-CLASSES].view(CLASSES, -1), at[-CLASSES:]
            logits = x64 / FEATURES**0.5 @ weight.T + bias + PRIOR.double()
            return (w * cross_entropy(logits, y, reduction="none")).mean()

        after: Tensor = own - eta * grad(training)(own)
        return after

    slope = grad(query)(own)
    theta = loss.with_extras(theta, query=slope)
    table = loss.extras(theta)["weights"]
    found = loss.extras(Tabled(loss).gradients(theta, x, y).mean(0))["weights"]
    for knot in range(len(KNOTS)):
        step = h * one_hot(torch.tensor(knot), len(KNOTS)).double()
        difference = (query(stepped(table + step)) - query(stepped(table - step))) / (2 * h)
        # u has length 1: the query's gradient over its own length.
        expected = SHARE * difference / (eta * slope.norm())
        torch.testing.assert_close(found[knot], expected, rtol=2e-3, atol=1e-7)


def test_the_query_is_the_gradient_of_a_loss_that_wrong_labels_do_not_mislead() -> None:
    loss, (x, y, _) = weighed(), patients(1, n=9)
    theta = somewhere(loss)
    vectors, size = Tabled(loss).gradients(theta, x, y), loss.own(theta).numel()
    for row in range(9):
        one = slice(row, row + 1)
        rare = min(RAREST, 1 / (CLASSES * float(PRIOR[y[row]].exp())))
        slope = grad(lambda at, one=one: probability(loss, at, x[one], y[one]).sum())(loss.own(theta))
        expected = -rare * slope
        expected = expected * (QUERY / expected.norm()).clamp_max(1)
        torch.testing.assert_close(vectors[row, size : 2 * size].float(), expected, rtol=1e-4, atol=1e-5)
    # Whatever the probabilities, over all labels that an image could have been given the losses add up to classes - 1.
    p = torch.rand(5, CLASSES).softmax(1)
    assert (1 - p).sum(1).tolist() == pytest.approx([CLASSES - 1] * 5)


@pytest.mark.parametrize("name", SHALLOW)
def test_both_ways_give_one_vector(name: str) -> None:
    plain = generated(name)
    loss = replace(plain, model=METHOD.extended(plain.model))
    examples = examples_of([1] * 9, model=name)
    theta = loss.with_extras(
        loss.model.initial() + 0.3 * torch.randn(loss.model.layout.size), weights=torch.linspace(0.2, 1.0, len(KNOTS))
    )
    tabled = Tabled(loss)
    assert tabled.elementary
    exact = tabled.gradients(theta, examples.z, examples.y)
    torch.testing.assert_close(tabled.differentiated(theta, examples.z, examples.y), exact, rtol=1e-4, atol=1e-5)
    mean = grad(tabled)(theta, examples.z, examples.y)
    torch.testing.assert_close(mean, exact.mean(0).float(), rtol=1e-4, atol=1e-5)


def test_a_table_of_ones_weighs_as_fedavg_does() -> None:
    loss, plain = weighed(), Objective(Tabular.logistic(FEATURES, CLASSES), *no_scaling(FEATURES), PRIOR)
    cohort = Mean(*patients(2)[:2])
    theta = loss.model.initial()
    moved = METHOD.model_copy(update={"local_steps": 3}).inner(theta, cohort, loss)
    expected = FedAvg(local_steps=3).inner(plain.model.initial(), cohort, plain)
    torch.testing.assert_close(loss.own(moved), expected, rtol=1e-4, atol=1e-6)


def test_the_generalized_cross_entropy_is_one_of_the_tables() -> None:
    """At a knot p^q times the slope of the cross entropy IS the slope of (1 - p^q) / q."""
    method = METHOD.model_copy(update={"table": "generalized"})
    loss = replace(weighed(None), model=method.extended(Tabular.logistic(FEATURES, CLASSES)))
    table = loss.extras(loss.model.initial())["weights"]
    assert table.tolist() == pytest.approx([knot**EXPONENT for knot in KNOTS])
    weight = near(torch.tensor(KNOTS, dtype=torch.float64)) @ table.double()
    assert weight.tolist() == pytest.approx([knot**EXPONENT for knot in KNOTS], rel=1e-6)
    optimizer = Sgd(learning_rate=1.0, momentum=0.0)
    theta = loss.model.initial()
    delta = method.inner(theta, Mean(*patients(3)[:2]), loss)
    _, after = method.outer(method.start(theta, loss, optimizer), theta, Pooled(delta), loss, optimizer)
    assert torch.equal(loss.extras(after)["weights"], table)


@settings(max_examples=200)
@given(st.lists(st.floats(width=32), min_size=2, max_size=9))
def test_a_table_never_falls_and_ends_at_one(values: list[float]) -> None:
    found = nearest(torch.tensor(values))
    assert bool((found.diff() >= 0).all()) and float(found[-1]) == 1.0 and float(found[0]) >= 0
    torch.testing.assert_close(nearest(found), found)


def learned(wrong: float, method: MetaWeight | FedAvg, rounds: int = 25) -> tuple[Tensor, Objective, float]:
    """Two hospitals, one of which has so many wrong labels -> theta, and how many others are recognised."""
    model = method.extended(Tabular.logistic(FEATURES, CLASSES))
    loss = Objective(model, *no_scaling(FEATURES))
    careful, careless = Mean(*patients(4)[:2]), Mean(*patients(5, wrong=wrong)[:2])
    optimizer = Sgd(learning_rate=2.0, momentum=0.8)
    theta = model.initial()
    state = method.start(theta, loss, optimizer)
    for _ in range(rounds):
        delta = torch.stack([method.inner(theta, each, loss) for each in (careful, careless)]).mean(0)
        state, theta = method.outer(state, theta, Pooled(delta), loss, optimizer)
    x, _, truth = patients(6, n=2000)
    return theta, loss, float((loss.logits(theta, x).argmax(1) == truth).float().mean())


def test_what_fits_badly_weighs_less_where_labels_are_wrong() -> None:
    """Six of ten labels of one hospital: recognised as well as if they were right, which FedAvg is not."""
    clean, wrong = learned(0.0, METHOD), learned(0.6, METHOD)
    assert wrong[1].extras(wrong[0])["weights"][:3].max() < 0.6
    assert wrong[2] > learned(0.6, FedAvg())[2] + 0.005
    assert clean[2] > learned(0.0, FedAvg())[2] - 0.005


def test_at_home_a_wrong_label_weighs_less_where_the_federation_found_that() -> None:
    """Ten patients, three of whose labels are wrong; with a table of ones it is FedAvg's fine-tuning."""
    theta, loss, _ = learned(0.0, METHOD)
    x, y, truth = patients(8, n=10)
    y = torch.where(torch.arange(10) < 3, (truth + 1) % CLASSES, truth)
    support = Shots(x, y, torch.arange(10), torch.ones(10))
    flat = loss.with_extras(theta, weights=torch.ones(len(KNOTS)))
    plain = FedAvg().adapt(loss.own(theta), support, replace(loss, model=Tabular.logistic(FEATURES, CLASSES)))
    torch.testing.assert_close(loss.own(METHOD.adapt(flat, support, loss)["theta"]), plain["theta"])
    steep = loss.with_extras(theta, weights=torch.tensor(KNOTS))
    x, _, truth = patients(9, n=1000)

    def recognised(at: Tensor) -> float:
        fitted = METHOD.model_copy(update={"adapt_pull": 0.1}).adapt(at, support, loss)
        return float((METHOD.predict(fitted, x, loss).argmax(1) == truth).float().mean())

    assert recognised(steep) > recognised(flat)


def test_a_direction_that_means_nothing_harms_nobody() -> None:
    """Zero, tiny or endless: a patient's vector is finite, or it is not and adds nothing."""
    loss, (x, y, _) = weighed(), patients(7, n=4)
    for value in (0.0, 1e-45, 1e6, -1e38):
        theta = loss.with_extras(somewhere(loss), query=torch.full((loss.own(loss.model.initial()).numel(),), value))
        assert bool(Tabled(loss).gradients(theta, x, y).isfinite().all())


def test_a_method_says_how_it_weighs() -> None:
    with pytest.raises(NotImplementedError):
        Weighed(weighed()).basis(torch.ones(1), torch.zeros(1, dtype=torch.int64))
