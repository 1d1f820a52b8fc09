"""A hospital's labelled patients, for adapting and judging at home: who they are, and whose scanners they saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardround.labels import LABEL_KINDS
from wardround.models import Model
from wardround.planes import shown_in
from wardround.task import Task
from wardround_client.cohort.examples import Encoding, Examples, UsableRows, by_computing, encoded, usable_rows
from wardround_client.cohort.labels import cells_of
from wardround_client.cohort.store import CohortStore
from wardround_client.personal.data_checks import Finding, class_findings, label_findings, raise_errors
from wardround_client.personal.learner import drawn
from wardround_client.personal.maps import Planes


@dataclass(frozen=True)
class Labelled:
    """Encoded examples, and of their patients 0, 1, 2 ... the pseudonyms and the scanners' manufacturers.

    A patient of several manufacturers has that of most images; of as many, the first by name. planes: of a task of
    masks or points, those of the images, in the order of the examples.
    """

    examples: Examples
    pseudonyms: tuple[bytes, ...]
    manufacturers: tuple[str, ...]
    planes: Planes | None = None

    @classmethod
    def of(
        cls,
        store: CohortStore,
        task: Task,
        model: Model,
        device: torch.device,
        *,
        shots: int = 0,
        examples: Examples | None = None,
        by: Encoding = by_computing,
    ) -> tuple[Labelled, list[Finding]]:
        """The patients whom a task can use, encoded, and what is amiss with them for so many shots (0: any).

        examples: the same patients, where they are encoded already. by: how they are encoded otherwise.

        Raises: DataError: nothing that the task can use, one class only, or fewer patients than ways x shots.
        """
        rows = usable_rows(store, task)
        rows.check(task)
        makers = [store.manufacturers[row] for row in rows.kept.tolist()]
        planes = Planes(store.inputs, rows.kept) if task.dense else None
        findings = [*_strange(store, task), *_amiss(rows, makers, task, shots, planes)]
        raise_errors(findings)
        seen: list[Counter[str]] = [Counter() for _ in rows.patients]
        for patient, maker in zip(rows.patient.tolist(), makers, strict=True):
            seen[patient][maker] += 1
        most = (min(of_patient, key=lambda maker: (-of_patient[maker], maker)) for of_patient in seen)
        pseudonyms = (store.pseudonyms[number] for number in rows.patients.tolist())
        examples = examples or encoded(store, rows, task, model, device, by=by)
        return cls(examples, tuple(pseudonyms), tuple(most), planes), findings

    def split(self, shots: int, seed: int) -> tuple[Labelled, Labelled]:
        """A support and a query without a patient in common: `drawn`, and everybody else.

        shots: patients a class, at most half of them; 0: half of them. seed: of the split.
        """
        generator = torch.Generator().manual_seed(seed)
        inside = drawn(self.examples, shots or self.examples.patients, generator)
        return self._of(inside), self._of(~inside)

    def without(self, pseudonyms: Collection[bytes]) -> Labelled:
        """The same without these patients."""
        return self._of(torch.tensor([pseudonym not in pseudonyms for pseudonym in self.pseudonyms], dtype=torch.bool))

    def _of(self, chosen: Tensor) -> Labelled:
        """The chosen patients, bool [patients]."""
        kept = torch.nonzero(chosen).flatten().tolist()
        inside = chosen.to(self.examples.device)[self.examples.patient]
        return Labelled(
            self.examples.subset(inside),
            tuple(self.pseudonyms[number] for number in kept),
            tuple(self.manufacturers[number] for number in kept),
            self.planes and self.planes.subset(inside[:: self.examples.cells].cpu()),
        )


def _strange(store: CohortStore, task: Task) -> list[Finding]:
    """Labels that the task does not know."""
    kind = LABEL_KINDS[task.labels]
    cells = map(task.label, cells_of(store, task))
    named = (name for cell in cells if cell is not None for name in kind.named(cell, task))
    return [replace(finding, do=kind.unknown) for finding in label_findings(named, task.classes)]


def _amiss(rows: UsableRows, makers: Sequence[str], task: Task, shots: int, planes: Planes | None) -> list[Finding]:
    """What is amiss with the patients and scanners of each class that is shown."""
    kind, classes = LABEL_KINDS[task.labels], task.classes
    if kind.timed:  # a class is an interval, which need not have events; who is lost is of none
        event = kind.targets(torch.from_numpy(rows.y), len(classes)).numpy().any(1)
        return class_findings(np.where(event, 0, 1), rows.patient, makers, ("the event", "no event"))
    if planes is None:
        targets = kind.targets(torch.from_numpy(rows.y), len(classes)).numpy() > 0
    else:
        targets = np.array([_shown(plane, len(task.classes)) for plane in planes], bool).reshape(-1, len(task.classes))
        if len(targets) and not targets[:, 1:].any():
            what = f"no image of the cohort shows anything but {task.classes[0]!r}"
            return [Finding("error", what, f"ingest images that show {' or '.join(task.classes[1:6])}")]
    row, label = np.nonzero(targets)
    # Background is no class that somebody must be without.
    first = 1 if planes is not None and not targets[:, 0].any() else 0
    return class_findings(
        label - first, rows.patient[row], [makers[each] for each in row.tolist()], task.classes[first:], shots=shots
    )


def _shown(plane: NDArray[Any], classes: int) -> NDArray[np.bool_]:
    """Which classes an image shows, bool [classes]; the first where it shows no other."""
    shown = shown_in(plane, classes)
    shown[0] = not shown[1:].any()
    return shown
