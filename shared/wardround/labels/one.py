"""An example is of exactly one class: y int64 [n], the class's index.

torch is imported by what needs it: an agreement about such labels is read by commands that answer within a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from wardround.labels import LEAST_PREVALENCE, LabelKind

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.labels import Labels
    from wardround.questions import Shots
    from wardround.task import Task
    from wardround.vector import Layout


class OneClass(LabelKind):
    """Classes that exclude each other, learned by cross entropy."""

    described = "one class an image"
    exclusive = True
    strict = True
    elementary = True

    def parse(self, cells: Sequence[str | None], task: Task) -> tuple[Labels, npt.NDArray[np.bool_]]:
        """A cell is the name of a class; an example of any other is left out."""
        index: dict[str | None, int] = {name: number for number, name in enumerate(task.classes)}
        y = np.array([index.get(cell, -1) for cell in cells], dtype=np.int64)
        return y, y >= 0

    def alike(self, y: Labels, classes: Sequence[str]) -> tuple[str, str] | None:
        """All of one class."""
        if len(np.unique(y)) > 1:
            return None
        return f"is of one class, {classes[int(y[0])]!r}", "at least two of the task's classes"

    def invented(self, number: int, task: Task) -> Tensor:
        """The classes in turn."""
        import torch

        return torch.arange(number) % len(task.classes)

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """1 in an example's class."""
        from torch.nn.functional import one_hot

        return one_hot(y, classes).float()

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross entropy."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits, y, reduction="none")

    def errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """P - y, with p the softmax."""
        from torch.nn.functional import one_hot

        from wardround import elementary

        return elementary.softmax(logits) - one_hot(y, logits.shape[1]).double()

    def prior(self, counts: Tensor, declared_patients: int) -> Tensor:
        """Log prevalence, float32 [classes], each class at least LEAST_PREVALENCE.

        Counts may be negative or all noise; then every class counts alike.
        """
        import torch

        positive = counts.clamp(min=0)
        total = positive.sum()
        if not total > 0:
            return torch.full_like(counts, 1 / len(counts)).log()
        shares = (positive / total).clamp(min=LEAST_PREVALENCE)
        return (shares / shares.sum()).log()

    def patients(self, counts: Tensor, declared_patients: Tensor) -> Tensor:
        """The counts add up to the patients."""
        return counts.sum(1)

    def balanced(self, shots: Shots, classes: int) -> Shots:
        """By each image's weight."""
        import torch

        shares = shots.shares(classes)
        patients = shares.sum(0)
        there = patients > 0
        factors = torch.where(there, patients.sum() / (patients * there.sum()), 0.0)
        return replace(shots, weight=(shares * factors).sum(1))

    def restricted(self, shots: Shots, seen: Tensor) -> Shots:
        """Images of classes that were not seen weigh nothing."""
        return replace(shots, weight=shots.weight * seen[shots.y])

    def probabilities(self, logits: Tensor) -> Tensor:
        """The softmax."""
        return logits.softmax(1)

    def prediction(self, probabilities: Sequence[float], classes: Sequence[str]) -> str:
        """The most probable class."""
        return classes[int(np.argmax(probabilities))]

    def stratum(self, votes: Tensor) -> Tensor:
        """What most of a patient's images show."""
        return votes.argmax(1)

    def score(self, probabilities: Tensor, y: Tensor, classes: int) -> float:
        """The mean, over the classes that occur, of the share recognised."""
        from torch.nn.functional import one_hot

        right = probabilities.argmax(1) == y
        shown = one_hot(y, classes).sum(0)
        return float((right / shown[y]).sum() / (shown > 0).sum())

    def judgement(self, classes: int) -> Layout | None:
        """A confusion matrix, rows truth, columns prediction."""
        from wardround.vector import Layout

        return Layout((("confusion", (classes, classes)),))

    def judge(self, logits: Tensor, y: Tensor, classes: int) -> Tensor:
        """1 in an example's cell."""
        from torch.nn.functional import one_hot

        return one_hot(y * classes + logits.argmax(1), classes**2).float()

    def scores(self, judged: Tensor, classes: int) -> dict[str, float | None]:
        """Accuracy and balanced accuracy, in [0, 1]; None where the noise leaves nobody to count."""
        confusion = judged.view(classes, classes)
        total, rows = float(confusion.sum()), confusion.sum(1)
        there = rows > 0
        recalls = (confusion.diagonal()[there] / rows[there]).clamp(0, 1)
        return {
            "accuracy": min(max(float(confusion.trace()) / total, 0.0), 1.0) if total > 0 else None,
            "balanced_accuracy": float(recalls.mean()) if len(recalls) else None,
        }


kind = OneClass()
