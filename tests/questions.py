"""Questions of ours, asked of a cohort in a test."""

from __future__ import annotations

from torch import Tensor

from wardround.algorithms.fedavg import FedAvg
from wardround.config import Federation
from wardround.labels import LABEL_KINDS, LabelKind
from wardround.labels.one import kind as one_class
from wardround.models import Model, Objective
from wardround.questions import Blocks, Cohort, Point, SumQuestion
from wardround.schedule import QUESTIONS
from wardround.task import Task
from wardround_client.privacy.private_cohort import PrivateCohort


def agreement_of(model: Model, labels: LabelKind = one_class) -> Federation:
    """An agreement about as many classes as the model has; its algorithm predicts with the model as it is."""
    classes = tuple(f"class {number}" for number in range(model.classes))
    name = next(name for name in LABEL_KINDS.built_in if LABEL_KINDS[name] is labels)
    ends = tuple(range(1, model.classes + 1)) if labels.timed else ()
    task = Task(label_column="y", classes=classes, labels=name, ends=ends)
    return Federation(name="test", task=task, algorithm=FedAvg())


def at(loss: Objective, theta: Tensor) -> Point:
    return Point(agreement_of(loss.model, loss.labels), loss, theta)


def ask(question: str, cohort: Cohort, loss: Objective, theta: Tensor) -> Tensor:
    """The answer, as one vector; of training questions that of the primitive itself, whatever an algorithm asks."""
    return QUESTIONS[question].ask(cohort, at(loss, theta))


def parts(question: str, cohort: Cohort, loss: Objective, theta: Tensor) -> dict[str, Tensor]:
    """The answer, by the names of its layout."""
    point = at(loss, theta)
    return QUESTIONS[question].layout(point.federation, loss.model).unpack(ask(question, cohort, loss, theta))


def blocks(question: str, cohort: PrivateCohort, loss: Objective, theta: Tensor) -> Tensor:
    """What each patient adds to a sum, float64 [patients, size]."""
    sums, point = QUESTIONS[question], at(loss, theta)
    assert isinstance(sums, SumQuestion)
    return cohort._blocks(Blocks(sums.summands(point.federation, loss.model)), sums.of_images(point))


def answer_size(question: str, model: Model) -> int:
    return QUESTIONS[question].layout(agreement_of(model), model).size
