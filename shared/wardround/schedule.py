"""Which rounds a run has, what each asks, and so what the whole run will cost, all known before it starts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from wardround.config import Federation

if TYPE_CHECKING:
    from wardround.vector import Layout

TrainingQuestion = Literal["gradient", "episode_gradient"]
Question = Literal["statistics", TrainingQuestion, "class_means", "confusion"]
TRAINING: tuple[TrainingQuestion, ...] = get_args(TrainingQuestion)
QUESTIONS: tuple[Question, ...] = get_args(Question)


@dataclass(frozen=True)
class RoundPlan:
    """One round: its number (from 0), the one question it asks and how often it asks it."""

    number: int
    question: Question
    times: int

    @property
    def trains(self) -> bool:
        """Whether its answer is a delta."""
        return self.question in TRAINING


@dataclass(frozen=True)
class Schedule:
    """All rounds of a run, in order. Round 0 asks for statistics; evaluations follow the rounds they judge.

    Methods whose head is made of class means ask for these before each evaluation and at the end.
    """

    rounds: tuple[RoundPlan, ...]

    @classmethod
    def of(cls, federation: Federation) -> Schedule:
        """The schedule that a federation's agreement implies; hospital and coordinator derive the same one."""
        return cls(tuple(_rounds(federation)))

    def times(self, question: Question) -> int:
        """How often the whole run asks this question."""
        return sum(plan.times for plan in self.rounds if plan.question == question)

    def __getitem__(self, number: int) -> RoundPlan:
        return self.rounds[number]

    def __len__(self) -> int:
        return len(self.rounds)


def _rounds(federation: Federation) -> Iterator[RoundPlan]:
    algorithm, last, every = federation.algorithm, federation.rounds.rounds, federation.rounds.evaluate_every
    questions: list[tuple[Question, int]] = [("statistics", 1)]
    for train in range(1, last + 1):
        questions.append((algorithm.question, algorithm.answers_per_round))
        evaluated = every > 0 and train % every == 0
        if algorithm.closes_with_means and (evaluated or train == last):
            questions.append(("class_means", 1))
        if evaluated:
            questions.append(("confusion", 1))
    for number, (question, times) in enumerate(questions):
        yield RoundPlan(number, question, times)


class Sizes(Protocol):
    """What of a model decides how long an answer is."""

    @property
    def layout(self) -> Layout: ...
    @property
    def classes(self) -> int: ...
    @property
    def scaling_size(self) -> int: ...
    @property
    def embedding_size(self) -> int: ...


def answer_layout(question: Question, model: Sizes) -> Layout:
    """Which float32 numbers the answer to a question holds, in their order: public, whatever the data are."""
    from wardround.vector import Layout  # torch takes seconds to import, and most commands need no model

    classes, features = model.classes, model.scaling_size
    match question:
        case "statistics":
            return Layout((("counts", (classes,)), ("sum_z", (features,)), ("sum_zz", (features,))))
        case "gradient" | "episode_gradient":
            return model.layout
        case "class_means":
            return Layout((("counts", (classes,)), ("sums", (classes, model.embedding_size))))
        case "confusion":
            return Layout((("confusion", (classes, classes)),))


def answer_size(question: Question, model: Sizes) -> int:
    """Float32 numbers in the answer to a question."""
    return answer_layout(question, model).size
