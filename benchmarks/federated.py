"""A federation over arrays in memory: the coordinator's own rounds, and each hospital's own answers, without a home.

Nothing is approximated: `rounds.run` asks through its `Transport`, the answer is `round.ask`'s, made by a
`PrivateCohort` with the noise that an approval of the same federation would calibrate. What is missing is what a
benchmark has no use for: the ledger, which refuses a second run of the same patients, DICOM files, and the network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from wardround.accountant import calibrate, rows_for
from wardround.config import Federation
from wardround.errors import WardroundError
from wardround.models import Model, Objective
from wardround.questions import Point
from wardround.questions.statistics import FIRST_ROUND
from wardround.questions.statistics import question as statistics
from wardround.schedule import Schedule
from wardround.wire import ReplyHeader, RoundReply, RoundRequest
from wardround_client.cohort.examples import Examples
from wardround_client.consent.agreement import Agreement
from wardround_client.personal.learner import Learner
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import OpenCohort, ask
from wardround_server.rounds import run
from wardround_simulation.exact import ExactCohort
from wardround_simulation.in_memory import InMemoryCheckpointer

RUN = "benchmark"


@dataclass
class ArrayHospital:
    """A hospital whose cohort is encoded already.

    prior: its own, from what it answered in the first round. sent: the sum of its deltas, if the algorithm remembers.
    """

    name: str
    examples: Examples
    agreement: Agreement
    open_cohort: OpenCohort
    declared_patients: int
    sent: Tensor | None = field(default=None)
    prior: Tensor | None = field(default=None)

    @classmethod
    def of(cls, name: str, examples: Examples, federation: Federation, model: Model, *, private: bool) -> ArrayHospital:
        """It declares its patients rounded down to tens, and delta is just below 1 / (10 of these)."""
        declared = max(1, examples.patients if examples.patients < 20 else examples.patients // 10 * 10)
        schedule = Schedule.of(federation)
        calibration = calibrate(schedule, federation.privacy, declared_patients=declared, delta=0.99 / (10 * declared))
        agreement = Agreement(federation, model, schedule, calibration, "")
        return cls(name, examples, agreement, PrivateCohort if private else ExactCohort, declared)

    def answer(self, blob: bytes) -> bytes:
        """A reply, as `round.answer` makes it."""
        model = self.agreement.model
        request = RoundRequest.unpack(blob, size=model.layout.size, scaling_size=model.scaling_size)
        plan = self.agreement.schedule[request.header.round]
        cohort = self.open_cohort(
            self.examples,
            privacy=self.agreement.federation.privacy,
            declared_patients=self.declared_patients,
            reserved=rows_for(self.agreement.calibration, plan),
        )
        federation = self.agreement.federation
        theta, shift, scale = (torch.from_numpy(each.copy()) for each in (request.theta, request.shift, request.scale))
        loss = Objective.of(federation, model, shift, scale, self.prior)
        answer = ask(plan, cohort, Point(federation, loss, theta, self.sent))
        if plan.trains and federation.algorithm.remembers:
            self.sent = answer if self.sent is None else self.sent + answer
        if plan.number == FIRST_ROUND:
            self.prior = statistics.prior(answer, federation, model, self.declared_patients)
        header = ReplyHeader(
            run=RUN,
            round=plan.number,
            hospital=self.name,
            declared_patients=self.declared_patients,
            epsilon=self.agreement.federation.privacy.epsilon,
        )
        return RoundReply(header, np.asarray(answer.detach().float())).pack()


class InMemory:
    """Implements `Transport` over hospitals in this process."""

    def __init__(self, hospitals: Sequence[ArrayHospital]) -> None:
        self._hospitals = {hospital.name: hospital for hospital in hospitals}

    def hospitals(self) -> Sequence[str]:
        """All of them."""
        return list(self._hospitals)

    def declared_patients(self, name: str) -> int | None:
        """As the hospital says."""
        hospital = self._hospitals.get(name)
        return None if hospital is None else hospital.declared_patients

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """One after another."""
        for name, blob in requests.items():
            yield name, self._hospitals[name].answer(blob)


def learned(federation: Federation, model: Model, cohorts: Mapping[str, Examples], *, private: bool) -> Learner:
    """Run the whole federation -> its method at the state it ends in. Every call draws other noise.

    model: with what the method learns beside it (`Algorithm.extended`). cohorts: by hospital, encoded by it.
    """
    hospitals = [ArrayHospital.of(name, each, federation, model, private=private) for name, each in cohorts.items()]
    checkpointer = InMemoryCheckpointer()
    for _ in run(federation, model, InMemory(hospitals), checkpointer, run_name=RUN, private=private):
        pass
    state = checkpointer.state
    assert state is not None
    return Learner.of(federation, model, state.theta, state.shift, state.scale)
