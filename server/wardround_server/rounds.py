"""The coordinator's round, top to bottom: one question to every hospital, checked replies, one step, one checkpoint."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from wardround.config import Federation
from wardround.errors import (
    ConfigError,
    FederationError,
    MessageError,
    QuorumMissed,
    StorageError,
    WardroundError,
)
from wardround.models import Model, Objective
from wardround.models.scaling import no_scaling
from wardround.questions import Pool
from wardround.schedule import QUESTIONS, RoundPlan, Schedule
from wardround.text import counted, shown
from wardround.wire import Answered, RequestHeader, RoundReply, RoundRequest
from wardround_server.answers import AnswerBook
from wardround_server.bounds import Bounds
from wardround_server.checkpoint import Checkpointer, State, initial
from wardround_server.events import (
    LATE,
    Event,
    Proceeding,
    Registered,
    RoundEnded,
    RoundMissed,
    RunEnded,
    RunStarted,
    Waiting,
    versions,
)

# A hospital's node that was killed is not let in again for up to 60 s.
RECONNECT_S = 90.0
POLL_S = 0.1


class Transport(Protocol):
    """How the coordinator reaches hospitals: Flower's Grid in production, a function call in tests."""

    def hospitals(self) -> Sequence[str]:
        """Names of those reachable now."""
        ...

    def declared_patients(self, name: str) -> int | None:
        """What the hospital registered with; None when nobody vouches for the name, and it states both itself."""
        ...

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Send; yield replies and failures as they arrive; end when all have answered or the deadline has passed."""
        ...


@dataclass
class Replies:
    """One round's replies. accepted: hospital -> its checked reply. rejected: hospital -> the reason.

    clipped: hospital -> the factor by which its reply, or a part of it, was shortened to what an honest one can be.
    digests: hospital -> SHA-256 of its reply's bytes.
    """

    accepted: dict[str, RoundReply] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    clipped: dict[str, float] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)


def run(
    federation: Federation,
    model: Model,
    transport: Transport,
    checkpointer: Checkpointer,
    *,
    run_name: str,
    resume: bool = False,
    answers: AnswerBook | None = None,
    deltas: Mapping[str, float] | None = None,
    private: bool = True,
    registered: Callable[[], Mapping[str, Registered]] = dict,
    wait_s: float = 0.0,
    reconnect_s: float = RECONNECT_S,
) -> Iterator[Event]:
    """Run a federation from its first round, or from the one after its checkpoint, to its last.

    deltas: privacy's delta of hospitals that chose their own. private: answers are the mechanism's, so that no honest
    one is longer than it explains; False only for a simulation whose answers are exact.

    registered: who may take part at that moment, by name. Before its first round it waits up to `wait_s` for all of
    them, then goes on with those that are there. Before each round it waits up to `reconnect_s` for a quorum; a round
    itself ends at its deadline.

    Raises:
        ConfigError: the run exists and is not to be resumed, its checkpoint is another federation's, or its epsilon
            leaves nothing for the training.
        QuorumMissed: too few good replies before the deadline; the checkpoint stays at the round before.
        FederationError: the model is no longer finite; the checkpoint stays at the round before.
        StorageError: the checkpoint cannot be written.
    """
    with checkpointer.held():
        schedule, book = Schedule.of(federation), answers or AnswerBook()
        bounds = Bounds(federation, schedule, model, deltas) if private else None
        state = _begin(federation, model, checkpointer, run_name, resume, book)
        yield _started(federation, schedule, state, transport, registered())
        for plan in schedule.rounds[state.round :]:
            hospitals = yield from _gather(federation, plan, transport, registered, wait_s, reconnect_s)
            absent, wait_s = [name for name in registered() if name not in hospitals], 0.0
            if len(hospitals) < federation.rounds.quorum:  # an answer costs privacy: none is asked for in vain
                yield RoundMissed(**_who(plan, hospitals, absent, Replies()))
                raise _too_few(federation, plan, hospitals)
            started = time.monotonic()
            if bounds is not None:
                _prepare(bounds, transport, hospitals)
            requests = {who: _request(plan, state, state.answered.get(book.identity(who))) for who in hospitals}
            replies = _ask(federation, model, plan, transport, requests, run_name, book, bounds)
            if len(replies.accepted) < federation.rounds.quorum:
                yield RoundMissed(**_who(plan, hospitals, absent, replies))
                raise _quorum_missed(federation, plan, replies)
            state, findings = _learn(federation, model, plan, state, replies)
            state = replace(state, answered=book.last())
            checkpointer.save(state)
            yield RoundEnded(
                **_who(plan, hospitals, absent, replies),
                rounds=len(schedule),
                epsilon_max=max(state.epsilon.values()),
                epsilon=dict(state.epsilon),
                answers=replies.digests,
                **findings,
                seconds=round(time.monotonic() - started, 3),
            )
        yield RunEnded(run=run_name, rounds=len(schedule), checkpoint=str(checkpointer.path))


def _begin(
    federation: Federation, model: Model, checkpointer: Checkpointer, run_name: str, resume: bool, book: AnswerBook
) -> State:
    found = checkpointer.load(run=run_name, federation=federation.digest)
    if found is not None and not resume:
        raise ConfigError(f"run {run_name!r} exists already", do="continue it with --resume, or choose another --run")
    if found is not None and found.theta.shape != (model.layout.size,):
        raise ConfigError(
            f"{checkpointer.path} holds {len(found.theta)} parameters", allowed=f"{model.layout.size}, as the model has"
        )
    if found is not None:
        return found
    theta = model.initial().detach()
    state = initial(
        run_name,
        federation.digest,
        theta,
        model.scaling_size,
        federation.algorithm.start(
            theta, Objective.of(federation, model, *no_scaling(model.scaling_size)), federation.outer.optimizer
        ),
    )
    state = replace(state, answered=book.last())
    checkpointer.save(state)
    return state


def _request(plan: RoundPlan, state: State, last: Answered | None) -> bytes:
    """What one hospital is sent; again the same bytes when the round is asked again."""
    header = RequestHeader(run=state.run, federation=state.federation, round=plan.number, last=last)
    return RoundRequest(header, state.theta.numpy(), state.shift.numpy(), state.scale.numpy()).pack()


def _gather(
    federation: Federation,
    plan: RoundPlan,
    transport: Transport,
    registered: Callable[[], Mapping[str, Registered]],
    wait_s: float,
    reconnect_s: float,
) -> Generator[Event, None, Sequence[str]]:
    """Wait: up to `wait_s` for all that are registered, up to `reconnect_s` for a quorum -> who is connected then."""
    quorum, begun = federation.rounds.quorum, time.monotonic()

    def missing() -> tuple[str, ...]:
        return tuple(name for name in registered() if name not in hospitals)

    def seconds() -> float:
        return max(wait_s if missing() else 0.0, reconnect_s if len(hospitals) < quorum else 0.0)

    hospitals = transport.hospitals()
    if not seconds():
        return hospitals
    yield Waiting(round=plan.number, quorum=quorum, missing=missing(), seconds=seconds())
    while time.monotonic() < begun + seconds():
        time.sleep(POLL_S)
        hospitals = transport.hospitals()
    if missing() and len(hospitals) >= quorum:
        yield Proceeding(round=plan.number, absent=missing())
    return hospitals


def _ask(
    federation: Federation,
    model: Model,
    plan: RoundPlan,
    transport: Transport,
    requests: Mapping[str, bytes],
    run_name: str,
    book: AnswerBook,
    bounds: Bounds | None,
) -> Replies:
    """One exchange. A reply that cannot be used is rejected with its reason, and the round goes on."""
    replies, silent, size = Replies(), set(requests), QUESTIONS[plan.question].layout(federation, model).size
    for name, outcome in transport.exchange(requests, federation.rounds.deadline_s):
        who = name
        try:
            if isinstance(outcome, WardroundError):
                raise outcome
            reply = RoundReply.unpack(outcome, run=run_name, round=plan.number, size=size)
            who = _identify(transport, name, reply)
            if name not in silent or who in replies.accepted:
                raise MessageError("it was not asked, or has answered already", allowed="one reply a round")
            digest = hashlib.sha256(outcome).hexdigest()
            if not reply.header.refusal:
                answered = Answered(run=run_name, federation=federation.digest, round=plan.number, sha256=digest)
                book.add(name, answered, epsilon=reply.header.epsilon)
            replies.accepted[who], factor = _plausible(plan, reply, bounds)
            replies.digests[who] = digest
            if factor < 1:
                replies.clipped[who] = factor
        except StorageError:  # our own disk
            raise
        except WardroundError as error:
            replies.rejected[who] = shown(error, 500)
        silent.discard(name)
    for name in silent:
        replies.rejected[name] = f"{LATE} {federation.rounds.deadline_s:g} s"
    # In the order of names, not of arrival: the same replies give the same model, bit for bit.
    by_name = (dict(sorted(each.items())) for each in vars(replies).values())
    return Replies(*by_name)


def _identify(transport: Transport, name: str, reply: RoundReply) -> str:
    """Whose reply it is. Raises: MessageError, when it claims another name or size than was registered."""
    header = reply.header
    declared = transport.declared_patients(name)
    if declared is None and transport.declared_patients(header.hospital) is None:
        return header.hospital
    if header.hospital != name:
        raise MessageError(f"a reply of {name} in the name of {header.hospital}", allowed="its own name")
    if header.declared_patients != declared:
        raise MessageError(
            f"declares {header.declared_patients} patients", allowed=f"{declared}, as registered", do="register again"
        )
    return name


def _prepare(bounds: Bounds, transport: Transport, hospitals: Sequence[str]) -> None:
    """Have every hospital's bound at hand before it is asked: no deadline waits for a calibration."""
    for name in hospitals:
        declared = transport.declared_patients(name)
        if declared is not None:
            bounds.calibration(name, declared)


