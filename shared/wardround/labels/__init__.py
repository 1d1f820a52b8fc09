"""What a label is, one file a kind: how a cell of a CSV is read, how y looks, how it is learned and how it is judged.

The file's name is the value of `task.labels` in federation.toml. `y` holds one label an example along its first axis,
of whatever shape and dtype the kind likes; nothing outside these files looks into it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wardround.plugins import Kind

if TYPE_CHECKING:  # torch takes seconds to import, and federation.toml is read by commands that need none
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from wardround.questions import Shots
    from wardround.task import Task
    from wardround.vector import Layout

    Labels = npt.NDArray[Any]

SEPARATOR = ";"
"""Of the findings in one cell of a labels CSV, and of what several columns say."""

NONE = "none"
"""What a text of the CSV may mean where a finding is not there."""

LEAST_PREVALENCE = 0.01
"""A prior takes no class to be rarer than this, and no finding to be missing more rarely."""


class LabelKind:
    """A kind of labels; `classes` are everywhere how many the task has.

    described: in a few words, for a person who approves a federation. counted: whom a class counts, by its name.
    unknown: what to do about a label that the task does not know.
    exclusive: whether exactly one class is true of an example, so that methods can compare classes as wholes.
    strict: whether text that names no class is a mistake; otherwise it says that none is there.
    timed: whether classes are intervals, which end at `task.ends`.
    elementary: whether `errors` computes the slope of the loss by elementary operations; without it the gradients of
    patients are plain autograd.
    scored, evaluated: what `score` and the "accuracy" of `scores` are, for a reader.
    dense: whether an example is a cell of an image, whose label stands in a plane beside the image's channels. places:
    whether that plane is drawn from points and boxes, and findings are counted one by one.
    full: so many classes of one patient count in full in the statistics; of a patient with more, each counts less, as
    the sensitivity wants. Each more would make the noise of every count larger, by sqrt(full).
    """

    described: str
    counted: str = "{}"
    scored: str = "balanced accuracy"
    evaluated: str = "accuracy"
    unknown: str = "correct misspelt labels in the CSV and ingest again; images with any other label are not used"
    exclusive: bool = False
    strict: bool = False
    timed: bool = False
    elementary: bool = False
    dense: bool = False
    places: bool = False
    full: int = 1

    # In the agreement and in a cohort.

    def check(self, task: Task) -> None:
        """Look whether the task's classes can be classes of the kind. Raises: ValueError."""

    def names_in(self, cell: str) -> list[str]:
        """The classes, and whatever else, that a cell of the labels CSV names."""
        return [cell]

    def meanings(self, classes: Sequence[str]) -> tuple[str, ...]:
        """What texts of the CSV may mean by an agreement (`task.values`), beside no label."""
        return tuple(classes) if self.exclusive else (*classes, NONE)

    def meant(self, cell: str, values: Mapping[str, str]) -> str | None:
        """A cell as `values` says that it is meant; None for no label."""
        names = self.names_in(cell)
        if any(values.get(name) == "" for name in names):
            return None
        return SEPARATOR.join(values.get(name, name) for name in names)

    def named(self, cell: str, task: Task) -> list[str]:
        """The classes, and whatever else, that a cell speaks of, as it is meant."""
        return self.names_in(cell)

    def allowed(self, task: Task) -> str:
        """What a cell may say, for a person."""
        return ", ".join(task.classes[:20])

    def parse(self, cells: Sequence[str | None], task: Task) -> tuple[Labels, npt.NDArray[np.bool_]]:
        """Cells of the labels CSV, None where there is none -> y [n, ...], and bool [n], whether an example has a label
        of the task.
        """
        raise NotImplementedError

    def of_plane(self, plane: Labels, classes: int, cell_px: int) -> Labels:
        """Where it is `dense`: planes uint16 [n, S, S] as `wardround.planes` lays them out, S a multiple of cell_px ->
        y [n (S / cell_px)^2, ...], an image's cells row by row.
        """
        raise NotImplementedError

    def alike(self, y: Labels, classes: Sequence[str]) -> tuple[str, str] | None:
        """For a person, where all of y [n, ...] are alike: what every example is, and what would do; else None."""
        raise NotImplementedError

    def invented(self, number: int, task: Task) -> Tensor:
        """Labels y [number, ...] of nobody, as various as they can be: to rehearse with."""
        raise NotImplementedError

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """Which classes an example shows: float32 [n, classes], each from 0 to 1."""
        raise NotImplementedError

    # In learning.

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The loss of each example, float32 [n]: of logits [n, classes, ...], with the prior added, and labels
        y [n, ...], or what `balanced` made of them.
        """
        raise NotImplementedError

    def errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """The slope of each example's loss in its logits, float64 [n, classes]; only where it is `elementary`."""
        raise NotImplementedError

    def prior(self, counts: Tensor, declared_patients: int) -> Tensor:
        """From noised class counts float32 [classes]: what is added to logits in learning, and not in predicting, so
        that rare classes count as much as common ones.
        """
        raise NotImplementedError

    def patients(self, counts: Tensor, declared_patients: Tensor) -> Tensor:
        """How many patients noised counts [hospitals, classes] tell of, as far as they do: float32 [hospitals]."""
        return declared_patients

    def balanced(self, shots: Shots, classes: int) -> Shots:
        """The same shots, weighted so that each class that occurs weighs the same."""
        return shots

    def restricted(self, shots: Shots, seen: Tensor) -> Shots:
        """The same shots, weighing nothing where a model that knows the classes in `seen`, bool [classes], cannot be
        right.
        """
        return shots

    # In judging.

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits [n, classes, ...] as predicted -> float32 of the same shape, in [0, 1]."""
        raise NotImplementedError

    def prediction(self, probabilities: Sequence[float], classes: Sequence[str]) -> str:
        """What is predicted for one example, for a person."""
        raise NotImplementedError

    def stratum(self, votes: Tensor) -> Tensor:
        """The class that each patient counts for where patients are dealt class by class, int64 [patients]; `classes`
        for none. votes: float32 [patients, classes], how many of the images show each.
        """
        raise NotImplementedError

    def score(self, probabilities: Tensor, y: Tensor, classes: int) -> float:
        """The one number by which models are compared at home, in [0, 1]."""
        raise NotImplementedError

    def chance(self, classes: int) -> float | None:
        """The `score` of a model that learned nothing; None where that depends on the images."""
        return 1 / classes

    def judgement(self, classes: int) -> Layout | None:
        """What `judge` counts, for private evaluation; None where rounds cannot be evaluated privately."""
        return None

    def judge(self, logits: Tensor, y: Tensor, classes: int) -> Tensor:
        """Logits [n, classes, ...] as predicted and labels y [n, ...] -> float32 [n, size], of norm at most 1."""
        raise NotImplementedError

    def scores(self, judged: Tensor, classes: int) -> dict[str, float | None]:
        """From a noised sum over patients [size]: "accuracy", the one number for a reader, which `evaluated` names, and
        others, by name; None where nothing can be told.
        """
        raise NotImplementedError


LABEL_KINDS: Kind[LabelKind] = Kind("label kind", "wardround.labels", "kind", "wardround.labels")
