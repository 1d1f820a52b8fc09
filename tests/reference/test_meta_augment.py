"""Weights of an image's variants: the meta-gradient by finite differences, what is allowed, and what it is for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.client.privacy.generated import MODELS, examples_of
from tests.client.privacy.generated import objective as generated
from tests.cohorts import SilentCohort
from torch import Tensor
from torch.func import grad
from torch.nn.functional import cross_entropy, one_hot

from wardround.algorithms import Pooled
from wardround.algorithms.fedavg import FedAvg
from wardround.algorithms.meta_augment import MetaAugment, Varied, alike_in
from wardround.augment import variants
from wardround.meta.weighed import QUERY, SHARE
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.models.tabular import Tabular
from wardround.optimizers.sgd import Sgd
from wardround.questions import Loss, Shots
from wardround.task import MOST_VARIANTS, Augmentation

FEATURES, CLASSES = 6, 3
AUGMENT: tuple[Augmentation, ...] = ("flip-horizontal", "intensity")
VARIANTS = 6
# Of each variant, what made it.
MADE_BY: tuple[tuple[Augmentation, ...], ...] = (
    (),
    ("intensity",),
    ("intensity",),
    ("flip-horizontal",),
    AUGMENT,
    AUGMENT,
)
METHOD = MetaAugment(local_learning_rate=1.0)
SHALLOW = [name for name, model in MODELS.items() if model.hidden != "deep"]


def varied(augment: tuple[Augmentation, ...] = AUGMENT) -> Objective:
    model = METHOD.extended(Tabular.logistic(FEATURES, CLASSES))
    return Objective(model, *no_scaling(FEATURES), augment=augment)


def patients(seed: int, n: int, misleading: Augmentation | None = None) -> tuple[Tensor, Tensor]:
    """x [n variants, FEATURES] and y: variants lie around their image, those by `misleading` where another class is."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.arange(n) % CLASSES
    plain = torch.randn(n, FEATURES, generator=generator) + 2.5 * torch.eye(CLASSES, FEATURES)[truth]
    moved = 2.5 * (torch.eye(CLASSES, FEATURES)[(truth + 1) % CLASSES] - torch.eye(CLASSES, FEATURES)[truth])
    rows = [plain + (moved if misleading in made else 0.3 * torch.randn(n, FEATURES)) for made in MADE_BY]
    rows[0] = plain
    return torch.stack(rows, 1).flatten(0, 1), truth.repeat_interleave(VARIANTS)


