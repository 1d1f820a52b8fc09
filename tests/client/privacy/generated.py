"""Generated hospitals for proofs by brute force, and the same hospital with one patient less, drawn alike.

`coupled` runs an answer in two worlds. The first draws as it likes: the sample, the images, the deal of episodes. In
the second, which lacks one patient, everybody else keeps their draws. That is the coupling by which a sensitivity is
defined for a mechanism that draws; `test_episodes.py` and `test_draws.py` show that the code's draws permit it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
from hypothesis import strategies as st
from tests.questions import ask
from torch import Tensor

from wardround.accountant import Answers
from wardround.config import Privacy
from wardround.labels import LABEL_KINDS
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.models.head import EncoderHead
from wardround.models.tabular import Tabular
from wardround.questions import Shots
from wardround.schedule import QUESTIONS
from wardround_client.cohort.examples import Examples
from wardround_client.privacy import episodes, mechanism
from wardround_client.privacy import private_cohort as private
from wardround_client.privacy.episodes import Deal
from wardround_client.privacy.private_cohort import PrivateCohort

CLASSES, FEATURES, DECLARED = 3, 4, 50
Ask = Callable[[PrivateCohort], Tensor]


@dataclass(frozen=True)
class Identity:
    """An encoder that changes nothing."""

    features: int = FEATURES
    fingerprint: str = "0" * 64

    def __call__(self, x: Tensor) -> Tensor:
        return x


MODELS: dict[str, Model] = {
    "logistic": Tabular.logistic(FEATURES, CLASSES),
    "mlp": Tabular.mlp(FEATURES, CLASSES, 5),
    "encoder-head": EncoderHead.of(Identity(), CLASSES),
    "embedded-head": EncoderHead.of(Identity(), CLASSES, embedding=3),
    "conv4": Conv4.of(1, 8, CLASSES),
}


def input_shape(name: str) -> tuple[int, ...]:
    return (1, 9, 9) if name == "conv4" else (FEATURES,)


def times(number: int, generator: torch.Generator) -> Tensor:
    """Labels of survival, [number, 2]: some at the very ends of intervals, some at 0, some behind the last."""
    at = torch.rand(number, generator=generator) * (CLASSES + 1)
    exact = torch.rand(number, generator=generator) < 0.3
    return torch.stack([torch.where(exact, at.floor(), at), torch.randint(2, (number,), generator=generator)], 1)


def objective(name: str, findings: bool = False) -> Objective:
    model = MODELS[name]
    shift, scale = torch.full((model.scaling_size,), 0.1), torch.full((model.scaling_size,), 0.8)
    labels = LABEL_KINDS["several" if findings else "one"]
    return Objective(model, shift, scale, torch.tensor([0.2, 0.3, 0.5]).log(), labels)


def examples_of(
    images: list[int],
    *,
    model: str = "logistic",
    seed: int = 0,
    scale: float = 1.0,
    poison: float = 0.0,
    one_class: bool = False,
    duplicates: bool = False,
    findings: bool = False,
    variants: int = 1,
) -> Examples:
    """One patient for each number, with so many images, whose rows lie among the others' in any order.

    poison: if not 0, stands somewhere in the images of half of the patients. duplicates: every image is the same.
    findings: an image has several, or none. variants: of each image.
    """
    generator = torch.Generator().manual_seed(seed)
    n = sum(images)
    z = torch.randn(n, *input_shape(model), generator=generator) * scale
    y = torch.randint(CLASSES - 1, (n,), generator=generator)  # the last class stays empty
    patient = torch.repeat_interleave(torch.arange(len(images)), torch.tensor(images, dtype=torch.int64))
    patient = patient[torch.randperm(n, generator=generator)]
    augmented = torch.randn(n, variants - 1, *input_shape(model), generator=generator) * scale
    if findings:
        y = torch.randint(2, (n, CLASSES), generator=generator).float()
        y[:, -1] = 0
    if duplicates and n:
        z, augmented = (each[:1].repeat(n, *[1] * (each.dim() - 1)) for each in (z, augmented))
    if one_class:
        y = torch.ones_like(y)
    if poison:
        z[patient % 2 == 0, ..., 0] = augmented[patient % 2 == 0, ..., 0] = poison
    summary = MODELS[model].summary(z)
    labels = LABEL_KINDS["several" if findings else "one"]
    others = augmented if variants > 1 else None
    return Examples(z, y, patient, summary, CLASSES, augmented=others, labels=labels)


@st.composite
def hospitals(draw: st.DrawFn, model: str = "logistic", findings: bool = False) -> Examples:
    """Hospitals of every kind that a proof should survive."""
    images = st.one_of(st.just(1), st.integers(1, 3), st.integers(4, 9))
    return examples_of(
        draw(st.lists(images, min_size=1, max_size=7)),
        model=model,
        seed=draw(st.integers(0, 10_000)),
        scale=draw(st.sampled_from([1.0, 1.0, 0.0, 1e-30, 50.0, 1e18, 1e30])),
        poison=draw(st.sampled_from([0.0, 0.0, math.nan, math.inf, -math.inf, 3e38])),
        one_class=draw(st.booleans()),
        duplicates=draw(st.booleans()),
        findings=findings,
        variants=draw(st.sampled_from([1, 1, 3])),
    )


def asks(loss: Objective, theta: Tensor) -> dict[str, Ask]:
    """How each question is asked about the loss's model at theta; its answer, as one vector."""

    def after_a_step(theta: Tensor, support: Shots, query: Shots) -> Tensor:
        """A few-shot learner with second derivatives: MAML's, one step."""
        step = torch.func.grad(lambda at: support.mean(loss.each(at, support.x, support.y)))(theta)
        return query.mean(loss.each(theta - 0.5 * step, query.x, query.y))

    training: dict[str, Ask] = {
        "gradient": lambda cohort: cohort.gradient(loss, theta),
        "episode_gradient": lambda cohort: cohort.episode_gradient(torch.func.grad(after_a_step), theta),
    }
    return {
        name: training.get(name, lambda cohort, name=name: ask(name, cohort, loss, theta))  # type: ignore[misc]
        for name in QUESTIONS.built_in
    }


