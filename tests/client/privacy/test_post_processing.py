"""Every algorithm, on every model: what it asks is bounded, what it sends is made of the answers alone."""

from __future__ import annotations

import contextlib
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import UNITS
from tests.chosen import fitting as chosen_fitting
from tests.client.privacy.generated import (
    CLASSES,
    MODELS,
    cohort,
    coupled,
    examples_of,
    hospitals,
    objective,
    without,
)
from tests.cohorts import SilentCohort
from torch import Tensor

from wardround.algorithms import Algorithm
from wardround.config import Privacy
from wardround.errors import ConfigError
from wardround.models import Objective
from wardround.questions import EpisodeGradient, FewShotLoss, Loss
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.private_cohort import PrivateCohort

CHOICES = {
    name if unit == units[0] else f"{name}, {unit}": chosen_fitting(
        name, tasks=unit, local_steps=3, local_learning_rate=0.7
    )
    for name, units in UNITS.items()
    for unit in units
}
TWO_IMAGES = Privacy(images_per_patient=2, patients_per_episode=10)


@dataclass(frozen=True)
class Amplified(Objective):
    """A loss whose gradient has no bound, or is not finite at all."""

    by: float = 1.0

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        return self.by * super().of_logits(logits, y)


def learned(name: str, model: str, findings: bool, by: float = 1.0) -> Amplified:
    """The loss that the algorithm is given: of the model with what it learns beside it."""
    plain = objective(model, findings)
    extended = CHOICES[name].extended(plain.model)
    return Amplified(extended, plain.shift, plain.scale, plain.log_prior, plain.labels, by=by)


def fitting() -> list[tuple[str, str, bool]]:
    """Algorithms and models that go together; with one class an image, and where they can with several findings."""
    found = []
    for name, model in itertools.product(CHOICES, MODELS):
        with contextlib.suppress(ConfigError):
            learned(name, model, False)
            found.append((name, model, False))
            if model in ("logistic", "mlp") and not CHOICES[name].one_class_each and CHOICES[name].unit != "stand-ins":
                found.append((name, model, True))
    return found


@dataclass
class Recording(SilentCohort):
    """A hospital that remembers which questions were asked, where, and what noised answer was given."""

    private: PrivateCohort
    asked: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        return self._note("gradient", theta, self.private.gradient(loss, theta))

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        return self._note("episode_gradient", theta, self.private.episode_gradient(gradient, theta))

    def _note(self, question: str, theta: Tensor, answer: Tensor) -> Tensor:
        self.asked.append((question, theta.clone(), answer.clone()))
        return answer


@dataclass
class Replaying(SilentCohort):
    """ANOTHER hospital, which lets the algorithm's loss see its own patients and gives the recorded answers."""

    private: PrivateCohort
    recorded: list[tuple[str, Tensor, Tensor]]

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        self.private.gradient(loss, theta)
        return self._next("gradient", theta)

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        self.private.episode_gradient(gradient, theta)
        return self._next("episode_gradient", theta)

    def _next(self, question: str, theta: Tensor) -> Tensor:
        recorded, at, answer = self.recorded.pop(0)
        assert recorded == question
        assert torch.equal(at, theta), "where it asks depends on more than the answers"
        return answer


@pytest.mark.parametrize(("name", "model", "findings"), fitting())
def test_a_delta_is_made_of_the_noised_answers_alone(name: str, model: str, findings: bool) -> None:
    """P21: "delta, momentum, outer update are post-processing".

    The answers of one hospital, given at another with other patients, give the same delta bit for bit.
    """
    algorithm, loss = CHOICES[name], learned(name, model, findings)
    theta = loss.model.initial() + 0.1
    sent = torch.randn(len(theta), generator=torch.Generator().manual_seed(3))  # for one that remembers

    def inner(cohort: Recording | Replaying) -> Tensor:
        return algorithm.inner_after(sent, theta, cohort, loss)

    here = Recording(cohort(examples_of([1, 3, 2] * 4, model=model, seed=1, findings=findings), TWO_IMAGES))
    delta = inner(here)
    assert [question for question, _, _ in here.asked] == [algorithm.question] * algorithm.answers_per_round

    others = examples_of([2] * 9, model=model, seed=2, scale=30.0, findings=findings)
    for elsewhere in (others, examples_of([], model=model, findings=findings)):
        there = Replaying(cohort(elsewhere, TWO_IMAGES), list(here.asked))
        again = inner(there)
        assert not there.recorded
        assert torch.equal(delta, again)


def test_an_algorithm_that_kept_an_image_would_be_found() -> None:
    """The test above can fail: here is an algorithm that carries a patient's image past the noise."""
    kept: list[Tensor] = []

    def inner(theta: Tensor, cohort: Recording | Replaying, loss: FewShotLoss) -> Tensor:
        def listening(theta: Tensor, support: object, query: object) -> Tensor:
            kept.append(query.x.flatten()[: len(theta)].sum())  # type: ignore[attr-defined]
            return torch.ones_like(theta)

        return cohort.episode_gradient(listening, theta) + kept[-1]

    theta = MODELS["logistic"].initial()
    here = Recording(cohort(examples_of([2] * 30, seed=1), TWO_IMAGES))
    delta = inner(theta, here, objective("logistic"))
    there = Replaying(cohort(examples_of([2] * 30, seed=2), TWO_IMAGES), list(here.asked))
    assert not torch.equal(delta, inner(theta, there, objective("logistic")))


