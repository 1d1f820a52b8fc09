"""Classes are findings, each there or not: y float32 [n, classes], 1 where a finding is there, else 0."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from wardround import elementary
from wardround.labels import LEAST_PREVALENCE, SEPARATOR, LabelKind

if TYPE_CHECKING:
    from wardround.labels import Labels
    from wardround.questions import Shots
    from wardround.task import Task


class Findings(LabelKind):
    """Findings that may stand together, learned by the mean of their binary cross entropies."""

    described = "several findings an image"
    unknown = (
        "correct misspelt findings in the CSV and ingest again; any other text says that nothing of the task is there"
    )
    elementary = True
    full = 2

    def check(self, task: Task) -> None:
        """No name holds the separator. Raises: ValueError."""
        if any(SEPARATOR in name for name in task.classes):
            raise ValueError('with several labels a class holds no ";"')

    def names_in(self, cell: str) -> list[str]:
        """A cell holds those that are there, with ";" between; any other text is no finding of the task."""
        return [name.strip() for name in cell.split(SEPARATOR)]

    def parse(self, cells: Sequence[str | None], task: Task) -> tuple[Labels, npt.NDArray[np.bool_]]:
        """Every example that has a cell at all is used."""
        named = [self.names_in(cell or "") for cell in cells]
        y = np.array([[name in there for name in task.classes] for there in named], dtype=np.float32)
        return y.reshape(len(cells), len(task.classes)), np.array([cell is not None for cell in cells], dtype=bool)

    def alike(self, y: Labels, classes: Sequence[str]) -> tuple[str, str] | None:
        """All of the same findings."""
        if len(np.unique(y, axis=0)) > 1:
            return None
        return "shows the same findings", "a finding that some have and some have not"

    def invented(self, number: int, task: Task) -> Tensor:
        """One finding each, in turn."""
        return one_hot(torch.arange(number) % len(task.classes), len(task.classes)).float()

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """As they are."""
        return y

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The mean over findings of their binary cross entropies.

        y may be float32 [n, 2, classes]: how much each absence and each presence weigh, as `balanced` says.
        """
        absent, there = (1 - y, y) if y.dim() == 2 else y.unbind(1)
        return (absent * softplus(logits) + there * softplus(-logits)).mean(1)

    def errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """(p - y) / classes, with p the sigmoids."""
        return (elementary.sigmoid(logits) - y.double()) / logits.shape[1]

    def prior(self, counts: Tensor, declared_patients: int) -> Tensor:
        """log(p / (1 - p)), float32 [classes], p = count / declared patients, LEAST_PREVALENCE away from 0 and 1."""
        return (counts / declared_patients).clamp(LEAST_PREVALENCE, 1 - LEAST_PREVALENCE).logit()

    def balanced(self, shots: Shots, classes: int) -> Shots:
        """Each finding and each absence weighs the same; their weights stand in y (see `losses`)."""
        there = shots.shares(classes).unsqueeze(1)
        shares = torch.cat([shots.weight[:, None, None] - there, there], 1)
        patients = shares.sum(0)
        seen = patients > 0
        factors = torch.where(seen, patients.sum() / (patients * seen.sum()), 0.0)
        return replace(shots, y=(shares > 0) * factors)

    def probabilities(self, logits: Tensor) -> Tensor:
        """The sigmoids."""
        return logits.sigmoid()

    def prediction(self, probabilities: Sequence[float], classes: Sequence[str]) -> str:
        """Those of a probability of at least 1/2, or "none"."""
        return SEPARATOR.join(name for name, p in zip(classes, probabilities, strict=True) if p >= 0.5) or "none"

    def stratum(self, votes: Tensor) -> Tensor:
        """The rarest finding that any image of a patient shows."""
        return rarest(votes > 0)

    def score(self, probabilities: Tensor, y: Tensor, classes: int) -> float:
        """The mean, over the findings and absences that occur, of the share for which p >= 1/2 is right."""
        truth = torch.cat([y, 1 - y], 1)
        predicted = torch.cat([probabilities >= 0.5, probabilities < 0.5], 1)
        there = truth.sum(0)
        return float(((truth * predicted).sum(0)[there > 0] / there[there > 0]).mean())

    def chance(self, classes: int) -> float | None:
        """Of as many that are there as are not, each said to be there or not."""
        return 0.5


def rarest(shown: Tensor) -> Tensor:
    """int64 [patients], from the classes that each patient shows, bool [patients, classes]: the rarest of them.

    With one class a patient that is the class itself. Of several the rarest is the one that a resample could lose;
    strata of whole combinations would have one patient each, and intervals without width. Who shows none is one more
    stratum, `classes`.
    """
    patients, classes = shown.shape
    rarity = torch.where(shown, shown.sum(0), patients + 1).argmin(1)
    return torch.where(shown.any(1), rarity, classes)


kind = Findings()