def without(examples: Examples, patient: int) -> Examples:
    """The same hospital, had this patient never come."""
    return examples.subset(examples.patient != patient)


def cohort(
    examples: Examples, privacy: Privacy | None = None, *, rate: float = 1.0, sigma: float = 1.0
) -> PrivateCohort:
    """All questions at the same noise multiplier, and hardly a limit on how often."""
    return PrivateCohort(
        examples,
        privacy=privacy or Privacy(),
        declared_patients=DECLARED,
        reserved=(Answers(sigma, rate, 10_000),),
    )


@dataclass
class Tape:
    """What was drawn for one answer, and the sum that was about to be noised, with the noise's standard deviation."""

    samples: list[Tensor] = field(default_factory=list)
    images: list[Tensor] = field(default_factory=list)
    deals: list[Deal] = field(default_factory=list)
    sums: list[Tensor] = field(default_factory=list)
    stds: list[float] = field(default_factory=list)

    def without(self, patient: int) -> Tape:
        """Everybody else's draws. Later patients move up by one."""
        (sample,) = self.samples or [torch.arange(0)]
        kept = sample != patient
        others = sample[kept]
        return Tape(
            samples=[others - (others > patient).long() for _ in self.samples],
            images=[each[kept] for each in self.images],
            deals=[Deal(dealt.episode[kept], dealt.support[kept]) for dealt in self.deals],
        )


@contextmanager
def recorded(tape: Tape) -> Iterator[None]:
    """Everything that is drawn or about to be noised is written on the tape."""
    poisson, choose, deal = mechanism.poisson_sample, mechanism.choose_images, episodes.deal

    def poisson_sample(n: int, rate: float) -> Tensor:
        tape.samples.append(poisson(n, rate))
        return tape.samples[-1]

    def choose_images(images: Tensor, limit: int) -> Tensor:
        tape.images.append(choose(images, limit))
        return tape.images[-1]

    def dealt(patients: int, number: int, support_share: float) -> Deal:
        tape.deals.append(deal(patients, number, support_share))
        return tape.deals[-1]

    with _patched(tape, poisson_sample, choose_images, dealt):
        yield


@contextmanager
def replayed(tape: Tape) -> Iterator[None]:
    """Everything that was drawn is drawn again from the tape; what is about to be noised is written on it."""
    with _patched(
        tape,
        lambda n, rate: tape.samples[0],
        lambda images, limit: tape.images[0],
        lambda patients, number, support_share: tape.deals[0],
    ):
        yield


@contextmanager
def _patched(
    tape: Tape,
    poisson_sample: Callable[[int, float], Tensor],
    choose_images: Callable[[Tensor, int], Tensor],
    deal: Callable[[int, int, float], Deal],
) -> Iterator[None]:
    noised = mechanism.noised

    def listening(total: Tensor, std: float) -> Tensor:
        tape.sums.append(total.double().clone())
        tape.stds.append(std)
        return noised(total, std)

    with ExitStack() as stack:
        stack.enter_context(patch.object(mechanism, "poisson_sample", poisson_sample))
        stack.enter_context(patch.object(mechanism, "choose_images", choose_images))
        stack.enter_context(patch.object(mechanism, "noised", listening))
        stack.enter_context(patch.object(private, "deal", deal))
        yield


@dataclass(frozen=True)
class Difference:
    """How far a sum moved when one patient left, its noise's standard deviation; and the sum and answer with them."""

    moved: float
    std: float
    total: Tensor
    answer: Tensor


def coupled(with_: PrivateCohort, without_: PrivateCohort, patient: int, ask: Ask) -> Difference:
    """Ask the same in both worlds, under the same draws."""
    tape = Tape()
    with recorded(tape):
        answer = ask(with_)
    other = tape.without(patient)
    with replayed(other):
        ask(without_)
    (one,), (two,), (std,), (other_std,) = tape.sums, other.sums, tape.stds, other.stds
    assert torch.isfinite(one).all(), "a patient's images got through unbounded"
    assert torch.isfinite(two).all(), "a patient's images got through unbounded"
    assert std == other_std, "the noise depends on who is there"
    return Difference(float((one - two).norm()), std, one, answer)
