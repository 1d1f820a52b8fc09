"""A coordinator that sends the worst theta within the policy, to every method: nothing raises, answers are finite.

An exception would be an answer without noise ("ridge_oracle": is there a patient with this value?), and so would be a
number that is not finite, or a method that goes on for ever for some patients.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import UNITS, fitting
from tests.client.privacy.generated import Identity
from tests.cohorts import SilentCohort
from tests.questions import agreement_of
from torch import Tensor

from wardround.accountant import Answers
from wardround.algorithms import ALGORITHMS, Algorithm
from wardround.config import Privacy
from wardround.meta.total import positive, solved
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.head import EncoderHead
from wardround.models.tabular import Tabular
from wardround.questions import EpisodeGradient, Loss, Point, Shots
from wardround.schedule import QUESTIONS
from wardround_client.cohort.examples import Examples
from wardround_client.config import Policy
from wardround_client.privacy.private_cohort import PrivateCohort

CLASSES, COLUMNS, DECLARED = 3, 4, 20
POLICY = Policy()
MODELS: dict[str, Model] = {
    "mlp": Tabular.mlp(COLUMNS, CLASSES, 3),
    "conv4": Conv4.of(1, 2, CLASSES),
    "embedded": EncoderHead.of(Identity(COLUMNS), CLASSES, embedding=3),
}
METHODS = [
    (name, unit, kind)
    for name in ALGORITHMS.built_in
    for unit in UNITS[name]
    for kind in MODELS
    if (unit, kind) != ("stand-ins", "conv4") and (name, kind) != ("fedrep", "conv4")
]
# Solve a system, or raise e to what is learned beside the model.
TAKING_RISKS = [
    "ridge",
    "svm",
    "matching",
    "siamese",
    "relation",
    "prototypical",
    "learned-optimizer",
    "anil",
    "attentive",
]
WORST = [0.0, 1.0, -1.0, 1e6, -1e6, 1e-45, -1e-45, 1e-38, 1e-6, 88.8, -104.0, 1e3, 5e5]
Extreme = st.sampled_from(WORST)


@st.composite
def thetas(draw: st.DrawFn, model: Model) -> Tensor:
    """The start, but for some tensors: of one number, of numbers that cancel, of sizes that no float32 adds up."""
    parts = model.layout.unpack(model.initial())
    for name, start in parts.items():
        flat = torch.zeros(start.numel())
        match draw(st.sampled_from(["start", "one", "cancelling", "mixed", "lonely"])):
            case "start":
                flat = start.flatten()
            case "one":
                flat[:] = draw(Extreme)
            case "cancelling":
                flat[:] = draw(Extreme)
                flat[1::2] *= -1
            case "mixed":
                seed = draw(st.integers(0, 99))
                flat = torch.tensor(WORST)[
                    torch.randint(len(WORST), flat.shape, generator=torch.Generator().manual_seed(seed))
                ]
            case "lonely":
                flat[draw(st.integers(0, len(flat) - 1))] = draw(Extreme)
        parts[name] = flat.view(start.shape)
    theta = model.layout.pack(parts)
    assert theta.abs().max() <= POLICY.greatest_magnitude
    return theta


@st.composite
def choices(draw: st.DrawFn, name: str, unit: str) -> Algorithm:
    """Settings at the ends of the policy."""
    rate = draw(st.sampled_from([POLICY.least_local_learning_rate, 1.0, POLICY.greatest_local_learning_rate]))
    penalty = draw(st.sampled_from([POLICY.least_regularization, 1.0, POLICY.greatest_regularization]))
    return fitting(
        name,
        tasks=unit,
        local_learning_rate=rate,
        regularization=penalty,
        local_steps=draw(st.integers(1, 3)),
        local_batches=draw(st.integers(1, 3)),
        proximal=draw(st.sampled_from([0.0, min(1.9 / rate, 1e6) if name == "fedprox" else POLICY.greatest_proximal])),
        pull=draw(st.sampled_from([0.0, min(1 / rate, 1e6)])),
        adapt_steps=2,
    )


@st.composite
def patients(draw: st.DrawFn, shape: tuple[int, ...], count: int, *, within: float = 3e38) -> tuple[Tensor, Tensor]:
    """x [count, ...] and y: usual patients, all alike, all zeros, of one class, or one alone who has a value."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x, y = torch.randn(count, *shape, generator=generator), torch.arange(count) % CLASSES
    match draw(st.sampled_from(["usual", "alike", "zero", "alone", "far"])):
        case "alike":
            x[:] = x[:1].clone()
        case "zero":
            x[:] = 0
        case "alone":
            x[:] = 0
            x.view(count, -1)[draw(st.integers(0, count - 1)), 0] = draw(st.sampled_from([1.0, 1e-45, -within]))
        case "far":
            x *= draw(st.sampled_from([10.0, 1e-30, within / 10]))
    return x, y * draw(st.integers(0, 1))


def shots(x: Tensor, y: Tensor) -> Shots:
    return Shots(x, y, torch.arange(len(x)), torch.ones(len(x)))


@dataclass
class Asked(SilentCohort):
    """Answers as they are, so that what a method makes of patients is seen before anything is clipped."""

    support: Shots
    query: Shots
    found: list[Tensor]

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        return self._seen(gradient(theta, self.support, self.query))

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        return self._seen(torch.func.grad(loss)(theta, self.query.x, self.query.y))

    def _seen(self, answer: Tensor) -> Tensor:
        self.found.append(answer)
        return torch.nn.functional.normalize(torch.nan_to_num(answer, 0.0, 0.0, 0.0), dim=0)


