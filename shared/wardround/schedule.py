"""Which rounds a run has, what each asks, and so what the whole run will cost, all known before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from wardround.config import Federation
from wardround.plugins import Kind

if TYPE_CHECKING:  # torch takes seconds to import, and most commands need no model
    from wardround.models import Model
    from wardround.questions import Question

QUESTIONS: Kind[Question] = Kind("question", "wardround.questions", "question", "wardround.questions", joined="_")


@dataclass(frozen=True)
class RoundPlan:
    """One round: its number (from 0), the name of the one question it asks and how often it asks it."""

    number: int
    question: str
    times: int

    @property
    def trains(self) -> bool:
        """Whether its answer is a delta."""
        return QUESTIONS[self.question].trains


@dataclass(frozen=True)
class Schedule:
    """All rounds of a run, in order: training rounds, and after each (or before the first) what else is due then."""

    rounds: tuple[RoundPlan, ...]

    @classmethod
    def of(cls, federation: Federation) -> Schedule:
        """The schedule that a federation's agreement implies; hospital and coordinator derive the same one."""
        questions = (RoundPlan(number, *each) for number, each in enumerate(_questions(federation)))
        return cls(tuple(questions))

    @property
    def questions(self) -> tuple[str, ...]:
        """Names of what is asked, in the order in which it is asked first."""
        return tuple(dict.fromkeys(plan.question for plan in self.rounds if plan.times))

    def times(self, question: str) -> int:
        """How often the whole run asks this question."""
        return sum(plan.times for plan in self.rounds if plan.question == question)

    def answer_sizes(self, federation: Federation, model: Model) -> list[int]:
        """How many float32 numbers the answer of each round holds."""
        sizes = {name: QUESTIONS[name].layout(federation, model).size for name in self.questions}
        return [sizes[plan.question] for plan in self.rounds]

    def __getitem__(self, number: int) -> RoundPlan:
        return self.rounds[number]

    def __len__(self) -> int:
        return len(self.rounds)


def _questions(federation: Federation) -> Iterator[tuple[str, int]]:
    """Questions of all rounds, and how often. Several that are due at once come by their names, ours first."""
    algorithm = federation.algorithm
    for train in range(federation.rounds.rounds + 1):
        if train:
            yield algorithm.question, algorithm.answers_per_round
        names = (*QUESTIONS.built_in, *federation.rounds.questions)
        yield from ((name, 1) for name in names if QUESTIONS[name].due(train, federation))