@dataclass
class BothWorlds(SilentCohort):
    """A hospital with and without one patient; each answer is asked of both, and the noised one of the first given.

    That is composition: whatever the algorithm was told before, the next sum moves by no more than its bound.
    """

    with_: PrivateCohort
    without_: PrivateCohort
    removed: int
    moved: dict[str, list[float]] = field(default_factory=dict)

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        return self._ask("gradient", lambda cohort: cohort.gradient(loss, theta))

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        return self._ask("episode_gradient", lambda cohort: cohort.episode_gradient(gradient, theta))

    def _ask(self, question: str, ask: Callable[[PrivateCohort], Tensor]) -> Tensor:
        difference = coupled(self.with_, self.without_, self.removed, ask)
        self.moved.setdefault(question, []).append(difference.moved)
        return difference.answer


@pytest.mark.parametrize(("name", "model", "findings"), fitting())
def test_no_answer_that_an_algorithm_asks_moves_by_more_than_its_bound(name: str, model: str, findings: bool) -> None:
    """P20: k local gradients, a query gradient at theta_k, the meta-gradient of an episode."""

    @settings(max_examples=3 if model == "conv4" else 8)
    @given(
        examples=hospitals(model, findings),
        by=st.sampled_from([1.0, 1e6, 1e30, math.inf, math.nan]),
        rate=st.sampled_from([1.0, 0.5]),
        clip_norm=st.sampled_from([0.1, 5.0]),
        choice=st.builds(
            partial(chosen_fitting, CHOICES[name].name, tasks=CHOICES[name].unit),
            local_steps=st.integers(1, 3),
            local_learning_rate=st.sampled_from([0.1, 9]),
        ),
        data=st.data(),
    )
    def never(
        examples: Examples, by: float, rate: float, clip_norm: float, choice: Algorithm, data: st.DataObject
    ) -> None:
        removed = data.draw(st.integers(0, examples.patients - 1))
        privacy = Privacy(clip_norm=clip_norm, images_per_patient=4, patients_per_episode=10)
        worlds = BothWorlds(
            cohort(examples, privacy, rate=rate),
            cohort(without(examples, removed), privacy, rate=rate),
            removed,
        )
        loss = learned(name, model, findings, by)
        sent = torch.randn(loss.model.layout.size, generator=torch.Generator().manual_seed(3))
        delta = choice.inner_after(sent, loss.model.initial(), worlds, loss)
        assert torch.isfinite(delta).all()
        assert set(worlds.moved) == {choice.question}
        moved = worlds.moved[choice.question]
        assert len(moved) == choice.answers_per_round
        assert max(moved) <= clip_norm * (2 if choice.question == "episode_gradient" else 1)

    never()


@pytest.mark.parametrize("name", CHOICES)
def test_what_an_algorithm_is_given_is_not_changed(name: str) -> None:
    """An in-place operation on theta or on the patients would make one answer depend on another."""
    examples = examples_of([1, 2] * 5)
    before = replace(examples, z=examples.z.clone(), y=examples.y.clone(), summary=examples.summary.clone())
    loss = learned(name, "mlp", False)
    theta = loss.model.initial()
    CHOICES[name].inner(theta, cohort(examples), loss)
    assert torch.equal(theta, loss.model.initial())
    for name in ("z", "y", "summary"):
        assert torch.equal(getattr(examples, name), getattr(before, name))
    assert examples.classes == CLASSES


OPENING = ("open", "os.", "socket.", "subprocess.", "sqlite3.", "urllib.", "ctypes.dlopen", "import", "exec")


@contextlib.contextmanager
def audited() -> Iterator[list[str]]:
    """What this process opens, lists, starts or connects to meanwhile, by the audit events of Python (PEP 578)."""
    events: list[str] = []
    listening = [True]

    def hook(event: str, arguments: object) -> None:
        if listening and event.startswith(OPENING):
            events.append(f"{event} {arguments}")

    sys.addaudithook(hook)  # Python has no way to take it back
    yield events
    listening.clear()


def test_nothing_is_opened_while_an_algorithm_learns() -> None:
    """The agreement and public weights were read before the round."""
    losses = {name: learned(name, "mlp", False) for name in CHOICES}
    for _ in ("what Python and torch load at a first call", "what is looked at"):
        with audited() as events:
            for name, loss in losses.items():
                CHOICES[name].inner(loss.model.initial(), cohort(examples_of([1, 2] * 5)), loss)
    assert events == []
    with audited() as events:
        Path("/dev/null").read_bytes()
    assert events, "the hook listens"
