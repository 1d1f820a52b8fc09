"""What leaves beside the noise: three attacks that need no statistics, because a single success is a proof.

alone      noise off, two cohorts that differ by one patient, parameters whose weights cancel: a sum moves by more than
           its sensitivity where somebody else's numbers changed in their last bits
refusals   the whole round, on hostile parameters and odd patients: a refusal, or another reply, tells who is there
retries    the process dies, the disk is full, the request comes again: patients are looked at twice for one price
"""

from __future__ import annotations

import logging
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from wardround.accountant import Answers, epsilon
from wardround.errors import StorageError
from wardround.labels import LABEL_KINDS
from wardround.models import Objective
from wardround.questions import Blocks, Cohort, EpisodeGradient, Loss, OfImages, Point, Summand
from wardround.schedule import QUESTIONS, RoundPlan
from wardround.wire import RequestHeader, RoundRequest, Vector, peek_reply
from wardround_client.audit.canaries import Bench, generator
from wardround_client.audit.report import AuditRow
from wardround_client.cohort.examples import Examples
from wardround_client.config import BudgetLimits, HospitalConfig, Identity
from wardround_client.consent.agreement import Agreement
from wardround_client.consent.approvals import Approvals
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import OpenCohort, answer

CERTAIN = 1e6
"""The epsilon that stands for a proof: whoever sees the answer knows."""
NO_NOISE = 1e-9
_ROUNDING = 1e-3  # of a sensitivity: an answer is float32
_TRIES = 8  # thetas of each size
_SIZES = (5, 9, 17)
_ROWS = 500  # of which the one that cancels best is taken
_MAGNITUDE = 9e5  # within the default policy's


@dataclass(frozen=True)
class Attack:
    """name: one word. answers: how many it asks for at most. make: does it."""

    name: str
    answers: int
    make: Callable[[], AuditRow]


def beside_the_noise(bench: Bench, terms: Agreement) -> list[Attack]:
    """All three."""
    questions = len(_each_question(terms))
    return [
        Attack("alone", questions * len(_SIZES) * _TRIES * 2, lambda: _alone(bench, terms)),
        Attack(
            "refusals",
            questions * 36,
            lambda: _verdict("refusals", "a refusal depends on a patient", lambda: _refusals(bench, terms)),
        ),
        Attack(
            "retries",
            questions * 10,
            lambda: _verdict("retries", "patients are looked at twice for one price", lambda: _retries(bench, terms)),
        ),
    ]


def _verdict(name: str, tests: str, attack: Callable[[], tuple[bool, int]]) -> AuditRow:
    logger = logging.getLogger("wardround_client.round")  # its warnings are about real rounds
    before = logger.disabled
    logger.disabled = True
    try:
        proved, answers = attack()
    finally:
        logger.disabled = before
    return AuditRow(name, tests, "nothing", 0.0, CERTAIN if proved else 0.0, 1, answers)


# --- alone


def _alone(bench: Bench, terms: Agreement) -> AuditRow:
    """How far a sum moves at most, in units of its sensitivity, and what noise is worth that was made for one unit."""
    worst, answers, sigma, times = 1.0, 0, math.inf, 1
    for plan in _each_question(terms):
        for examples, theta in _worlds(bench):
            moved = _moved(bench, plan, examples, theta)
            if moved is None:
                break
            bench.tick(2)
            answers += 2
            if moved > worst * (1 + _ROUNDING):
                worst = moved
        noise = bench.calibration.noise_multiplier(plan.question)
        if moved is not None and noise < sigma:
            sigma, times = noise, plan.times
    return AuditRow(
        "alone",
        "a patient who leaves changes what others add",
        "nothing",
        epsilon([Answers(sigma, 1.0, times)], bench.delta),
        epsilon([Answers(sigma / worst, 1.0, times)], bench.delta) if worst > 1 else 0.0,
        1,
        answers,
    )


def _worlds(bench: Bench) -> Iterator[tuple[Examples, Tensor]]:
    """Cohorts, of whom the first patient will leave, and parameters that are hostile to them."""
    random, model, task = generator(), bench.model, bench.federation.task
    labels = LABEL_KINDS[task.labels]
    for size in _SIZES:
        x, whose = torch.rand(2, *task.input_shape, generator=random), [0] + [1] * (size - 1)  # all others are alike
        z, y = model.encode(x.to(bench.device))[whose], labels.invented(2, task).to(bench.device)[whose]
        patient = torch.arange(size, device=bench.device)
        examples = Examples(z, y, patient, model.summary(z), model.classes, labels=labels)
        for number in range(_TRIES):
            yield examples, _hostile(model.layout.size, number, z[1].flatten().cpu(), random).to(bench.device)