def made(name: str, choice: Algorithm, kind: str = "mlp") -> Model:
    return choice.extended(MODELS[kind])


def objective(model: Model, scale: float = 1.0) -> Objective:
    return Objective(model, torch.zeros(model.scaling_size), torch.full((model.scaling_size,), scale))


def shape_of(kind: str) -> tuple[int, ...]:
    return (1, 8, 8) if kind == "conv4" else (COLUMNS,)


@pytest.mark.parametrize(("name", "unit", "kind"), METHODS)
@settings(max_examples=15)
@given(data=st.data())
def test_no_method_raises_whatever_theta_and_patients_are(name: str, unit: str, kind: str, data: st.DataObject) -> None:
    choice = data.draw(choices(name, unit))
    model = made(name, choice, kind)
    theta = data.draw(thetas(model))
    support, query = (shots(*data.draw(patients(shape_of(kind), count))) for count in (4, 2))
    asked = Asked(support, query, [])
    loss = objective(model, data.draw(st.sampled_from([1e-6, 1.0, 1e6])))
    delta = choice.inner(theta, asked, loss)
    assert delta.shape == theta.shape
    assert torch.isfinite(delta).all()
    assert len(asked.found) == choice.answers_per_round
    if choice.remembers:
        delta = choice.inner_after(data.draw(thetas(model)), theta, asked, loss)
        assert torch.isfinite(delta).all()


@pytest.mark.parametrize("name", TAKING_RISKS)
@settings(max_examples=30)
@given(data=st.data())
def test_a_system_that_has_no_solution_still_gives_numbers(name: str, data: st.DataObject) -> None:
    """Not by the cohort's mending, which sets what is not finite to zero: the method itself. Of patients as they are,
    and a theta up to the policy's end; at a learning rate at which steps do not explode.
    """
    choice = data.draw(choices(name, "episodes")).model_copy(update={"local_learning_rate": 1.0})
    model = made(name, choice)
    theta = data.draw(thetas(model))
    support, query = (shots(*data.draw(patients((COLUMNS,), count, within=100.0))) for count in (4, 2))
    asked = Asked(support, query, [])
    choice.inner(theta, asked, objective(model))
    assert all(torch.isfinite(each).all() for each in asked.found)


@pytest.mark.parametrize(("name", "unit"), [(name, unit) for name, unit, kind in METHODS if kind == "mlp"])
@settings(max_examples=8)
@given(data=st.data())
def test_a_private_cohort_answers_with_finite_numbers(name: str, unit: str, data: st.DataObject) -> None:
    choice = data.draw(choices(name, unit))
    model = made(name, choice)
    theta = data.draw(thetas(model))
    present = data.draw(st.sampled_from([0, 1, 2, 12]))
    x, y = data.draw(patients((COLUMNS,), max(present, 1)))
    loss = objective(model, data.draw(st.sampled_from([1e-6, 1.0])))
    cohort = private(Examples(x[:present], y[:present], torch.arange(present), x[:present], CLASSES))
    answers = [choice.inner(theta, cohort, loss)]
    agreement = agreement_of(model).model_copy(update={"algorithm": choice})
    sums = (QUESTIONS[name] for name in ("confusion", "class_means", "statistics"))
    answers += [question.ask(cohort, Point(agreement, loss, theta)) for question in sums]
    assert all(torch.isfinite(answer).all() for answer in answers)


def private(examples: Examples) -> PrivateCohort:
    return PrivateCohort(
        examples,
        privacy=Privacy(patients_per_episode=4),
        declared_patients=DECLARED,
        reserved=(Answers(1.0, 1.0, 100),),
    )


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
@settings(max_examples=8)
@given(data=st.data())
def test_at_home_a_hostile_model_raises_nothing_either(name: str, data: st.DataObject) -> None:
    choice = data.draw(choices(name, UNITS[name][0]))
    model = made(name, choice)
    theta = data.draw(thetas(model))
    loss = objective(model)
    support, query = (shots(*data.draw(patients((COLUMNS,), count, within=100.0))) for count in (4, 2))
    for fitted in (choice.unadapted(theta, loss), choice.adapt(theta, support, loss)):
        assert choice.predict(fitted, query.x, loss).shape == (2, CLASSES)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=5))
def test_a_learned_logarithm_gives_a_positive_number_without_end(values: list[float]) -> None:
    logarithm = torch.tensor(values).nan_to_num(0.0).requires_grad_()
    found = positive(logarithm)
    assert (found > 0).all()
    assert torch.isfinite(found).all()
    (slope,) = torch.autograd.grad(found.sum(), logarithm)
    assert torch.isfinite(slope).all()
    usual = logarithm.abs() < 30
    assert torch.equal(found[usual], logarithm.exp()[usual])


@given(
    rank=st.integers(0, 4),
    size=st.sampled_from([0.0, 1e-30, 1e-9, 1.0, 1e9, 1e30]),
    penalty=st.sampled_from([1e-13, 1e-4, 1.0, 1e13]),
    seed=st.integers(0, 99),
)
def test_a_singular_gram_matrix_is_solved_with_a_finite_slope(
    rank: int, size: float, penalty: float, seed: int
) -> None:
    x = torch.randn(4, rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * size**0.5
    x.requires_grad_()
    found = solved(x @ x.T, torch.tensor(penalty), torch.eye(4, dtype=torch.float64))
    assert torch.isfinite(found).all()
    if rank:
        (slope,) = torch.autograd.grad(found.sum(), x)
        assert torch.isfinite(slope).all()
    if size <= 1 <= penalty:
        exact = torch.linalg.inv(x @ x.T + penalty * torch.eye(4))
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-12)