def _plausible(plan: RoundPlan, reply: RoundReply, bounds: Bounds | None) -> tuple[RoundReply, float]:
    """The reply as an honest hospital could have given it, and the factor of what was cut. See `Bounds.cut`.

    Raises: MessageError, FederationError.
    """
    if reply.header.refusal:
        refusal = reply.header.refusal
        kind = f"by its rule {refusal.rule}" if refusal.rule else refusal.error
        what = f"refused: {kind}: {refusal.asked}" if refusal.asked else f"refused: {kind}"
        raise FederationError(what, allowed=refusal.allowed)
    return (reply, 1.0) if bounds is None else bounds.cut(plan, reply)


def _learn(
    federation: Federation, model: Model, plan: RoundPlan, state: State, replies: Replies
) -> tuple[State, dict[str, Any]]:
    """What the answers teach: the next state, and what the event says of it. Raises: FederationError."""
    replied = replies.accepted
    epsilon = dict(state.epsilon) | {who: reply.header.epsilon for who, reply in replied.items()}
    declared = torch.tensor([float(reply.header.declared_patients) for reply in replied.values()])
    pool = Pool(
        matrix=torch.stack([torch.from_numpy(reply.answer.copy()) for reply in replied.values()]),
        hospitals=list(replied),
        declared=declared,
        weights=declared if federation.outer.weighting == "declared" else torch.ones(len(replied)),
        rule=federation.outer.rule,
        share=len(replied) / len(epsilon),
    )
    state = replace(state, round=plan.number + 1, epsilon=epsilon)
    state, findings = QUESTIONS[plan.question].learn(pool, state, federation, model)
    if not all(bool(tensor.isfinite().all()) for tensor in (state.theta, state.shift, state.scale)):
        raise FederationError(
            f"after round {plan.number} the model is no longer finite",
            do="lower outer.learning_rate or algorithm.local_learning_rate in a new federation.toml",
        )
    return state, findings


