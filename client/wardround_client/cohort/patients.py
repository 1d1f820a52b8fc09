"""A hospital's patients: the cohort on disk, less those who have withdrawn, and as each federation's model sees it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wardround.config import Federation
from wardround.models import Model
from wardround.task import Task
from wardround_client.cohort.examples import (
    Encoding,
    Examples,
    NamedExamples,
    UsableRows,
    by_computing,
    encoded,
    usable_rows,
)
from wardround_client.cohort.features import FeatureCache
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
            with self.encoding(store, federation, model, device) as by:
                examples = encoded(store, rows, federation.task, model, device, by=by)
            self._examples[digest] = NamedExamples(examples, pseudonyms)
        # Looked at in every round, and after the encoding, which takes time: a patient may withdraw at any moment.
        withdrawn = self.register.read()
        self._examples = {each: examples.without(withdrawn) for each, examples in self._examples.items()}
        return self._examples[digest].examples

    @contextmanager
    def encoding(
        self, store: CohortStore, federation: Federation, model: Model, device: torch.device
    ) -> Iterator[Encoding]:
        """How images of this cohort are encoded: by a frozen encoder once for all agreements and models that have it.

        In the end what is cached of patients who are not there any more, or withdrew meanwhile, is forgotten.
        """
        cache = self._cache(store, federation, model, device)
        if cache is None:
            yield by_computing
            return

        def from_cache(encode: Callable[[Tensor], Tensor], x: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
            return cache.encoded(encode, x, [store.pseudonyms[number] for number in store.patients[rows].tolist()])

        yield from_cache
        cache.keep_only(set(store.pseudonyms) - set(self.register.read()))

    def _cache(
        self, store: CohortStore, federation: Federation, model: Model, device: torch.device
    ) -> FeatureCache | None:
        if federation.model.family != "encoder-head" or federation.task.kind == "table":
            return None
        return FeatureCache(store.path, self.key, model.fingerprint, device)
