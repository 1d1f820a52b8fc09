"""Each pixel is of one class, the first of which is what is left over: y float32 [n, classes], the part of each cell.

Without a prior: a cell is worth what it covers, so that what is predicted is how much of a cell is of a class, and a
pixel is given the class that covers most of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from wardround import elementary
from wardround.labels.one import OneClass
from wardround.planes import MOST_CLASSES, shares_of

if TYPE_CHECKING:
    from wardround.labels import Labels
    from wardround.questions import Shots
    from wardround.task import Task


class Mask(OneClass):
    """Classes of cells of an image, learned by the cross entropy of what each covers."""

    described = "a class for each pixel"
    scored = evaluated = "Dice coefficient"
    unknown = "correct the masks and ingest again; images without a mask are not used"
    dense = True

    def check(self, task: Task) -> None:
        """A plane tells so many apart. Raises: ValueError."""
        if len(task.classes) > MOST_CLASSES:
            raise ValueError(f"a mask has at most {MOST_CLASSES} classes")

    def names_in(self, cell: str) -> list[str]:
        """None: a cell says that there is a plane, and what it shows was checked when the plane was made."""
        return []

    def parse(self, cells: Sequence[str | None], task: Task) -> tuple[Labels, npt.NDArray[np.bool_]]:
        """Whether there is a mask; what it shows stands in the image's plane (`of_plane`)."""
        there = np.array([cell is not None for cell in cells], dtype=bool)
        return np.zeros((len(cells), len(task.classes)), np.float32), there

    def of_plane(self, plane: Labels, classes: int, cell_px: int) -> Labels:
        """See `planes.shares_of`."""
        return shares_of(plane, classes, cell_px)

    def alike(self, y: Labels, classes: Sequence[str]) -> tuple[str, str] | None:
        """Not known before the planes are read."""
        return None

    def invented(self, number: int, task: Task) -> Tensor:
        """The classes in turn."""
        return one_hot(torch.arange(number) % len(task.classes), len(task.classes)).float()

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """As they are."""
        return y

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """Cross entropy with what the classes cover."""
        return -(y * logits.log_softmax(1)).sum(1)

    def errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """P - y, with p the softmax of what is known of the cell."""
        y = y.double()
        return elementary.softmax(logits) * elementary.total(y).unsqueeze(1) - y

    def prior(self, counts: Tensor, declared_patients: int) -> Tensor:
        """None: float32 [classes] of zeros."""
        return torch.zeros_like(counts)

    def restricted(self, shots: Shots, seen: Tensor) -> Shots:
        """What cells show of classes that were not seen weighs nothing."""
        return replace(shots, y=shots.y * seen)

    def stratum(self, votes: Tensor) -> Tensor:
        """The class of which most is there, beside the first; the first where no other is."""
        others, which = votes[:, 1:].max(1)
        return torch.where(others > 0, which + 1, 0)

    def score(self, probabilities: Tensor, y: Tensor, classes: int) -> float:
        """The mean Dice coefficient of the classes but the first that occur, over all cells together; 0 where none
        does. By it models are compared, because background is most of an image.
        """
        taken = one_hot(probabilities.argmax(1), classes).to(y.dtype) * y.sum(1, keepdim=True)
        both, either = (taken * y).sum(0)[1:], (taken + y).sum(0)[1:]
        there = y.sum(0)[1:] > 0
        return float((2 * both[there] / either[there]).mean()) if there.any() else 0.0

    def chance(self, classes: int) -> float | None:
        """It depends on how much of an image is of a class."""
        return None

    def judge(self, logits: Tensor, y: Tensor, classes: int) -> Tensor:
        """What each cell is, in the column of what it is taken for."""
        taken = one_hot(logits.argmax(1), classes).to(y.dtype)
        return (y.unsqueeze(2) * taken.unsqueeze(1)).flatten(1)

    def scores(self, judged: Tensor, classes: int) -> dict[str, float | None]:
        """The mean Dice coefficient of the classes but the first."""
        confusion = judged.view(classes, classes)
        either = (confusion.sum(0) + confusion.sum(1))[1:]
        dice = (2 * confusion.diagonal()[1:] / either)[either > 0].clamp(0, 1)
        return {"accuracy": float(dice.mean()) if len(dice) else None}


kind = Mask()
