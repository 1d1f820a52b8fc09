"""The attacks, from weak to strong. Each gives every candidate a score, the higher the more like a member.

Two look at the released model alone. Three look at what the coordinator sees: every delta of every hospital, and the
theta that it answers. All of them know the labels, the model and every public number; none knows what others lack.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

from wardround.algorithms import Algorithm
from wardround.models import Model, Objective
from wardround.models.conv4 import Conv4
from wardround.questions import Cohort
from wardround.questions.statistics import FIRST_ROUND
from wardround.questions.statistics import question as statistics
from wardround.wire import RoundReply, peek_reply
from wardround_client.cohort.examples import Examples
from wardround_client.privacy.contribution import clipped
from wardround_server.checkpoint import State
from wardround_simulation.membership.pool import Candidates
from wardround_simulation.membership.shadows import Shadow

Floats = npt.NDArray[np.float64]

EXACT_NOISE = 1e-3  # what float32 leaves uncertain in an answer without noise, as a part of a gradient; generously
# Image gradients of one attack, of convolutions and of other models: beyond, some rounds are passed over.
IMAGE_GRADIENTS = {True: 20_000, False: 5_000_000}
GREATEST_POOL = 10_000  # the attacks on deltas hold matrices of candidates by candidates
_CHUNK_BYTES = 64 << 20


@dataclass(frozen=True)
class Released:
    """What a run gave away, all of which its coordinator sees.

    run: its name. states: number of a round -> the state before it; the last is the released model. replies: (number of
    a round, hospital) -> the reply as it was sent. private: whether answers were clipped and noised.
    """

    run: str
    states: Mapping[int, State]
    replies: Mapping[tuple[int, str], bytes]
    private: bool

    @property
    def final(self) -> State:
        """The released model."""
        return self.states[max(self.states)]

    def answer(self, number: int, hospital: str, size: int) -> Tensor | None:
        """A hospital's answer in a round, float32 [size]; None where it gave none."""
        reply = self.replies.get((number, hospital))
        if reply is None or peek_reply(reply).refusal:
            return None
        return torch.from_numpy(RoundReply.unpack(reply, run=self.run, round=number, size=size).answer.copy())


def loss(pool: Candidates, released: Released) -> Floats:
    """Yeom et al., "Privacy risk in machine learning", 2018, adversary 2: members have smaller losses."""
    examples, state = pool.examples, released.final
    logits = _logits(pool.agreement.model, state, examples)
    return _numpy(examples.patient_means(-cross_entropy(logits, examples.y, reduction="none")))


def confidence(pool: Candidates, state: State) -> Floats:
    """log(p / (1 - p)) of the true class, which is nearly normal (Carlini et al. 2022, section VI)."""
    examples = pool.examples
    true = _logits(pool.agreement.model, state, examples).double().log_softmax(1).gather(1, examples.y[:, None])[:, 0]
    # 1 - p by logarithms: p rounds to 1 where a model is sure.
    odds: Tensor = true - torch.log(-torch.expm1(true.clamp(max=-1e-12)))
    return _numpy(examples.patient_means(odds))


def calibrated(pool: Candidates, released: Released, shadows: Sequence[Shadow], place: int) -> Floats:
    """Confidence of the released model minus the mean over shadow models that never saw the candidate.

    Watson et al., "On the importance of difficulty calibration in membership inference attacks", 2022.

    Args:
        pool: the candidates.
        released: the run under attack.
        shadows: each candidate is absent from one at least.
        place: of the pool among those that the shadows were drawn from.
    """
    seen = np.stack([shadow.took_part[place] for shadow in shadows])
    known = np.stack([confidence(pool, shadow.state) for shadow in shadows])
    absent: Floats = np.where(seen, 0.0, known).sum(0) / (~seen).sum(0)
    return confidence(pool, released.final) - absent


@dataclass(frozen=True)
class Overlaps:
    """All that a hospital's deltas say about its candidates, in units of the noise.

    A round's answer is y = sum_i b_i g_i + N(0, I), with b_i = 1 for members and g_i the candidate's part. overlap:
    float64 [n, n], the sum over rounds of <g_i, g_j>; match: float64 [n], of <g_i, y>. Nothing else of the rounds
    matters for b (these are the sufficient statistics of a Gaussian linear model). rounds: how many were used.
    """

    overlap: Tensor
    match: Tensor
    is_member: Tensor
    rounds: int

    def inner_product(self) -> Floats:
        """How far the answers point along the candidate's own gradients: it knows nobody but the candidate."""
        return _numpy(self.match)

    def candidates(self) -> Floats:
        """It holds the data of every candidate, and solves for all memberships at once.

        Linear minimum mean square error with independent coins as the prior, as linear reconstruction does (Dinur and
        Nissim, "Revealing information while preserving privacy", 2003); then each coin's own prior is taken out, which
        leaves the log likelihood ratio of b_i = 1 against 0 under the Gaussian that the others amount to.
        """
        share = float(self.is_member.double().mean())
        prior = share * (1 - share)
        size = len(self.match)
        posterior = torch.linalg.inv(self.overlap + torch.eye(size, dtype=torch.float64) / prior)
        mean = posterior @ (self.match - share * self.overlap.sum(1))
        variance = posterior.diagonal()
        return _numpy(mean / variance + (share - 0.5) * (1 / variance - 1 / prior))

    def everyone_else(self) -> Floats:
        """It knows of everybody but the candidate whether they took part: whom differential privacy defends against.

        The log likelihood ratio (Neyman and Pearson): no test of this evidence is better.
        """
        member = self.is_member.double()
        own = self.overlap.diagonal()
        return _numpy(self.match - self.overlap @ member + own * (member - 0.5))


