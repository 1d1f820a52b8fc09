"""No honest reply is ever cut, whatever the data do; and what may be sent is little more than that."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.chosen import UNITS, fitting
from tests.cohorts import SilentCohort
from tests.questions import answer_size
from tests.server.conftest import TASK
from torch import Tensor

from wardround.accountant import Calibration, rows_for
from wardround.algorithms.meta_sgd import MetaSgd
from wardround.config import Federation, ModelChoice, Privacy, Rounds
from wardround.errors import MessageError
from wardround.labels import LABEL_KINDS
from wardround.models import Model, Objective, build_model
from wardround.models.scaling import no_scaling
from wardround.questions import EpisodeGradient, Loss, Point
from wardround.reach import EXCESS, Reach
from wardround.schedule import QUESTIONS, RoundPlan, Schedule
from wardround.vector import Layout
from wardround.wire import ReplyHeader, RoundReply
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_server.bounds import BEYOND, Bounds

ASKED = [(name, unit) for name, units in UNITS.items() for unit in units]


def a_federation(name: str = "reptile", unit: str = "auto", **privacy: float) -> Federation:
    return Federation(
        name="small",
        task=TASK,
        model=ModelChoice(family="mlp", width=8),
        algorithm=fitting(name, tasks=unit, local_steps=3, local_learning_rate=0.5),
        privacy=Privacy.model_validate(privacy),
        rounds=Rounds(rounds=10, evaluate_every=5),
    )


def bounds_of(federation: Federation) -> tuple[Bounds, Schedule, Model]:
    schedule, model = Schedule.of(federation), federation.algorithm.extended(build_model(federation))
    return Bounds(federation, schedule, model), schedule, model


def asks(schedule: Schedule, question: str) -> RoundPlan:
    return next(plan for plan in schedule.rounds if plan.question == question)


def a_reply(plan: RoundPlan, answer: Tensor, declared: int = 100) -> RoundReply:
    header = ReplyHeader(run="spring", round=plan.number, hospital="anna", declared_patients=declared, epsilon=1.0)
    return RoundReply(header, np.asarray(answer.detach().float()))


@dataclass
class WorstCohort(SilentCohort):
    """As many patients as may be, all of whose clipped gradients point one way: along what the algorithm made of the
    noise so far, or against it.
    """

    privacy: Privacy
    calibration: Calibration
    declared: int
    generator: torch.Generator
    sign: float = 1.0
    before: Tensor | None = field(default=None)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        expected, patients = self.privacy.expected_patients(self.declared), int(EXCESS * self.declared)
        rate = expected / self.declared
        sampled = int((torch.rand(patients, generator=self.generator) < rate).sum()) if rate < 1 else patients
        return (
            self._answer(theta, sampled, self.calibration.noise_multiplier("gradient") * self.privacy.clip_norm)
            / expected
        )

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        episodes = self.privacy.episodes(self.declared)
        return (
            self._answer(
                theta, episodes, 2 * self.calibration.noise_multiplier("episode_gradient") * self.privacy.clip_norm
            )
            / episodes
        )

    def _answer(self, theta: Tensor, aligned: int, std: float) -> Tensor:
        noise = std * torch.randn(len(theta), generator=self.generator)
        along = torch.ones_like(theta) if self.before is None else self.before
        self.before = noise if self.before is None else self.before + noise
        signal: Tensor = self.sign * aligned * self.privacy.clip_norm * along / along.norm()
        return signal + noise


@pytest.mark.parametrize("declared, epsilon", [(1, 8.0), (12, 0.5), (130, 8.0)])
@pytest.mark.parametrize("name, unit", ASKED)
def test_no_honest_delta_is_cut_though_all_gradients_point_one_way(
    name: str, unit: str, declared: int, epsilon: float
) -> None:
    never_cut(name, unit, declared, 0, epsilon)


@pytest.mark.parametrize("declared, patients_per_step, epsilon", [(60, 16, 3.0), (5000, 32, 8.0)])
@pytest.mark.parametrize("name, unit", [("reptile", "hospitals"), ("maml", "episodes")])
def test_no_sample_is_so_large_that_it_is_cut(
    name: str, unit: str, declared: int, patients_per_step: int, epsilon: float
) -> None:
    never_cut(name, unit, declared, patients_per_step, epsilon)


def never_cut(name: str, unit: str, declared: int, patients_per_step: int, epsilon: float) -> None:
    federation = a_federation(name, unit, epsilon=epsilon, patients_per_step=patients_per_step)
    bound, schedule, model = bounds_of(federation)
    plan = asks(schedule, federation.algorithm.question)
    loss, theta = Objective(model, *no_scaling(model.scaling_size)), model.initial().detach()
    calibration, generator = bound.calibration("anna", declared), torch.Generator().manual_seed(0)
    for number in range(10):
        worst = WorstCohort(federation.privacy, calibration, declared, generator, (-1.0) ** number)
        delta = federation.algorithm.inner(theta, worst, loss)
        assert bound.cut(plan, a_reply(plan, delta, declared))[1] == 1.0


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("declared, patients", [(1, 1), (1, 0), (10, 15), (200, 290)])
def test_no_honest_sum_is_cut_whatever_the_features_are(declared: int, patients: int, several: bool) -> None:
    base = a_federation("fedavg" if several else "prototypical", epsilon=8.0).model_dump()
    base["task"]["labels"] = "several" if several else "one"
    base["rounds"]["evaluate_every"] = 0 if several else 5
    federation = Federation.model_validate(base)
    bound, schedule, model = bounds_of(federation)
    calibration = bound.calibration("anna", declared)
    x = torch.full((patients, model.scaling_size), 1e6)
    y = torch.ones(patients, 2) if several else torch.zeros(patients, dtype=torch.int64)
    labels = LABEL_KINDS[federation.task.labels]
    examples = Examples(z=x, y=y, patient=torch.arange(patients), summary=x, classes=2, labels=labels)
    loss, theta = Objective.of(federation, model, *no_scaling(model.scaling_size)), 1e3 * torch.ones(model.layout.size)
    for plan in (plan for plan in schedule.rounds if not plan.trains):
        for _ in range(6):
            asked = PrivateCohort(
                examples,
                privacy=federation.privacy,
                declared_patients=declared,
                reserved=rows_for(calibration, plan),
            )
            answer = QUESTIONS[plan.question].ask(asked, Point(federation, loss, theta))
            assert bound.cut(plan, a_reply(plan, answer, declared))[1] == 1.0


@pytest.mark.parametrize("declared, patients_per_step", [(60, 0), (500, 0), (500, 32)])
@pytest.mark.parametrize(
    "name, unit",
    [("reptile", "hospitals"), ("fedprox", "hospitals"), ("fomaml", "hospitals"), ("maml", "episodes")],
)
def test_the_bound_is_little_above_what_agreeing_patients_send(
    name: str, unit: str, declared: int, patients_per_step: int
) -> None:
    federation = a_federation(name, unit, epsilon=8.0, patients_per_step=patients_per_step)
    bound, schedule, model = bounds_of(federation)
    plan = asks(schedule, federation.algorithm.question)
    loss, theta = Objective(model, *no_scaling(model.scaling_size)), model.initial().detach()
    calibration, generator = bound.calibration("anna", declared), torch.Generator().manual_seed(1)
    lengths = []
    for _ in range(300):
        agreeing = WorstCohort(federation.privacy, calibration, declared, generator)
        lengths.append(float(federation.algorithm.inner(theta, agreeing, loss).norm()))
    longest = bound.parts(plan, "anna", declared)[0][1]
    assert longest < (2.5 if patients_per_step else 1.8) * float(np.quantile(lengths, 0.999))


@given(st.floats(0, 5), st.floats(0.01, 5), st.integers(1, 300), st.integers(1, 6), st.integers(0, 999))
def test_answers_stay_within_their_reach(signal: float, noise: float, size: int, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = torch.rand(count, generator=generator, dtype=torch.float64)
    draws = noise * torch.randn(count, 50, size, generator=generator, dtype=torch.float64)
    total = torch.zeros(50, size, dtype=torch.float64)
    so_far = torch.ones(50, size, dtype=torch.float64)
    for factor, draw in zip(factors, draws, strict=True):
        total += factor * (signal * so_far / so_far.norm(dim=1, keepdim=True) + draw)
        so_far = so_far + draw
    assert float(total.norm(dim=1).max()) <= Reach(signal, noise).sum(factors.tolist(), size)
    assert float(draws[0].abs().max()) <= Reach(0.0, noise).number(size)


def test_what_is_too_long_is_cut_to_the_bound_and_keeps_its_direction() -> None:
    bound, schedule, _ = bounds_of(a_federation())
    plan = asks(schedule, "gradient")
    ((size, longest),) = bound.parts(plan, "anna", 100)
    lie = torch.randn(size) * 100
    lie = lie / lie.norm() * 4 * longest
    cut, factor = bound.cut(plan, a_reply(plan, lie))
    assert factor == pytest.approx(0.25, rel=1e-5)
    torch.testing.assert_close(torch.from_numpy(cut.answer), lie / 4, rtol=1e-4, atol=1e-6)
    with pytest.raises(MessageError, match="length"):
        bound.cut(plan, a_reply(plan, lie * BEYOND))


@pytest.mark.parametrize("part", [0, 1, 2])
def test_a_lie_in_one_part_of_the_statistics_is_not_hidden_by_the_others(part: int) -> None:
    bound, schedule, model = bounds_of(a_federation())
    plan = schedule[0]
    sizes = [size for size, _ in bound.parts(plan, "anna", 100)]
    assert sum(sizes) == answer_size("statistics", model)
    longest = bound.parts(plan, "anna", 100)[part][1]
    answer = torch.zeros(sum(sizes))
    answer[sum(sizes[:part])] = 2 * longest
    cut, factor = bound.cut(plan, a_reply(plan, answer))
    assert factor == pytest.approx(0.5, rel=1e-5)
    assert float(np.linalg.norm(cut.answer)) == pytest.approx(longest, rel=1e-5)


def test_meta_sgd_bounds_start_and_rates_apart() -> None:
    federation = a_federation("meta-sgd", "hospitals")
    bound, schedule, model = bounds_of(federation)
    plan = asks(schedule, "gradient")
    (half, start), (other, _) = bound.parts(plan, "anna", 100)
    assert half == other == model.layout.size // 2
    answer = torch.zeros(2 * half)
    answer[0] = 3 * start
    assert bound.cut(plan, a_reply(plan, answer))[1] == pytest.approx(1 / 3, rel=1e-5)


def test_a_hospital_of_a_smaller_delta_may_make_more_noise() -> None:
    federation = a_federation()
    _, schedule, model = bounds_of(federation)
    plan = asks(schedule, "gradient")
    usual, own = (Bounds(federation, schedule, model, deltas) for deltas in ({}, {"anna": 1e-9}))
    assert own.parts(plan, "anna", 100)[0][1] > usual.parts(plan, "anna", 100)[0][1]
    assert own.parts(plan, "bert", 100) == usual.parts(plan, "bert", 100)


@given(st.integers(1, 5000), st.integers(0, 64), st.floats(0.1, 20))
def test_bounds_are_finite_and_positive_for_every_agreement(declared: int, per_step: int, clip_norm: float) -> None:
    expected = min(per_step or declared, declared)
    reach = Reach.of_sample(clip_norm, 1.0, declared=declared, expected=expected)
    assert 0 < reach.signal < math.inf
    assert reach.signal >= clip_norm


@pytest.mark.parametrize("signal, noise", [(0.0, 1.0), (1.5, 0.1), (1.0, 1.0)])
def test_meta_sgds_products_of_answers_stay_within_their_bound(signal: float, noise: float) -> None:
    choice = MetaSgd(local_steps=3, local_learning_rate=0.5)
    size, generator = 10, torch.Generator().manual_seed(0)
    _, (_, rates) = choice.longest(Layout((("own", (size,)), ("alpha", (size,)))), Reach(signal, noise))
    one_place = torch.eye(size)[0] * signal
    answers = one_place + noise * torch.randn(1000, choice.local_steps + 1, size, generator=generator)
    products = choice.local_learning_rate * answers[:, 0] * answers[:, 1:].sum(1)
    assert float(products.norm(dim=1).max()) < rates