class Mean(SilentCohort):
    """Answers with the mean vector of its patients, who have one image each."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        gradient: Tensor = grad(loss)(theta, self.x, self.y)
        return gradient


def test_variants_that_the_same_changes_made_are_alike() -> None:
    alike = alike_in(AUGMENT)
    expected = [[(one == other) / MADE_BY.count(one) for other in MADE_BY] for one in MADE_BY]
    torch.testing.assert_close(alike, torch.tensor(expected))
    x = torch.rand(1, 1, 8, 8)
    order = x.flatten().argsort()  # a tone changes no order
    flipped = [torch.equal(each.flip(-1).flatten().argsort(), order) for each in variants(x, AUGMENT)]
    assert flipped == ["flip-horizontal" in made for made in MADE_BY]
    assert alike_in(()).tolist() == [[1.0]]


def test_what_a_patient_adds_for_the_weights_is_the_meta_gradient() -> None:
    """By central differences of the query's loss on images as they are, after one step on all variants."""
    loss, (x, y), eta, h = varied(), patients(0, 8), 1e-4, 1e-2
    generator = torch.Generator().manual_seed(1)
    phi = torch.linspace(0.4, 1.6, MOST_VARIANTS).double()
    theta = loss.with_extras(torch.randn(loss.model.layout.size, generator=generator), weights=phi.float()).double()
    own, x64 = loss.own(theta), x.double()

    def logits(at: Tensor, rows: Tensor) -> Tensor:
        found: Tensor = rows / FEATURES**0.5 @ at[:-CLASSES].view(CLASSES, -1).T + at[-CLASSES:]
        return found

    def query(at: Tensor) -> Tensor:
        right = (logits(at, x64[::VARIANTS]).softmax(1) * one_hot(y[::VARIANTS], CLASSES)).sum(1)
        return (1 - right).mean()

    def stepped(phi: Tensor) -> Tensor:
        w = phi[:VARIANTS].repeat(len(x) // VARIANTS)
        slope = grad(lambda at: (w * cross_entropy(logits(at, x64), y, reduction="none")).mean())(own)
        after: Tensor = own - eta * slope
        return after

    slope = grad(query)(own)
    found = Varied(loss).gradients(loss.with_extras(theta, query=slope), x, y).mean(0)
    for place in range(MOST_VARIANTS):
        step = h * one_hot(torch.tensor(place), MOST_VARIANTS).double()
        difference = (query(stepped(phi + step)) - query(stepped(phi - step))) / (2 * h)
        expected = SHARE * difference / (eta * slope.norm())
        torch.testing.assert_close(loss.extras(found)["weights"][place], expected, rtol=2e-3, atol=1e-7)
    asked = loss.extras(found)["query"].double()
    each = [grad(query_of)(own) for query_of in (_one(logits, x64, y, row) for row in range(0, len(x), VARIANTS))]
    short = [one * (QUERY / one.norm()).clamp_max(1) for one in each]
    torch.testing.assert_close(asked, torch.stack(short).mean(0), rtol=1e-4, atol=1e-6)


def _one(logits, x: Tensor, y: Tensor, row: int):  # type: ignore[no-untyped-def]
    return lambda at: 1 - logits(at, x[row : row + 1]).softmax(1)[0, y[row]]


@pytest.mark.parametrize("name", SHALLOW)
def test_both_ways_give_one_vector(name: str) -> None:
    plain = generated(name)
    loss = replace(plain, model=METHOD.extended(plain.model), augment=("shift",))
    examples = examples_of([1] * 10, model=name)
    weights = torch.linspace(0.2, 1.8, MOST_VARIANTS)
    theta = loss.with_extras(loss.model.initial() + 0.3 * torch.randn(loss.model.layout.size), weights=weights)
    exact = Varied(loss).gradients(theta, examples.z, examples.y)
    torch.testing.assert_close(Varied(loss).differentiated(theta, examples.z, examples.y), exact, rtol=1e-4, atol=1e-5)
    mean = grad(Varied(loss))(theta, examples.z, examples.y)
    torch.testing.assert_close(mean, exact.mean(0).float(), rtol=1e-4, atol=1e-5)


def test_equal_weights_are_fedavg_s_multiplicity() -> None:
    loss, plain = varied(), Objective(Tabular.logistic(FEATURES, CLASSES), *no_scaling(FEATURES))
    cohort = Mean(*patients(2, 60))
    moved = METHOD.inner(loss.model.initial(), cohort, loss)
    expected = FedAvg().inner(plain.model.initial(), cohort, plain)
    torch.testing.assert_close(loss.own(moved), expected, rtol=1e-4, atol=1e-6)


FINITE = st.floats(-(2.0**100), 2.0**100, width=32)


@given(st.lists(st.lists(FINITE, min_size=MOST_VARIANTS, max_size=MOST_VARIANTS), min_size=1, max_size=4))
def test_weights_are_never_below_zero_and_their_mean_over_variants_is_one(gains: list[list[float]]) -> None:
    for loss, number in ((varied(), VARIANTS), (varied(()), 1)):
        state = METHOD.start(loss.model.initial(), loss, Sgd(learning_rate=1.0))
        weights = METHOD.equal()
        for gain in gains:
            state, weights = METHOD.learned(state, weights, torch.tensor(gain), loss)
            assert bool((weights >= 0).all())
            assert float(weights[:number].mean()) == pytest.approx(1, rel=1e-4)


def learned(method: MetaAugment | FedAvg, misleading: Augmentation | None) -> tuple[Tensor, Objective, float]:
    """Theta after 25 rounds at two hospitals, and how many others are recognised as they are."""
    model = method.extended(Tabular.logistic(FEATURES, CLASSES))
    loss = Objective(model, *no_scaling(FEATURES), augment=AUGMENT)
    cohorts = [Mean(*patients(seed, 150, misleading)) for seed in (4, 5)]
    optimizer = Sgd(learning_rate=2.0, momentum=0.8)
    theta = model.initial()
    state = method.start(theta, loss, optimizer)
    for _ in range(25):
        delta = torch.stack([method.inner(theta, each, loss) for each in cohorts]).mean(0)
        state, theta = method.outer(state, theta, Pooled(delta), loss, optimizer)
    x, y = (each[::VARIANTS] for each in patients(6, 1000))
    return theta, loss, float((loss.logits(theta, x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("misleading", AUGMENT)
def test_a_change_that_misleads_weighs_little_and_one_that_does_not_weighs_on(misleading: Augmentation) -> None:
    theta, loss, recognised = learned(METHOD, misleading)
    weights = loss.extras(theta)["weights"][:VARIANTS].tolist()
    misled = [weight for weight, made in zip(weights, MADE_BY, strict=True) if misleading in made]
    assert max(misled) < 0.3 < min(weight for weight in weights if weight not in misled)
    assert recognised > learned(FedAvg(), misleading)[2] + 0.05
    assert learned(METHOD, None)[2] > learned(FedAvg(), None)[2] - 0.01


def test_at_home_variants_weigh_what_was_learned() -> None:
    """With weights of nothing but the image as it is, the support without variants; with equal ones, FedAvg's."""
    loss, (x, y) = varied(), patients(7, 9)
    patient = torch.arange(9).repeat_interleave(VARIANTS)
    support = Shots(x, y, patient, torch.full((len(x),), 1 / VARIANTS))
    start = loss.model.initial()
    alone = loss.with_extras(start, weights=one_hot(torch.tensor(0), MOST_VARIANTS).float())
    plain = Shots(x[::VARIANTS], y[::VARIANTS], patient[::VARIANTS], torch.ones(9))
    expected = FedAvg().adapt(start, plain, loss)["theta"]
    torch.testing.assert_close(loss.own(METHOD.adapt(alone, support, loss)["theta"]), loss.own(expected))
    equal = METHOD.adapt(start, support, loss)["theta"]
    torch.testing.assert_close(equal, FedAvg().adapt(start, support, loss)["theta"])
    for strange in (torch.full((MOST_VARIANTS,), float("nan")), torch.zeros(MOST_VARIANTS)):
        fitted = METHOD.adapt(loss.with_extras(start, weights=strange), support, loss)
        torch.testing.assert_close(loss.own(fitted["theta"]), loss.own(equal))
