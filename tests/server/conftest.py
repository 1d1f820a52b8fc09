"""A federation small enough to do by hand, and hospitals that are functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from tests.questions import answer_size

from wardround.config import Federation, ModelChoice, Outer, Rounds
from wardround.errors import WardroundError
from wardround.models import Model, build_model
from wardround.schedule import Schedule
from wardround.task import Task
from wardround.wire import ReplyHeader, RoundReply, RoundRequest, Vector, peek_request
from wardround_server.checkpoint import Checkpointer

TASK = Task(label_column="finding", classes=("none", "nodule"), kind="table", features=("age", "bmi"))
Reply = bytes | WardroundError | None


def a_federation(rounds: int = 4, quorum: int = 2, every: int = 0, **outer: object) -> Federation:
    return Federation(
        name="small",
        task=TASK,
        model=ModelChoice(family="logistic"),
        outer=Outer.model_validate(outer),
        rounds=Rounds(rounds=rounds, quorum=quorum, deadline_s=5, evaluate_every=every),
    )


@dataclass
class FakeHospital:
    """Answers with numbers that follow from the round alone, as a stored reply would."""

    name: str
    federation: Federation
    declared: int = 100
    change: Callable[[RoundRequest, RoundReply], Reply] | None = None
    seen: list[bytes] = field(default_factory=list)

    def __call__(self, blob: bytes) -> Reply:
        self.seen.append(blob)
        model = build_model(self.federation)
        header = peek_request(blob)
        request = RoundRequest.unpack(blob, size=model.layout.size, scaling_size=model.scaling_size)
        plan = Schedule.of(self.federation)[header.round]
        seed = [header.round, *self.name.encode()]
        # Short, as a mean of clipped gradients is.
        answer = 0.2 * np.random.default_rng(seed).normal(size=answer_size(plan.question, model)).astype(np.float32)
        reply = RoundReply(self.header(header.round), np.abs(answer) if plan.question == "confusion" else answer)
        return self.change(request, reply) if self.change else reply.pack()

    def header(self, number: int, **changes: object) -> ReplyHeader:
        fields = {"run": "spring", "round": number, "hospital": self.name, "declared_patients": self.declared}
        return ReplyHeader.model_validate(fields | {"epsilon": 0.5 * (number + 1)} | changes)


class FakeTransport:
    """Hospitals called one after the other. `twice`: names that answer twice."""

    def __init__(self, *hospitals: FakeHospital, registered: bool = True, twice: Sequence[str] = ()) -> None:
        self.members = {hospital.name: hospital for hospital in hospitals}
        self.registered, self.twice = registered, twice

    def hospitals(self) -> Sequence[str]:
        return sorted(self.members)

    def declared_patients(self, name: str) -> int | None:
        return self.members[name].declared if self.registered and name in self.members else None

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        for name, blob in requests.items():
            reply = self.members[name](blob)
            for _ in range(2 if name in self.twice else 1):
                if reply is not None:
                    yield name, reply


@pytest.fixture
def federation() -> Federation:
    return a_federation()


@pytest.fixture
def model(federation: Federation) -> Model:
    return build_model(federation)


@pytest.fixture
def checkpointer(tmp_path: Path) -> Checkpointer:
    return Checkpointer(tmp_path / "spring")


def poisoned(value: float) -> Callable[[RoundRequest, RoundReply], bytes]:
    def change(_: RoundRequest, reply: RoundReply) -> bytes:
        answer: Vector = reply.answer.copy()
        answer[0] = value
        return RoundReply(reply.header, answer).pack()

    return change
