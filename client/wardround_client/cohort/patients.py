"""A hospital's patients: the cohort on disk, less those who have withdrawn, and as each federation's model sees it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import torch

from wardround.config import Federation
from wardround.models import Model
from wardround.task import Task
from wardround_client.cohort.examples import Examples, NamedExamples, UsableRows, encoded, usable_rows
from wardround_client.cohort.optout import REGISTER, Register
from wardround_client.cohort.store import CohortStore
from wardround_client.keys import load_pseudonym_key


class Patients:
    """Kept over all rounds; the cohort is opened in no other way.

    home: the hospital's folder.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._examples: dict[str, NamedExamples] = {}

    @cached_property
    def key(self) -> bytes:
        """Secret key of the pseudonyms, 32 bytes. Raises: StorageError."""
        return load_pseudonym_key(self._home)

    @cached_property
    def register(self) -> Register:
        """The opt-out register. Raises: StorageError."""
        return Register(self._home / REGISTER, self.key)

    def cohort(self) -> CohortStore:
        """The cohort on disk, without those who have withdrawn. Raises: DataError, StorageError."""
        return CohortStore.open(self._home / "cohort", withdrawn=self.register.read())

    def usable(self, task: Task) -> UsableRows:
        """What a task can use of the cohort as it is now; encodes nothing. Raises: DataError, StorageError."""
        return usable_rows(self.cohort(), task)

    def check_fit(self, task: Task) -> None:
        """Raises: DataError, when the cohort, as it is now, does not fit a task; StorageError."""
        self.usable(task).check(task)

    def examples(self, federation: Federation, model: Model, device: torch.device) -> Examples:
        """The cohort as this federation's model sees it, encoded once and kept warm, less who has withdrawn by now.

        It may be empty: whether a round is answered must not depend on a patient (docs/privacy-specification.md P56).

        Raises:
            DataError: there is no cohort, or it was ingested for another shape or without the task's label column.
            StorageError: it cannot be read, or the opt-out register cannot.
        """
        digest = federation.digest
        if digest not in self._examples:
            store = self.cohort()
            rows = usable_rows(store, federation.task)
            pseudonyms = tuple(store.pseudonyms[number] for number in rows.patients.tolist())
            examples = encoded(store, rows, federation.task, model, device)
            self._examples[digest] = NamedExamples(examples, pseudonyms)
        # Looked at in every round, and after the encoding, which takes time: a patient may withdraw at any moment.
        withdrawn = self.register.read()
        self._examples = {each: examples.without(withdrawn) for each, examples in self._examples.items()}
        return self._examples[digest].examples
