"""A hospital's labelled patients, for adapting and judging at home: who they are, and whose scanners they saw."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from wardround.labels import LABEL_KINDS
from wardround.models import Model
from wardround.task import Task
from wardround_client.cohort.examples import Examples, UsableRows, encoded, usable_rows
from wardround_client.cohort.store import CohortStore
from wardround_client.personal.data_checks import Finding, class_findings, label_findings, raise_errors
from wardround_client.personal.learner import drawn


@dataclass(frozen=True)
class Labelled:
    """Encoded examples, and of their patients 0, 1, 2 ... the pseudonyms and the scanners' manufacturers.

    A patient of several manufacturers has that of most images; of as many, the first by name.
    """

    examples: Examples
    pseudonyms: tuple[bytes, ...]
    manufacturers: tuple[str, ...]

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
    ) -> tuple[Labelled, list[Finding]]:
        """The patients whom a task can use, encoded, and what is amiss with them for so many shots (0: any).

        examples: the same patients, where they are encoded already.

        Raises: DataError: nothing that the task can use, one class only, or fewer patients than ways x shots.
        """
        rows = usable_rows(store, task)
        rows.check(task)
        makers = [store.manufacturers[row] for row in rows.kept.tolist()]
        findings = [*_strange(store, task), *_amiss(rows, makers, task, shots)]
        raise_errors(findings)
        seen: list[Counter[str]] = [Counter() for _ in rows.patients]
        for patient, maker in zip(rows.patient.tolist(), makers, strict=True):
            seen[patient][maker] += 1
        most = (min(of_patient, key=lambda maker: (-of_patient[maker], maker)) for of_patient in seen)
        pseudonyms = (store.pseudonyms[number] for number in rows.patients.tolist())
        examples = examples or encoded(store, rows, task, model, device)
        return cls(examples, tuple(pseudonyms), tuple(most)), findings

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
        return Labelled(
            self.examples.subset(chosen.to(self.examples.device)[self.examples.patient]),
            tuple(self.pseudonyms[number] for number in kept),
            tuple(self.manufacturers[number] for number in kept),
        )


def _strange(store: CohortStore, task: Task) -> list[Finding]:
    """Labels that the task does not know."""
    kind = LABEL_KINDS[task.labels]
    named = (name for cell in store.labels(task.label_column) if cell is not None for name in kind.names_in(cell))
    return [replace(finding, do=kind.unknown) for finding in label_findings(named, task.classes)]


def _amiss(rows: UsableRows, makers: Sequence[str], task: Task, shots: int) -> list[Finding]:
    """What is amiss with the patients and scanners of each class that is shown."""
    targets = LABEL_KINDS[task.labels].targets(torch.from_numpy(rows.y), len(task.classes))
    row, label = np.nonzero(targets.numpy())
    return class_findings(label, rows.patient[row], [makers[each] for each in row.tolist()], task.classes, shots=shots)
