"""What is tried on the code, each experiment sharp against particular mistakes.

All but the whole run compare one answer, or two, with and without a canary. Those that look for a mistake in how a
patient's part is bounded ask with little noise (`SHARP`): the code is the same, the claim is that noise's, and a few
hundred trials see what would drown in the run's own noise. Those that look at the noise itself use the run's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from wardround.accountant import Answers
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.questions import Blocks, Cohort, Summand, SumQuestion
from wardround.schedule import QUESTIONS
from wardround_client.audit.bounds import Bools, Evidence
from wardround_client.audit.canaries import (
    HUGE,
    Amplified,
    Bench,
    coins,
    generator,
    orthogonal,
    patients,
    public_generators,
)
from wardround_client.cohort.examples import Examples

CANARIES = 1000  # in an answer about many
_IMAGES = 8  # of a canary that has many
_SMALL_MODEL = 10_000  # parameters; a larger one is tried less often, with fewer images
_LEAST_TRIALS = 200
_SCALES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0, 1e3)

Ask = Callable[[Cohort], list[Tensor]]  # asks one question -> scores, one a column


@dataclass(frozen=True)
class Experiment:
    """name: one word. tests: what it would find. rows: the price that is claimed for what a trial asks.

    collect: makes the trials. answers: how many it asks for.
    """

    name: str
    tests: str
    rows: tuple[Answers, ...]
    collect: Callable[[], Evidence]
    answers: int


def single_answers(bench: Bench) -> Iterator[Experiment]:
    """All experiments but the whole run."""
    rate, question = bench.calibration.sampling_rate, _trained(bench)
    if rate < 1 and question == "gradient":
        yield _sampling(bench)
    yield _repeat(bench)
    yield _images(bench)
    yield _companions(bench)
    yield from _model(bench)
    yield _episodes(bench)
    yield from _sums(bench)


def _trained(bench: Bench) -> str | None:
    return next((plan.question for plan in bench.schedule.rounds if plan.trains), None)


def _sampling(bench: Bench) -> Experiment:
    """One answer about a sample, at the run's own rate and noise."""
    rate, sigma = bench.calibration.sampling_rate, bench.calibration.noise_multiplier("gradient")
    asked = max(3, bench.trials // 10)
    loss, theta = bench.canary_loss(), torch.zeros(CANARIES, device=bench.device)

    def collect() -> Evidence:
        scores, inside = [], []
        for _ in range(asked):
            bits = coins(CANARIES)
            cohort = bench.alone(sigma, orthogonal(bits, bench.device), rate=rate)
            scores.append(cohort.gradient(loss, theta).double().cpu() * bench.per_clip_norm(rate))
            inside.append(bits)
            bench.tick(1)
        return evidence_of([torch.cat(scores)], np.concatenate(inside))

    return Experiment(
        "sampling", "patients are sampled more often than agreed", (Answers(sigma, rate, 1),), collect, asked
    )


def _repeat(bench: Bench) -> Experiment:
    """The same question twice, with the canaries and without anybody: noise that repeats cancels.

    Every second number of theta has no canary. Noise that is the same in neighbouring numbers cancels against those.
    """
    sigma = bench.calibration.least_noise()
    asked = 2 * max(3, bench.trials // 100)
    loss, theta = bench.canary_loss(), torch.zeros(CANARIES, device=bench.device)

    def collect() -> Evidence:
        differences, neighbours, inside = [], [], []
        for _ in range(asked // 2):
            bits = coins(CANARIES // 2)
            # A canary has the even numbers; nobody has the odd ones.
            with_ = orthogonal(np.stack([bits, np.zeros_like(bits)], 1).ravel(), bench.device)
            nobody = patients(torch.zeros(1, CANARIES), bench.device)
            again = public_generators()
            first = bench.alone(sigma, with_).gradient(loss, theta).cpu()
            again()
            second = bench.alone(sigma, nobody).gradient(loss, theta).cpu()
            differences.append((first - second)[::2])
            neighbours.append(first[::2] - first[1::2])
            inside.append(bits)
            bench.tick(2)
        return evidence_of([torch.cat(differences), torch.cat(neighbours)], np.concatenate(inside))

    return Experiment(
        "repeat", "noise comes twice: a seed, or a public generator", (Answers(sigma, 1.0, 1),), collect, asked
    )


def _images(bench: Bench) -> Experiment:
    """Canaries with several images each, all alike."""
    sigma, canaries = bench.sharp("gradient"), CANARIES // 10
    asked = max(3, bench.trials // canaries)
    many = bench.with_privacy(images_per_patient=max(_IMAGES, bench.privacy.images_per_patient))
    loss, theta = bench.canary_loss(), torch.zeros(canaries, device=bench.device)

    def collect() -> Evidence:
        scores, inside = [], []
        for _ in range(asked):
            bits = coins(canaries)
            cohort = many.alone(sigma, orthogonal(bits, bench.device, images=_IMAGES))
            scores.append(cohort.gradient(loss, theta).cpu())
            inside.append(bits)
            bench.tick(1)
        return evidence_of([torch.cat(scores)], np.concatenate(inside))

    return Experiment("images", "each image is clipped, and not the patient", (Answers(sigma, 1.0, 1),), collect, asked)


def _companions(bench: Bench) -> Experiment:
    """One patient far along -e; the canary, twice as far along +e, turns their sum around if the sum is clipped."""
    sigma = bench.sharp("gradient")
    x = torch.zeros(2, _IMAGES)
    x[0, 0], x[1, 0] = -1.0, 2.0
    loss, theta = bench.canary_loss(), torch.zeros(_IMAGES, device=bench.device)
    return _two_worlds(
        bench,
        "companions",
        "a sum over patients is clipped, and not each patient",
        sigma,
        patients(x[:1], bench.device),
        patients(x, bench.device),
        lambda cohort: [cohort.gradient(loss, theta)[:1]],
        bench.trials,
    )


def _model(bench: Bench) -> Iterator[Experiment]:
    """The model's own loss, scored along the canary's clipped gradient and along each tensor of it.

    Two canaries: one as an image may be; and one whose scale makes the tensor large that is least in the first, for a
    tensor that a norm forgets is only seen where it is much of the gradient. Each has several images, all alike.
    """
    random, device, model = generator(), bench.device, bench.model
    z = model.encode(torch.rand(4, *bench.federation.task.input_shape, generator=random).to(device))
    y = torch.randint(model.classes, (4,), generator=random).to(device)
    theta = (model.initial() + 0.1 * torch.randn(model.layout.size, generator=random)).to(device)
    shift, scale = (each.to(device) for each in no_scaling(model.scaling_size))
    loss = Objective(model, shift, scale)
    sizes = list(model.layout.sizes)

    def gradient(z: Tensor, y: Tensor) -> Tensor:
        """Of one image, by plain autograd, apart from the code that is audited."""
        at = theta.clone().requires_grad_()
        slope: Tensor = torch.autograd.grad(loss(at, z.unsqueeze(0), y.unsqueeze(0)), at)[0]
        return slope

    def shares(canary: Tensor) -> Tensor:
        slope = gradient(canary, y[-1])
        norms = torch.stack([torch.linalg.vector_norm(part) for part in torch.split(slope, sizes)])
        parts: Tensor = norms / torch.linalg.vector_norm(norms).clamp_min(1e-30)
        return parts

    least = int(shares(z[-1]).argmin())
    scaled = max((factor * z[-1] for factor in _SCALES), key=lambda canary: float(shares(canary)[least].nan_to_num()))
    many = bench.with_privacy(images_per_patient=max(_IMAGES, bench.privacy.images_per_patient))
    small = model.layout.size <= _SMALL_MODEL
    trials, images = (bench.trials, _IMAGES) if small else (max(_LEAST_TRIALS, bench.trials // 5), 2)
    for name, canary in (("model", z[-1]), ("tensor", scaled)):
        slopes = [gradient(*each) for each in zip([*z[:3], canary], y, strict=True)]
        shortest = min(float(slope.norm()) for slope in slopes)
        amplified = Amplified(loss, HUGE * bench.privacy.clip_norm / max(shortest, 1e-12), model)
        along = _along(slopes[-1], sizes)
        yield _two_worlds(
            many,
            name,
            "a tensor of the model escapes the clip norm or the noise",
            bench.sharp("gradient"),
            *_worlds(z[:3], canary, y, model.classes, images),
            lambda cohort, amplified=amplified, along=along: [along(cohort.gradient(amplified, theta))],  # type: ignore[misc]
            trials,
        )


def _episodes(bench: Bench) -> Experiment:
    """Episodes along -e, but for the one that holds the canary; it has several images."""
    expected, episodes = 48, 3
    sigma = bench.sharp("episode_gradient")
    small = bench.with_privacy(
        expected, images_per_patient=_IMAGES, patients_per_step=0, patients_per_episode=expected // episodes
    )
    x = torch.zeros(expected + _IMAGES, 2)
    x[expected:, 0] = 1.0
    whose = torch.cat([torch.arange(expected), torch.full((_IMAGES,), expected)])
    loss, theta = bench.canary_episode(), torch.zeros(2, device=bench.device)
    return _two_worlds(
        small,
        "episodes",
        "a patient is in more than one few-shot episode",
        sigma,
        patients(x[:expected], bench.device),
        patients(x, bench.device, patient=whose),
        lambda cohort: [cohort.episode_gradient(loss, theta)[:1]],
        bench.trials,
    )


def _sums(bench: Bench) -> Iterator[Experiment]:
    """Of each question that is a sum, whatever it adds up: the cohort itself has to bound a patient's part."""
    for name in dict.fromkeys((*QUESTIONS.built_in, *bench.schedule.questions)):
        question = QUESTIONS[name]
        if isinstance(question, SumQuestion) and (summands := question.summands(bench.federation, bench.model)):
            yield _sum(bench, name, summands)


def _sum(bench: Bench, name: str, summands: tuple[Summand, ...]) -> Experiment:
    """A canary of several images, huge in every number, scored in each summand, and in all as they are weighted."""
    blocks = Blocks(summands)
    sizes, weights = list(blocks.layout.sizes), torch.tensor([each.weight for each in summands]).double()
    sign = torch.where(torch.rand(blocks.layout.size, generator=generator()) < 0.5, -1.0, 1.0)
    alone, both = _zeros_and(HUGE * sign, bench.model.classes, bench)

    def ask(cohort: Cohort) -> list[Tensor]:
        answer = blocks.scaled(cohort.sum(summands, lambda x, y, features: x).double().cpu(), down=True)
        parts = zip(torch.split(answer, sizes), torch.split(sign.double(), sizes), strict=True)
        along = torch.stack([part @ each / math.sqrt(len(each)) for part, each in parts])
        return [along, (weights @ along / weights.norm()).unsqueeze(0)]

    tests = f"a patient weighs too much in {name}"
    return _two_worlds(bench, name, tests, bench.sharp(name), alone, both, ask, bench.trials)


def _two_worlds(
    bench: Bench,
    name: str,
    tests: str,
    noise_multiplier: float,
    without: Examples,
    with_: Examples,
    ask: Ask,
    trials: int,
) -> Experiment:
    """One answer a trial, from one of two cohorts that differ by one patient."""

    def collect() -> Evidence:
        inside = coins(trials)
        worlds = [bench.alone(noise_multiplier, examples, trials) for examples in (without, with_)]
        scores = []
        for bit in inside:
            scores.append(torch.cat([each.double().cpu() for each in ask(worlds[int(bit)])]))
            bench.tick(1)
        return evidence_of(list(torch.stack(scores).unbind(1)), inside)

    return Experiment(name, tests, (Answers(noise_multiplier, 1.0, 1),), collect, trials)


def _zeros_and(canary: Tensor, classes: int, bench: Bench) -> tuple[Examples, Examples]:
    """Three patients whose vector is 0, without and with a canary; all of class 0."""
    y = torch.zeros(4, dtype=torch.int64, device=bench.device)
    return _worlds(torch.zeros(3, len(canary), device=bench.device), canary.to(bench.device), y, classes)


def _worlds(
    others: Tensor, canary: Tensor, y: Tensor, classes: int, images: int = _IMAGES
) -> tuple[Examples, Examples]:
    """Cohorts of these others, of one image each, without and with a canary of several; y: a class for each patient.

    Vectors are their own summaries.
    """
    alone = torch.arange(len(others), device=others.device)
    whose = torch.cat([alone, alone.new_full((images,), len(others))])
    both = torch.cat([others, canary.expand(images, *canary.shape)])

    def examples(z: Tensor, patient: Tensor) -> Examples:
        return Examples(z, y[patient], patient, z.flatten(1), classes)

    return examples(others, alone), examples(both, whose)


def _along(gradient: Tensor, sizes: list[int]) -> Callable[[Tensor], Tensor]:
    """An answer float32 [P] -> its length along a gradient, and along each tensor's part of it; parts of 0 left out."""
    norms = torch.stack([part.norm() for part in (gradient, *torch.split(gradient, sizes))])
    there = norms > 0

    def scores(answer: Tensor) -> Tensor:
        parts = torch.stack([part.sum() for part in torch.split(gradient * answer, sizes)])
        return (torch.cat([parts.sum().unsqueeze(0), parts]) / norms)[there]

    return scores


def evidence_of(columns: list[Tensor], inside: Bools) -> Evidence:
    """Scores [n], one tensor a column, as evidence; what is not finite becomes as large as it can be."""
    scores = torch.stack([column.double().cpu() for column in columns], 1)
    return Evidence(torch.nan_to_num(scores, posinf=1e300, neginf=-1e300).numpy(), inside)
