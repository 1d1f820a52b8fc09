"""A hospital's whole round, top to bottom: a blob arrives, a blob leaves, and nothing else does.

There is a wall in it: the reservation. Before it everything is public, and may be refused in words. Behind it patients
are looked at, and from there a round ends in one way only, a reply with noise. The reply of noise alone, an answer
about nobody, is ready before the wall; it leaves where the answer cannot be computed, whatever the reason, and where
the reservation was made before, by a process that died. A reservation is computed once.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wardround.accountant import Answers, rows_for
from wardround.config import Privacy
from wardround.errors import PolicyRefusal, WardroundError
from wardround.models import Objective
from wardround.models.scaling import no_scaling
from wardround.questions import Cohort, Point
from wardround.questions.statistics import FIRST_ROUND
from wardround.questions.statistics import question as statistics
from wardround.schedule import QUESTIONS, RoundPlan
from wardround.wire import ReplyHeader, RequestHeader, RoundReply, RoundRequest, peek_request
from wardround_client import one_life
from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.consent.policy import check_request
from wardround_client.hospital import Hospital
from wardround_client.isolated import fresh
from wardround_client.last_model import remember
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.privacy.rehearsal import Rehearsal
from wardround_client.refusal import refused

_GREATEST = 1e30  # of a number in an answer: its square is a float64, and nothing that learns is near it
log = logging.getLogger(__name__)


class OpenCohort(Protocol):
    """How a round gets at its cohort: `PrivateCohort` in every hospital; a simulation may pass an exact one."""

    def __call__(
        self, examples: Examples, *, privacy: Privacy, declared_patients: int, reserved: Sequence[Answers]
    ) -> Cohort: ...


def answer(hospital: Hospital, blob: bytes, open_cohort: OpenCohort = PrivateCohort) -> bytes:
    """Answer a round's request. Never raises: what cannot be answered becomes a refusal without data in it.

    Args:
        hospital: whose patients are asked.
        blob: a packed RoundRequest, from anybody.
        open_cohort: makes the object that the algorithm asks.

    Returns:
        A packed RoundReply.
    """
    header: RequestHeader | None = None
    asked: _Asked | None = None
    try:
        header = peek_request(blob)
        with hospital.lock:
            asked = _admit(hospital, header, blob)
            return _answer(hospital, header, asked, open_cohort)
    except WardroundError as error:
        log.warning("refused: %s", error)
        return refused(hospital.config.hospital, header, error, named=asked is None)
    except Exception as error:  # whatever it is, its text may hold data: it stays in the hospital's own log
        log.exception("a round failed")
        return refused(hospital.config.hospital, header, error, named=False)


@dataclass(frozen=True)
class _Asked:
    """A request that may be answered, and what was approved of it."""

    request: RoundRequest
    request_sha256: str
    agreement: Agreement
    plan: RoundPlan


def _admit(hospital: Hospital, header: RequestHeader, blob: bytes) -> _Asked:
    """What may be asked. Sees no patient, so the words of its refusals may leave. Raises: WardroundError."""
    # 0. One home, one life: what the coordinator has of this hospital is in this ledger.
    one_life.check(hospital, header)
    # 1. Only what was approved, within its own schedule, well formed, and of numbers that can be computed with.
    if hospital.paused.is_set():
        raise PolicyRefusal("pause", asked="a round", allowed="none until the hospital resumes")
    agreement = hospital.approvals.agreement(header.federation)
    hospital.approvals.permit(header.federation, header.run)
    plan = _plan(agreement, header.round)
    model = agreement.model
    request = RoundRequest.unpack(blob, size=model.layout.size, scaling_size=model.scaling_size)
    check_request(hospital.config, request)
    return _Asked(request, hashlib.sha256(blob).hexdigest(), agreement, plan)


def _answer(hospital: Hospital, header: RequestHeader, asked: _Asked, open_cohort: OpenCohort) -> bytes:
    agreement, plan = asked.agreement, asked.plan

    # 2. A retry gets the stored reply byte for byte, never fresh noise.
    ledger = hospital.ledger
    if stored := ledger.stored_reply(header.run, header.round, asked.request_sha256):
        return stored

    # 3. What may raise raises here, where nobody is looked at: the whole answer, about nobody.
    rows, at = rows_for(agreement.calibration, plan), _point(hospital, asked)
    price = ledger.price_of_run(header.run, header.round, rows, hospital.config.delta)
    described = _reply_header(hospital, header, price)
    layout = str(QUESTIONS[plan.question].layout(agreement.federation, agreement.model))
    examples = hospital.examples(agreement)

    def answer_about(some: Examples) -> tuple[bytes, float]:
        """The packed reply, and the length of what it holds."""
        cohort = open_cohort(
            some,
            privacy=agreement.federation.privacy,
            declared_patients=hospital.config.hospital.declared_patients,
            reserved=rows,
        )
        result = ask(plan, cohort, at)
        return RoundReply(described, result.numpy()).pack(), float(result.double().norm())

    _rehearse(hospital, agreement, plan)
    noise_alone = answer_about(examples.nobody)

    # 4. Money is counted before it is spent: the reservation is on disk before the first answer is computed.
    reservation = ledger.reserve(
        run=header.run,
        round=header.round,
        request_sha256=asked.request_sha256,
        federation=header.federation,
        coordinator=hospital.config.coordinator.identity,
        question=plan.question,
        bundle_sha256=agreement.bundle_sha256,
        rows=rows,
        budget=hospital.budget,
    )

    # 5. The algorithm asks, once; what it makes of the answers is post-processing.
    reply, norm = hospital.unreleased.get(reservation.seq, noise_alone)
    if reservation.first:
        try:
            reply, norm = answer_about(examples)
        except Exception:  # its text may hold data: it stays in the hospital's own log
            log.exception("run %s round %d could not be computed: its reply is noise alone", header.run, header.round)
    elif reservation.seq not in hospital.unreleased:
        log.warning("run %s round %d was reserved before: its reply is noise alone", header.run, header.round)
    hospital.unreleased = {reservation.seq: (reply, norm)}

    # 6. Stored, with its receipt, before it may leave. Where the disk is full it is kept, and stored another time.
    released = ledger.release(reservation, reply, norm=norm, layout=layout)
    hospital.unreleased = {}

    # 7. The model that was asked about stays here, for use at home. No patient is in it, and the reply is what it was.
    if not ledger.in_memory:
        remember(hospital.home, asked.request)
    return released


def _rehearse(hospital: Hospital, agreement: Agreement, plan: RoundPlan) -> None:
    """Once for each question of an agreement. Raises: PolicyRefusal, where this machine cannot compute it."""
    key, model = (agreement.federation.digest, plan.question), agreement.model
    if key in hospital.rehearsed:
        return
    invented = Rehearsal(agreement.federation, model, hospital.config.hospital.declared_patients, hospital.device)
    scaling = (each.to(hospital.device) for each in no_scaling(model.scaling_size))
    loss = Objective.of(agreement.federation, model, *scaling)
    try:
        ask(plan, invented, Point(agreement.federation, loss, model.initial().to(hospital.device)))
    except (MemoryError, RuntimeError):  # nobody's data are in it
        log.exception("%s cannot be rehearsed", plan.question)
        raise PolicyRefusal(
            "device",
            asked=f"{plan.question}, which this machine cannot compute",
            allowed="what fits into its memory",
        ) from None
    hospital.rehearsed.add(key)


def _plan(agreement: Agreement, number: int) -> RoundPlan:
    rounds = len(agreement.schedule)
    if number >= rounds:
        raise PolicyRefusal("approved", asked=f"round {number}", allowed=f"rounds 0 to {rounds - 1}, as approved")
    return agreement.schedule[number]


def ask(plan: RoundPlan, cohort: Cohort, at: Point) -> Tensor:
    """The round's one question -> float32 [size], on the CPU.

    What post-processing made infinite is set to public numbers, before anything packs or measures it.
    """
    question = QUESTIONS[plan.question]
    answer, layout = question.ask(cohort, at).detach().float().cpu(), question.layout(at.federation, at.loss.model)
    if answer.shape != (layout.size,):
        raise ValueError(f"{plan.question} answers with shape {list(answer.shape)}, and says {layout}")
    return torch.nan_to_num(answer, nan=0.0, posinf=_GREATEST, neginf=-_GREATEST).clamp(-_GREATEST, _GREATEST)


def _point(hospital: Hospital, asked: _Asked) -> Point:
    """Where the request asks, with what follows from this hospital's own earlier replies of the run."""
    request, agreement, run = asked.request, asked.agreement, asked.request.header.run
    prior, sent = _own_prior(hospital, run, agreement), _sent(hospital, run, agreement, asked.plan)
    # Copied into torch's own memory, whose alignment is always the same (`wardround_client.isolated`).
    theta, shift, scale = (
        fresh(torch.from_numpy(array.copy())).to(hospital.device)
        for array in (request.theta, request.shift, request.scale)
    )
    prior, sent = (None if each is None else each.to(hospital.device) for each in (prior, sent))
    loss = Objective.of(agreement.federation, agreement.model, shift, scale, prior)
    return Point(agreement.federation, loss, theta, sent)


