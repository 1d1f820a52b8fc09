"""A cohort as one federation's model sees it: encoded once, then kept in memory for all rounds."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wardround.config import Task
from wardround.errors import DataError
from wardround.models import Model

log = logging.getLogger(__name__)

_BATCH_BYTES = 32 << 20  # of float32 pixels: what encoding holds beside its result
_UINT16_MAX = 65535.0


class Store(Protocol):
    """What is read of a cohort on disk.

    inputs: uint16 [n, channels, size, size], images scaled to 0..65535, or float32 [n, features].
    patients: int64 [n], pseudonymous numbers.
    """

    @property
    def inputs(self) -> npt.NDArray[Any]: ...
    @property
    def patients(self) -> npt.NDArray[np.int64]: ...
    @property
    def kind(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    def labels(self, column: str) -> Sequence[str | None]:
        """The label code of each example; None where it has none. Raises: DataError, for an unknown column."""
        ...


@dataclass(frozen=True)
class Examples:
    """All usable examples of a cohort, for one task, on one device.

    z: float32 [n, ...], encoded. y: int64 [n], class indices. patient: int64 [n], 0 .. patients - 1.
    summary: float32 [n, d]. classes: number of classes. left_out: examples whose label the task does not name.
    """

    z: Tensor
    y: Tensor
    patient: Tensor
    summary: Tensor
    classes: int
    left_out: int = 0

    @cached_property
    def patients(self) -> int:
        """Number of distinct patients: PRIVATE, it never leaves and never enters a rate or a denominator."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @property
    def device(self) -> torch.device:
        """Where the examples lie."""
        return self.z.device


def examples_of(
    store: Store, task: Task, model: Model, device: torch.device | str = "cpu", *, least_patients: int = 2
) -> Examples:
    """Encode a cohort for a task, in batches, so that memory beyond the result stays flat.

    Args:
        store: the cohort on disk.
        task: which labels, which classes, which shape.
        model: its frozen part encodes.
        device: where the examples shall lie.
        least_patients: a cohort with fewer patients of the task's classes is refused.

    Raises: DataError, as `usable_rows`.
    """
    rows = usable_rows(store, task, least_patients=least_patients)
    z, summary = _encoded(store, rows.kept, task, model, torch.device(device))
    return Examples(
        z=z,
        y=torch.from_numpy(rows.y).to(device),
        patient=torch.from_numpy(rows.patient).to(device),
        summary=summary,
        classes=len(task.classes),
        left_out=rows.left_out,
    )


@dataclass(frozen=True)
class UsableRows:
    """What a task can use of a cohort.

    kept: int64 [n], rows of the store. y: int64 [n], class indices. patient: int64 [n], 0 .. patients - 1.
    """

    kept: npt.NDArray[np.int64]
    y: npt.NDArray[np.int64]
    patient: npt.NDArray[np.int64]
    left_out: int


def usable_rows(store: Store, task: Task, *, least_patients: int = 2) -> UsableRows:
    """The rows whose label is a class of the task; reads labels, not images.

    Raises: DataError: the cohort was ingested for another shape, has no label of the task, one class only, or too
        few patients.
    """
    _shape_fits(store, task)
    codes = store.labels(task.label_column)
    if not len(codes):
        raise DataError(
            "the cohort is empty", do="run `wardround hospital ingest` with files and a labels CSV that match"
        )
    index: dict[str | None, int] = {code: number for number, code in enumerate(task.classes)}
    y = np.array([index.get(code, -1) for code in codes], dtype=np.int64)
    kept = np.flatnonzero(y >= 0)
    left_out = len(y) - len(kept)
    if left_out:
        log.info(
            "%d of %d examples are left out: their %s is no class of the task", left_out, len(y), task.label_column
        )
    patient = _usable(np.asarray(store.patients), y, kept, task, least_patients)
    return UsableRows(kept, y[kept], patient, left_out)


def _shape_fits(store: Store, task: Task) -> None:
    shape = tuple(store.inputs.shape[1:])
    if store.kind != task.kind or shape != task.input_shape:
        raise DataError(
            f"the task needs {task.kind} inputs of shape {task.input_shape}, the cohort holds {store.kind} of {shape}",
            do="ingest again for this federation's image size, channels or features",
        )
    if task.kind == "table" and tuple(store.features) != task.features:
        raise DataError(
            f"the cohort's columns are {', '.join(store.features)}",
            allowed=f"the task's features, in its order: {', '.join(task.features)}",
            do="ingest again for this federation's features",
        )


def _usable(
    patients: npt.NDArray[np.int64], y: npt.NDArray[np.int64], kept: npt.NDArray[np.int64], task: Task, least: int
) -> npt.NDArray[np.int64]:
    """Patients of the kept examples, numbered 0 .. patients - 1. Raises: DataError."""
    if not len(kept):
        raise DataError(
            f"no example has a {task.label_column} that the task knows", allowed=", ".join(task.classes[:20])
        )
    if len(np.unique(y[kept])) < 2:
        raise DataError(
            f"every example of the cohort is of one class, {task.classes[int(y[kept][0])]!r}",
            allowed="at least two of the task's classes",
            do="ingest labels of another class as well, or take no part",
        )
    distinct, numbered = np.unique(patients[kept], return_inverse=True)
    if len(distinct) < least:
        raise DataError(f"the cohort has {len(distinct)} patients for this task", allowed=f"at least {least}")
    return numbered.astype(np.int64)


@torch.no_grad()
def _encoded(
    store: Store, kept: npt.NDArray[np.int64], task: Task, model: Model, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Z and summary of the kept examples. The first batch tells the shapes; the rest is written in place."""
    batch = max(1, _BATCH_BYTES // (4 * int(np.prod(task.input_shape))))
    z = summary = torch.zeros(0)
    for start in range(0, len(kept), batch):
        rows = kept[start : start + batch]
        raw = np.asarray(store.inputs[rows])
        x = torch.from_numpy(raw.astype(np.float32)).to(device)
        if raw.dtype == np.uint16:
            x /= _UINT16_MAX
        part = model.encode(x)
        moments = model.summary(part)
        if start == 0:
            z = torch.empty((len(kept), *part.shape[1:]), dtype=torch.float32, device=device)
            summary = torch.empty((len(kept), *moments.shape[1:]), dtype=torch.float32, device=device)
        z[start : start + len(rows)] = part
        summary[start : start + len(rows)] = moments
    return z, summary
