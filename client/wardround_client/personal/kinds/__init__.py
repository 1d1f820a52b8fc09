"""What differs at home from one kind of labels to another: one file a kind of answer.

Examples of one class or several findings are judged and predicted image by image (`classes`); masks pixel by pixel
(`mask`); points finding by finding (`points`); times to an event by who has it first (`survival`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from wardround.algorithms import Fitted
from wardround.labels import LabelKind
from wardround_client.personal.bootstrap import Estimate
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.maps import WEIGHTS

if TYPE_CHECKING:
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.page import Columns, Page, Row


class Judged(Protocol):
    """What a model is worth to patients: `metrics` by name, each with an interval, and the same by `manufacturers`."""

    @property
    def patients(self) -> int: ...
    @property
    def metrics(self) -> Mapping[str, Estimate | None]: ...

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names of the fields."""
        ...


class AtHome(Protocol):
    """A kind of answer."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> Judged:
        """Judge predictions for patients. names: of the classes. Raises: DataError, when there is nobody."""
        ...

    def weights(self, learner: Learner, fitted: Fitted, support: Labelled) -> Tensor | None:
        """What each class' probability is multiplied with before classes are compared, float32 [classes], chosen on the
        support, of which `fitted` was made; None where classes are compared as they are.
        """
        ...

    def answers(self, page: Page) -> list[Row]:
        """What is predicted for each image of an item, beside what is said of every kind: at least `predicted`, in
        words, and heatmap, its file or "".
        """
        ...

    def pooled(self, rows: Sequence[Row], adapted: AdaptedModel) -> Row:
        """What the answers for a patient's images come to: at least `predicted`."""
        ...

    def flat(self, record: Columns) -> Columns:
        """What `answers` or `pooled` said, as columns of a table."""
        ...

    def columns(self, classes: Sequence[str], *, patients: bool) -> tuple[str, ...]:
        """The names of these columns, of images or of patients, beside those of every kind."""
        ...

    def tables(self, images: Sequence[Row]) -> Mapping[str, tuple[Sequence[str], Sequence[Columns]]]:
        """Further tables, by the names of their files: columns and lines."""
        ...


def at_home(labels: LabelKind) -> AtHome:
    """How a kind of labels is judged and predicted."""
    from wardround_client.personal.kinds import classes, mask, points, survival

    if labels.dense:
        return points.kind if labels.places else mask.kind
    return survival.kind if labels.timed else classes.kind


def fitted_to(learner: Learner, support: Labelled) -> Fitted:
    """What predicts after learning from the support, and its classes' weights. Raises: DataError, when it is empty."""
    fitted = learner.adapt(support.examples)
    weights = at_home(support.examples.labels).weights(learner, fitted, support)
    return fitted if weights is None else {**fitted, WEIGHTS: weights.to(support.examples.device)}