def _own_prior(hospital: Hospital, run: str, agreement: Agreement) -> Tensor | None:
    """From the noised counts that this hospital released in the first round, and from nothing else; None before."""
    stored = hospital.ledger.reply_of(run, FIRST_ROUND)
    if stored is None:
        return None
    federation, model = agreement.federation, agreement.model
    size = statistics.layout(federation, model).size
    released = torch.from_numpy(RoundReply.unpack(stored, run=run, round=FIRST_ROUND, size=size).answer.copy())
    return statistics.prior(released, federation, model, hospital.config.hospital.declared_patients)


def _sent(hospital: Hospital, run: str, agreement: Agreement, plan: RoundPlan) -> Tensor | None:
    """The sum of the deltas that this hospital released in the run's earlier rounds, float32 [P], for an algorithm that
    remembers; None for all others. What was released is noised and paid for: this looks at nobody.
    """
    if not (agreement.federation.algorithm.remembers and plan.trains):
        return None
    key = agreement.federation.digest, run
    before, total = hospital.sent.get(key, (0, torch.zeros(agreement.model.layout.size)))
    if before > plan.number:  # a round is asked that was over: the ledger has all of them
        before, total = 0, torch.zeros_like(total)
    for earlier in agreement.schedule.rounds[before : plan.number]:
        stored = hospital.ledger.reply_of(run, earlier.number) if earlier.trains else None
        if stored is not None:
            reply = RoundReply.unpack(stored, run=run, round=earlier.number, size=len(total))
            total = total + torch.from_numpy(reply.answer.copy())
    hospital.sent = {key: (plan.number, total)}
    return total


def _reply_header(hospital: Hospital, header: RequestHeader, epsilon: float) -> ReplyHeader:
    identity = hospital.config.hospital
    return ReplyHeader(
        run=header.run,
        round=header.round,
        hospital=identity.name,
        declared_patients=identity.declared_patients,
        epsilon=round(epsilon, 6),
    )
