"""Invented patients whose gradients are known, and how a hospital's cohort object is asked about them.

A canary's gradient is its own direction, far longer than the clip norm, so it adds exactly the clip norm along that
direction and an attacker knows where to look. No real patient is read, and nothing is reserved in a ledger.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wardround.accountant import Answers, Calibration, rows_for
from wardround.config import Federation, Privacy
from wardround.models import Model
from wardround.questions import Cohort, ElementaryLoss, Loss, Shots
from wardround.schedule import RoundPlan, Schedule
from wardround_client.audit.bounds import Bools
from wardround_client.cohort.examples import Examples
from wardround_client.round import OpenCohort

HUGE = 1e4  # how much longer than the clip norm a canary's gradient is
SHARP = 0.5  # greatest noise multiplier of the experiments that look for a mistake in the code rather than in a number


@dataclass(frozen=True)
class CanaryLoss:
    """The mean over images of scale <x, theta>: an image's gradient is scale x."""

    scale: float
    elementary: bool = True

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, P] -> float32 []."""
        return self.scale * (x @ theta).mean()

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        return self.scale * x.double()


@dataclass(frozen=True)
class Amplified:
    """Another loss times a factor, so that each patient's gradient is clipped; it is computed as the loss's is."""

    loss: Loss
    factor: float
    model: Model

    @property
    def elementary(self) -> bool:
        """As the loss itself."""
        return isinstance(self.loss, ElementaryLoss) and self.loss.elementary

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """As the loss itself, times the factor."""
        return self.factor * self.loss(theta, x, y)

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        assert isinstance(self.loss, ElementaryLoss)
        return self.factor * self.loss.gradients(theta, x, y)


@dataclass(frozen=True)
class CanaryEpisode:
    """An episode's gradient is +scale along the first number with the canary in it, and -scale without.

    The canary's images are those with a 1 in their first number.
    """

    scale: float

    def __call__(self, theta: Tensor, support: Shots, query: Shots) -> Tensor:
        """Theta float32 [P], x [n, ...] -> float32 [P]."""
        present = torch.cat([support.x[:, 0], query.x[:, 0]]).max()
        gradient = torch.zeros_like(theta)
        gradient[0] = self.scale * (2 * present - 1)
        return gradient


@dataclass(frozen=True)
class Bench:
    """What is audited: an agreement's public numbers, and the code that makes its cohorts.

    federation: the agreement; privacy: its section, or one that an experiment changes. trials: answers that an
    experiment may ask for, about. tick: called with the number of answers just given.
    """

    federation: Federation
    model: Model
    schedule: Schedule
    calibration: Calibration
    privacy: Privacy
    declared_patients: int
    delta: float
    trials: int
    open_cohort: OpenCohort
    device: torch.device
    tick: Callable[[int], None]

    def in_round(self, plan: RoundPlan, examples: Examples) -> Cohort:
        """As in that round of the run: nothing but its patients is exchanged."""
        return self.open_cohort(
            examples,
            privacy=self.privacy,
            declared_patients=self.declared_patients,
            reserved=rows_for(self.calibration, plan),
        )

    def alone(self, noise_multiplier: float, examples: Examples, answers: int = 1, *, rate: float = 1.0) -> Cohort:
        """For so many answers of that noise to one question."""
        return self.open_cohort(
            examples,
            privacy=self.privacy,
            declared_patients=self.declared_patients,
            reserved=(Answers(noise_multiplier, rate, answers),),
        )

    def sharp(self, question: str) -> float:
        """The run's noise multiplier, but no more than SHARP."""
        return min(SHARP, self.calibration.noise_multiplier(question))

    def canary_loss(self) -> CanaryLoss:
        """Whose every gradient is clipped."""
        return CanaryLoss(HUGE * self.privacy.clip_norm)

    def canary_episode(self) -> CanaryEpisode:
        """The same of an episode."""
        return CanaryEpisode(HUGE * self.privacy.clip_norm)

    def per_clip_norm(self, rate: float = 1.0) -> float:
        """What makes an answer to `gradient` a multiple of the clip norm."""
        return rate * self.declared_patients / self.privacy.clip_norm

    def with_privacy(self, declared_patients: int | None = None, **changes: int) -> Bench:
        """The same with some of the privacy section replaced, and the declared number of patients if one is given."""
        declared = declared_patients or self.declared_patients
        return replace(self, declared_patients=declared, privacy=self.privacy.model_copy(update=changes))


def coins(n: int) -> Bools:
    """Bool [n], each true with probability 1/2: bits from the operating system, not from the code that is audited."""
    return np.unpackbits(np.frombuffer(os.urandom((n + 7) // 8), dtype=np.uint8))[:n].astype(bool)


def generator() -> torch.Generator:
    """For the canaries' public images: seeded from the operating system, whatever the global generators hold."""
    return torch.Generator().manual_seed(int.from_bytes(os.urandom(7)))


def patients(x: Tensor, device: torch.device, *, patient: Tensor | None = None, classes: int = 2) -> Examples:
    """Float32 [n, ...] as examples of class 0, of one patient each if it is not said whose they are."""
    n = len(x)
    number = torch.arange(n) if patient is None else patient
    nothing = torch.zeros(n, 1)
    y = torch.zeros(n, dtype=torch.int64)
    return Examples(x.to(device), y.to(device), number.to(device), nothing.to(device), classes)


def orthogonal(inside: Bools, device: torch.device, *, images: int = 1) -> Examples:
    """Canary j along the number j, for each j that is inside; each with so many images, all alike."""
    chosen = torch.nonzero(torch.from_numpy(inside)).flatten()
    x = torch.nn.functional.one_hot(chosen, len(inside)).float().repeat_interleave(images, 0)
    return patients(x, device, patient=torch.arange(len(chosen)).repeat_interleave(images))


def public_generators() -> Callable[[], None]:
    """Gives a function that puts torch's, numpy's and Python's global generators back to where they are now.

    Noise that comes from one of them is then the same noise again; noise from the operating system is not.
    """
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def again() -> None:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])
        random.setstate(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)

    return again


def sampled_score(answer: Tensor, rate: float, noise_multiplier: float) -> Tensor:
    """How much an answer speaks for a patient: answer float [m] in units of what one adds -> float64 [m].

    The logarithm of the likelihood ratio of "in with probability `rate`" to "never in"; up to a constant factor and
    term, the answer itself where everybody is in.
    """
    answer = answer.double()
    if rate == 1:
        return answer
    evidence = (2 * answer - 1) / (2 * noise_multiplier**2) + math.log(rate)
    return torch.logaddexp(evidence, torch.full_like(evidence, math.log1p(-rate)))
