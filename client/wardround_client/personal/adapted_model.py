"""A model that a hospital adapted to its own patients, ready to predict."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor

from wardround.algorithms import Fitted
from wardround.config import Federation
from wardround.errors import DataError
from wardround.release import Release
from wardround_client.cohort.examples import Examples
from wardround_client.personal.kinds import fitted_to
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.shared_model import SharedModel


@dataclass(frozen=True)
class EmbeddedSupport:
    """The support as the model sees it, image by image; of an image of cells their mean.

    embedded: float32 [n, e]. y: [n, ...]. patient: int64 [n]. points: as `Learner.points`; of a model that wardround
    0.1 saved, the embeddings alone.
    """

    embedded: Tensor
    y: Tensor
    patient: Tensor
    points: Tensor

    @classmethod
    def of(cls, learner: Learner, support: Examples) -> EmbeddedSupport:
        """Embed a support."""
        cells = support.cells
        return cls(
            over_cells(learner.embed(support.z), cells),
            support.y if cells == 1 else over_cells(support.y, cells),
            support.patient[::cells],
            over_cells(learner.points(support.z), cells),
        )


def over_cells(values: Tensor, cells: int) -> Tensor:
    """The mean over the cells of each image: [n cells, ...] -> [n, ...]."""
    return values if cells == 1 else values.view(-1, cells, *values.shape[1:]).mean(1)


@dataclass(frozen=True)
class AdaptedModel:
    """An adapted model.

    name: its folder's. federation: with the hospital's task. release: what it was adapted from. learner: at the start,
    whose theta has the task's classes.
    fitted: what the algorithm made of the support. cases: the support. support: pseudonyms of patients 0, 1, 2 ... of
    it. recipe: of the rows, as the cohort's layout writes it. shots: patients a class that were asked for, 0 for half
    of them; seed: of the split. new_classes: whether the federation's head was left behind.
    """

    name: str
    federation: Federation
    release: Release
    learner: Learner
    fitted: Fitted
    cases: EmbeddedSupport
    support: tuple[bytes, ...]
    recipe: str
    shots: int
    seed: int
    new_classes: bool

    @classmethod
    def learned(
        cls,
        name: str,
        start: SharedModel,
        support: Labelled,
        *,
        recipe: str,
        shots: int,
        seed: int,
        tune: bool | None = None,
    ) -> AdaptedModel:
        """Learn from a support. tune: how far to go is chosen on it too; None: where that takes seconds, of a linear
        model with a label a whole example.

        Raises: DataError, when it is empty.
        """
        learner = start.learner(support.examples.device)
        if tune if tune is not None else learner.linear and not learner.loss.labels.dense:
            learner = learner.tuned_on(support.examples)
        return cls(
            name=name,
            federation=start.federation,
            release=start.release,
            learner=learner,
            fitted=fitted_to(learner, support),
            cases=EmbeddedSupport.of(learner, support.examples),
            support=support.pseudonyms,
            recipe=recipe,
            shots=shots,
            seed=seed,
            new_classes=start.new_classes,
        )

    def check_consent(self, withdrawn: Collection[bytes]) -> None:
        """Raises: DataError, when a patient of its support has withdrawn since."""
        gone = sum(pseudonym in withdrawn for pseudonym in self.support)
        if gone:
            raise DataError(
                f"{gone} of the {len(self.support)} patients of whom {self.name!r} was learned have withdrawn",
                do="adapt again, with --overwrite: it learns from those who are left",
            )