def _hostile(size: int, number: int, known: Tensor, random: torch.Generator) -> Tensor:
    """Weights that cancel out on somebody known, in pairs, or not at all."""
    theta = torch.randn(size, generator=random)
    match number % 4:
        case 0 | 1:
            known = known.double()
            rows = _MAGNITUDE * (2 * torch.rand(_ROWS, len(known), generator=random, dtype=torch.float64) - 1)
            for _ in range(3):
                rows = rows - torch.outer(rows @ known, known) / (known @ known).clamp_min(1e-30)
            rows = rows.float().clamp(-_MAGNITUDE, _MAGNITUDE)
            row = rows[(rows.double() @ known).abs().argmin()][: size // 2]  # so that rounding decides its sign
            theta = torch.zeros(size)
            theta[len(row) : 2 * len(row)] = row
        case 2:
            theta = _MAGNITUDE * torch.stack([theta, -theta], 1).flatten()[:size].clamp(-1, 1)
        case _:
            theta = theta * 10.0 ** torch.randint(-40, 5, (size,), generator=random)
    return theta


class _Seen(Exception):
    """The first answer is there, and nobody needs another."""


class _InUnits:
    """A cohort whose first answer is kept, in units in which one patient moves it by at most 1.

    An episode's is not: what bounds it is that a patient is in one episode, which an attack of its own looks at.
    """

    def __init__(self, bench: Bench, cohort: Cohort) -> None:
        self.first: Tensor | None = None
        self._bench, self._cohort = bench, cohort

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        self.first = self._cohort.gradient(loss, theta).double().cpu() * self._bench.per_clip_norm()
        raise _Seen

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        raise _Seen

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        answer = self._cohort.sum(summands, of_images).double().cpu()
        self.first = Blocks(tuple(summands)).scaled(answer, down=True)
        raise _Seen


def _moved(bench: Bench, plan: RoundPlan, examples: Examples, theta: Tensor) -> float | None:
    """How far the first answer moves when a patient leaves; None for one of episodes."""
    d = bench.model.scaling_size
    tiny = torch.full((d,), 1.1e-6, device=bench.device)
    loss = Objective.of(bench.federation, bench.model, torch.zeros(d, device=bench.device), tiny)
    there = torch.ones(len(examples.y), dtype=torch.bool, device=bench.device)
    there[0] = False
    worlds = [_InUnits(bench, bench.alone(NO_NOISE, each)) for each in (examples, examples.subset(there))]
    for world in worlds:
        with suppress(_Seen):
            QUESTIONS[plan.question].ask(world, Point(bench.federation, loss, theta))
    one, other = (world.first for world in worlds)
    return None if one is None or other is None else float((one - other).norm())


# --- the whole round


class OneAgreement(Approvals):
    """Approvals of a hospital that stands for nobody: one agreement, for any run."""

    def __init__(self, hospital: Hospital, agreement: Agreement) -> None:
        super().__init__(hospital.home, hospital.config, hospital.ledger)
        self._agreement = agreement

    def agreement(self, digest: str) -> Agreement:
        """That one, whatever the digest."""
        return self._agreement

    def permit(self, digest: str, run: str) -> None:
        """Any run."""


class _Invented(Hospital):
    """A hospital of invented patients: no approval, no disk, a ledger in memory."""

    def __init__(self, bench: Bench, terms: Agreement, world: Examples, ledger: Ledger) -> None:
        identity = Identity(name="audit", declared_patients=bench.declared_patients)
        super().__init__(
            Path(tempfile.gettempdir()) / "wardround-audit-of-nobody",
            HospitalConfig(hospital=identity, budget=BudgetLimits(epsilon=1e6)),
            ledger,
        )
        self.approvals, self._world = OneAgreement(self, terms), world

    def examples(self, agreement: Agreement) -> Examples:
        """Invented."""
        return self._world


def _refusals(bench: Bench, terms: Agreement) -> tuple[bool, int]:
    """Whether any hostile question is answered in another way because of one patient; and how many were asked."""
    random, asked = generator(), 0
    common = bench.model.encode(torch.rand(12, *bench.federation.task.input_shape, generator=random).to(bench.device))
    for plan in _each_question(terms):
        for number, theta in enumerate(_thetas(terms, common[0].flatten().cpu(), random)):
            seen = set()
            for world in _odd_worlds(bench, terms, common):
                hospital = _Invented(bench, terms, world, Ledger(None))
                seen.add(_outcome(hospital, _request(terms, plan, theta, f"run-{number}"), bench.open_cohort))
                asked += 1
                bench.tick(1)
            if len(seen) != 1 or any(kinds == ("reserved",) for *_, kinds in seen):
                return True, asked
            if any(error and kinds for error, _, kinds in seen):
                return True, asked
    return False, asked


def _outcome(hospital: Hospital, blob: bytes, open_cohort: OpenCohort) -> tuple[str, int, tuple[str, ...]]:
    """What can be seen of an answer: an error or none, its length, and what the ledger holds."""
    reply = answer(hospital, blob, open_cohort)
    refusal = peek_reply(reply).refusal
    kinds = tuple(entry.kind for entry in hospital.ledger.entries())
    return (refusal.error if refusal else "", len(reply), kinds)


def _retries(bench: Bench, terms: Agreement) -> tuple[bool, int]:
    """Whether patients are looked at more than once for a reservation, or two replies of one round differ."""
    asked = 0
    x = torch.rand(12, *bench.federation.task.input_shape, generator=generator())
    common = bench.model.encode(x.to(bench.device))
    (world, *_) = _odd_worlds(bench, terms, common)
    for plan in _each_question(terms):
        blob = _request(terms, plan, bench.model.initial().cpu(), "run")
        for ledger, dies in ((Ledger(None), True), (_FullDisk(None), False)):
            looks, hospital = _Looks(bench.open_cohort, dies), _Invented(bench, terms, world, ledger)
            replies = set()
            for _ in range(5):
                with suppress(_Death):
                    reply = answer(hospital, blob, looks)
                    if peek_reply(reply).refusal is None:
                        replies.add(reply)
                hospital = _Invented(bench, terms, world, ledger) if dies else hospital  # a new process
                asked += 1
                bench.tick(1)
            if looks.taken > 1 or len(replies) != 1:
                return True, asked
    return False, asked


class _Death(BaseException):
    """The process ends."""


class _Looks:
    """Opens cohorts, counts those of somebody, and lets the first of them be the process's last."""

    def __init__(self, open_cohort: OpenCohort, dies: bool) -> None:
        self.taken, self._open, self._dies = 0, open_cohort, dies

    def __call__(self, examples: Examples, **named: Any) -> Cohort:
        if examples.patients:
            self.taken += 1
            if self._dies and self.taken == 1:
                raise _Death
        return self._open(examples, **named)


class _FullDisk(Ledger):
    """Has room for a reply at the third attempt."""

    _attempts = 0

    def release(self, *args: Any, **named: Any) -> bytes:
        self._attempts += 1
        if self._attempts < 3:
            raise StorageError("no space left")
        return super().release(*args, **named)


def _each_question(terms: Agreement) -> list[RoundPlan]:
    return list({plan.question: plan for plan in reversed(terms.schedule.rounds)}.values())


def _thetas(terms: Agreement, known: Tensor, random: torch.Generator) -> Iterator[Tensor]:
    size = terms.model.layout.size
    yield terms.model.initial().cpu()
    yield torch.zeros(size)
    yield _MAGNITUDE * torch.randn(size, generator=random).sign()
    yield -_MAGNITUDE * torch.ones(size)
    yield 1e-42 * torch.ones(size)
    yield _hostile(size, 0, known, random)


def _odd_worlds(bench: Bench, terms: Agreement, common: Tensor) -> Iterator[Examples]:
    """A cohort, and the same with one more patient, who is odd."""
    task, labels = terms.federation.task, LABEL_KINDS[terms.federation.task.labels]
    for value in (None, math.nan, math.inf, 3e38, 0.0, 1e-42):
        z = common if value is None else torch.cat([common, torch.full_like(common[:1], value)])
        y, patient = labels.invented(len(z), task).to(z.device), torch.arange(len(z), device=z.device)
        yield Examples(z, y, patient, bench.model.summary(z), bench.model.classes, labels=labels)


def _request(terms: Agreement, plan: RoundPlan, theta: Tensor, run: str) -> bytes:
    d = terms.model.scaling_size
    header = RequestHeader(run=run, federation=terms.federation.digest, round=plan.number)

    def vector(tensor: Tensor) -> Vector:
        found: Vector = tensor.float().numpy()
        return found

    return RoundRequest(header, vector(theta), vector(torch.zeros(d)), vector(torch.ones(d))).pack()