def evidence(pool: Candidates, released: Released) -> Overlaps | None:
    """What the hospital's stored replies say; None where the algorithm's answers are not sums over single patients."""
    agreement = pool.agreement
    weights = answer_weights(agreement.federation.algorithm)
    rounds = _rounds(pool, released)
    if weights is None or not rounds or pool.examples.patients > GREATEST_POOL:
        return None
    privacy, calibration = agreement.federation.privacy, agreement.calibration
    noise, rate = EXACT_NOISE, 1.0
    if released.private:
        noise = calibration.noise_multiplier("gradient") * privacy.clip_norm
        rate = calibration.sampling_rate
    # delta = - sum_k w_k (sum of gradients + noise)_k / expected patients
    unit = noise * float(weights.norm())
    expected = rate * pool.hospital.config.hospital.declared_patients
    prior = _own_prior(pool, released)
    size = pool.examples.patients
    overlap, match = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for number, delta in rounds.items():
        objective = Objective(agreement.model, *_scaling(released.states[number], pool.examples), prior)
        theta = released.states[number].theta.to(pool.examples.device)
        clip_norm = privacy.clip_norm if released.private else math.inf
        parts = patient_gradients(objective, theta, pool.examples, clip_norm) * (rate * float(weights.sum()) / unit)
        overlap += parts @ parts.T
        match += parts @ (-delta.double() * expected / unit)
    return Overlaps(overlap, match, pool.is_member, len(rounds))


def answer_weights(algorithm: Algorithm) -> Tensor | None:
    """The w of delta = - sum_k w_k answer_k, float32 [answers a round]; None, if it asks for more than gradients,
    or makes its delta of more than a round's answers.

    Found out, not written down: the algorithm is given answers that are unit vectors, one for each time that it asks.
    """
    if algorithm.remembers or algorithm.question != "gradient":
        return None
    theta = torch.zeros(algorithm.answers_per_round)
    cohort = cast(Cohort, _UnitVectors(len(theta)))
    return -algorithm.inner(theta, cohort, cast(Objective, None))


class _UnitVectors:
    """Answers `gradient` with the next unit vector."""

    def __init__(self, size: int) -> None:
        self._left = iter(torch.eye(size))

    def gradient(self, loss: object, theta: Tensor) -> Tensor:
        answer: Tensor = next(self._left)
        return answer


def patient_gradients(objective: Objective, theta: Tensor, examples: Examples, clip_norm: float) -> Tensor:
    """Float64 [patients, P], on the CPU: each patient's mean over images of gradients that are clipped one by one.

    With one random image of each patient a step, that mean is what a patient adds to an answer on average.
    """
    total = torch.zeros(examples.patients, theta.numel(), dtype=torch.float64)
    slope = vmap(grad(objective), in_dims=(None, 0, 0))
    at_once = max(1, _CHUNK_BYTES // (4 * theta.numel()))
    for rows in torch.split(torch.arange(len(examples.y), device=examples.device), at_once):
        gradients = slope(theta, examples.z[rows, None], examples.y[rows, None])
        if math.isfinite(clip_norm):
            gradients = clipped(gradients, clip_norm)
        total.index_add_(0, examples.patient[rows].cpu(), gradients.cpu().double())
    return total / examples.images.cpu().clamp_min(1).unsqueeze(1)


def _rounds(pool: Candidates, released: Released) -> dict[int, Tensor]:
    """Number -> delta float32 [P] of the rounds that are used: all, or as many as can be afforded, evenly spread."""
    model, schedule = pool.agreement.model, pool.agreement.schedule
    deltas = {
        plan.number: released.answer(plan.number, pool.name, model.layout.size)
        for plan in schedule.rounds
        if plan.question == "gradient" and plan.number in released.states
    }
    found = [(number, delta) for number, delta in deltas.items() if delta is not None]
    affordable = max(1, IMAGE_GRADIENTS[isinstance(model, Conv4)] // len(pool.examples.y))
    if len(found) > affordable:
        found = [found[round(i)] for i in np.linspace(0, len(found) - 1, affordable)]
    return dict(found)


def _own_prior(pool: Candidates, released: Released) -> Tensor | None:
    """The log class frequencies that the hospital trained with: its noised counts of round 0 left it."""
    federation, model = pool.agreement.federation, pool.agreement.model
    answer = released.answer(FIRST_ROUND, pool.name, statistics.layout(federation, model).size)
    if answer is None:
        return None
    declared = pool.hospital.config.hospital.declared_patients
    return statistics.prior(answer, federation, model, declared).to(pool.examples.device)


def _logits(model: Model, state: State, examples: Examples) -> Tensor:
    with torch.no_grad():
        return model.logits(state.theta.to(examples.device), examples.z, *_scaling(state, examples))


def _scaling(state: State, examples: Examples) -> tuple[Tensor, Tensor]:
    return state.shift.to(examples.device), state.scale.to(examples.device)


def _numpy(scores: Tensor) -> Floats:
    return np.asarray(scores.detach().cpu().double().numpy(), dtype=np.float64)