def _started(
    federation: Federation,
    schedule: Schedule,
    state: State,
    transport: Transport,
    registered: Mapping[str, Registered],
) -> RunStarted:
    return RunStarted(
        run=state.run,
        federation=federation.name,
        digest=federation.digest,
        from_round=state.round,
        rounds=len(schedule),
        quorum=federation.rounds.quorum,
        hospitals=tuple(transport.hospitals()),
        registered=registered,
        rule=federation.outer.rule.name,
        liars_borne=federation.outer.rule.tolerated(len(transport.hospitals())),
        versions=versions(),
    )


def _who(plan: RoundPlan, hospitals: Sequence[str], absent: Sequence[str], replies: Replies) -> dict[str, Any]:
    """The fields of a round's event that say who did what."""
    return {
        "round": plan.number,
        "question": plan.question,
        "trains": plan.trains,
        "hospitals": len(hospitals),
        "replied": len(replies.accepted),
        "absent": tuple(absent),
        "rejected": replies.rejected,
        "clipped": {who: round(factor, 4) for who, factor in replies.clipped.items()},
        "declared_patients": {who: reply.header.declared_patients for who, reply in replies.accepted.items()},
    }


def _too_few(federation: Federation, plan: RoundPlan, hospitals: Sequence[str]) -> QuorumMissed:
    return QuorumMissed(
        f"round {plan.number}: only {', '.join(hospitals)} connected, so nobody was asked"
        if hospitals
        else f"round {plan.number}: no hospital is connected",
        allowed=f"a quorum of {federation.rounds.quorum}",
        do="start the other hospitals' daemons (`wardround coordinator status` lists them), then run again with "
        "--resume; or agree on a smaller rounds.quorum",
    )


def _quorum_missed(federation: Federation, plan: RoundPlan, replies: Replies) -> QuorumMissed:
    reasons = "; ".join(f"{who}: {reason}" for who, reason in replies.rejected.items()) or "nobody else was asked"
    return QuorumMissed(
        f"round {plan.number}: {counted(len(replies.accepted), 'hospital')} gave a good reply ({reasons})",
        allowed=f"a quorum of {federation.rounds.quorum}",
        do="mend what they report, then run again with --resume: nothing that was answered is lost or paid twice",
    )
