"""A cohort as one federation's model sees it: encoded once, then kept in memory for all rounds.

A cohort of one patient, of one class or of nobody gives examples too. Whether a round is answered must not depend on
a patient (docs/privacy-specification.md P56), so a round takes the cohort as it is and noise covers the rest; `check`
is for a person at home, who wants to know.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from wardround.augment import variants
from wardround.errors import DataError
from wardround.labels import LABEL_KINDS, LabelKind
from wardround.labels.one import kind as one_class
from wardround.models import Model
from wardround.task import Task
from wardround.text import counted, listed
from wardround_client.cohort.labels import cells_of
from wardround_client.isolated import image_by_image, isolation

log = logging.getLogger(__name__)

_BATCH_BYTES = 32 << 20  # of float32 pixels: what encoding holds beside its result
_UINT16_MAX = 65535.0


class Inputs(Protocol):
    """The rows of a cohort on disk, read when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, rows: npt.NDArray[np.int64], /) -> npt.NDArray[Any]: ...


class Store(Protocol):
    """What is read of a cohort on disk.

    inputs: uint16, images scaled to 0..65535, or float32, as of `CohortLayout`. marks: classes of the images' plane.
    patients: int64 [n], pseudonymous numbers.
    """

    @property
    def inputs(self) -> Inputs: ...
    @property
    def patients(self) -> npt.NDArray[np.int64]: ...
    @property
    def kind(self) -> str: ...
    @property
    def features(self) -> tuple[str, ...]: ...
    @property
    def measured(self) -> str: ...
    @property
    def marks(self) -> tuple[str, ...]: ...
    def labels(self, column: str) -> Sequence[str | None]:
        """The label code of each example; None where it has none. Raises: DataError, for an unknown column."""
        ...


@dataclass(frozen=True)
class Examples:
    """All usable examples of a cohort, for one task, on one device. With labels at places an example is a cell of an
    image: an image's cells follow one another, row by row.

    z: float32 [n, ...], encoded. y: [n, ...], as `labels` lays them out. patient: int64 [n], 0 .. patients - 1.
    summary: float32 [n, d]. classes: number of classes. left_out: examples whose label the task does not name.
    augmented: float32 [n, variants - 1, ...], the other variants of each image, encoded, which `for_learning` alone
    shows; None where there are none. labels: their kind. cells: examples that an image gives. drawn: examples of an
    image that a step draws.
    """

    z: Tensor
    y: Tensor
    patient: Tensor
    summary: Tensor
    classes: int
    left_out: int = 0
    augmented: Tensor | None = None
    labels: LabelKind = one_class
    cells: int = 1
    drawn: int = 1

    @cached_property
    def patients(self) -> int:
        """Number of distinct patients: PRIVATE, it never leaves and never enters a rate or a denominator."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    @cached_property
    def images(self) -> Tensor:
        """int64 [patients], how many examples each patient has: as PRIVATE as their number. On the examples' device."""
        return torch.bincount(self.patient, minlength=self.patients)

    @cached_property
    def by_patient(self) -> Tensor:
        """int64 [n], the examples in the order of their patients, on the examples' device."""
        return torch.argsort(self.patient, stable=True)

    @property
    def nobody(self) -> Examples:
        """The same without any patient."""
        return self.subset(torch.zeros(len(self.z), dtype=torch.bool, device=self.device))

    @cached_property
    def targets(self) -> Tensor:
        """float32 [n, classes]: which classes each example shows."""
        return self.labels.targets(self.y, self.classes)

    @cached_property
    def shown(self) -> Tensor:
        """Of cells, bool [n]: whether there is more to see than the first class, which is what is left over."""
        return (self.targets[:, 1:] > 0).any(1)

    @property
    def variants(self) -> int:
        """Of each image, the image as it is among them."""
        return 1 if self.augmented is None else 1 + self.augmented.shape[1]

    def for_learning(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images and their labels as learning sees them: each with all its variants, one after another.

        Args:
            rows: int64 [..., m], on the examples' device.

        Returns:
            x float32 [..., m variants, ...] and y [..., m variants, ...].
        """
        x, y, last = self.z[rows], self.y[rows], rows.dim()
        if self.augmented is None:
            return x, y
        x = torch.cat([x.unsqueeze(last), self.augmented[rows]], last).flatten(last - 1, last)
        return x, y.repeat_interleave(self.variants, last - 1)

    def varied(self, kept: Sequence[int]) -> Examples:
        """The same with some variants of each image: their places, of which 0 is the image as it is, and stays."""
        others = [place - 1 for place in kept if place]
        if self.augmented is None or len(others) == self.augmented.shape[1]:
            return self
        return replace(self, augmented=self.augmented[:, others] if others else None)

    def by_image(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """What function makes of z, y and summary, [k, ...] -> [k, ...], for each image in isolation: [n / cells, ...],
        of cells the mean over an image's.
        """
        if self.cells == 1:
            return image_by_image(function, self.z, self.y, self.summary)

        def mean(z: Tensor, y: Tensor, summary: Tensor) -> Tensor:
            return function(z[0], y[0], summary[0]).mean(0, keepdim=True)

        images = len(self.z) // self.cells
        parts = (each.view(images, self.cells, *each.shape[1:]) for each in (self.z, self.y, self.summary))
        return image_by_image(mean, *parts)

    def patient_means(self, values: Tensor) -> Tensor:
        """Values [n / cells, ...] of images -> [patients, ...]: the mean over each patient's images, in isolation."""
        means = values.new_zeros(self.patients, *values.shape[1:])
        order, counts = self.by_patient[:: self.cells] // self.cells, self.images // self.cells
        with isolation():
            for number, rows in enumerate(torch.split(order, counts.tolist())):
                means[number] = values[rows].mean(0)
        return means

    @property
    def device(self) -> torch.device:
        """Where the examples lie."""
        return self.z.device

    def subset(self, chosen: Tensor) -> Examples:
        """The chosen examples (bool [n]), their patients numbered anew, in the same order."""
        patient, z = torch.unique(self.patient[chosen], return_inverse=True)[1], self.z[chosen]
        return replace(
            self,
            z=z,
            y=self.y[chosen],
            patient=patient,
            summary=z if self.summary is self.z else self.summary[chosen],
            left_out=0,
            augmented=None if self.augmented is None else self.augmented[chosen],
        )


@dataclass(frozen=True)
class NamedExamples:
    """Examples, and the pseudonyms of their patients 0, 1, 2 ..., so that one can be taken out again."""

    examples: Examples
    pseudonyms: tuple[bytes, ...]

    def without(self, withdrawn: Collection[bytes]) -> NamedExamples:
        """The same without these patients; nothing is encoded again. This very object when none of them is in it."""
        gone = [number for number, pseudonym in enumerate(self.pseudonyms) if pseudonym in withdrawn]
        if not gone:
            return self
        patient = self.examples.patient
        chosen = torch.isin(patient, torch.tensor(gone, device=patient.device), invert=True)
        left = tuple(pseudonym for pseudonym in self.pseudonyms if pseudonym not in withdrawn)
        return NamedExamples(self.examples.subset(chosen), left)


def examples_of(store: Store, task: Task, model: Model, device: torch.device | str = "cpu") -> Examples:
    """Encode a cohort for a task, in batches, so that memory beyond the result stays flat.

    Args:
        store: the cohort on disk; it may hold nobody whom the task can use.
        task: which labels, which classes, which shape.
        model: its frozen part encodes.
        device: where the examples shall lie.

    Raises: DataError, as `usable_rows`.
    """
    return encoded(store, usable_rows(store, task), task, model, device)


@dataclass(frozen=True)
class UsableRows:
    """What a task can use of a cohort; it may be nothing.

    kept: int64 [n], rows of the store. y: [n, ...], as of `Examples`. patient: int64 [n], 0 .. patients - 1. patients:
    int64 [patients], the store's numbers of these patients. left_out: rows without a label of the task.
    """

    kept: npt.NDArray[np.int64]
    y: npt.NDArray[Any]
    patient: npt.NDArray[np.int64]
    patients: npt.NDArray[np.int64]
    left_out: int

    def check(self, task: Task, *, least_patients: int = 2) -> None:
        """For a person at home; in a round this refusal would tell whether one patient is there.

        Raises: DataError: no row, no label of the task, one class only, or too few patients.
        """
        if not len(self.kept) and not self.left_out:
            raise DataError(
                "the cohort is empty", do="run `wardround hospital ingest` with files and a labels CSV that match"
            )
        if not len(self.kept):
            raise DataError(
                f"no example has a {task.label_column} that the task knows",
                allowed=LABEL_KINDS[task.labels].allowed(task),
            )
        if alike := LABEL_KINDS[task.labels].alike(self.y, task.classes):
            shown, allowed = alike
            raise DataError(
                f"every example of the cohort {shown}",
                allowed=allowed,
                do="ingest labels of another class as well, or take no part",
            )
        if len(self.patients) < least_patients:
            raise DataError(
                f"the cohort has {counted(len(self.patients), 'patient')} for this task",
                allowed=f"at least {least_patients}",
            )


def usable_rows(store: Store, task: Task) -> UsableRows:
    """The rows that have a label of the task; reads no images.

    Raises: DataError: the cohort was ingested for another shape, or without the task's label column.
    """
    _shape_fits(store, task)
    codes = [task.label(cell) for cell in cells_of(store, task)]
    y, usable = LABEL_KINDS[task.labels].parse(codes, task)
    kept = np.flatnonzero(usable)
    left_out = len(codes) - len(kept)
    if left_out:
        log.info(
            "%d of %d examples are left out: they have no %s that the task knows",
            left_out,
            len(codes),
            task.label_column,
        )
    patients, patient = np.unique(np.asarray(store.patients)[kept], return_inverse=True)
    return UsableRows(kept, y[kept], patient.astype(np.int64), patients, left_out)


def _shape_fits(store: Store, task: Task) -> None:
    shape = tuple(store.inputs.shape[1:])
    if task.dense and store.marks != task.classes:
        raise DataError(
            f"the cohort has {f'planes of {chr(44).join(store.marks)}' if store.marks else 'no masks'}",
            allowed=f"masks of the task's classes, {', '.join(task.classes)}",
            do="ingest again with this federation, and with what says where its classes are",
        )
    if store.marks:
        shape = (shape[0] - 1, *shape[1:])
    if store.kind != task.kind or shape != task.input_shape:
        raise DataError(
            f"the task needs {task.kind} inputs of shape {task.input_shape}, the cohort holds {store.kind} of {shape}",
            do="ingest again for this federation's image size, channels or features",
        )
    if store.measured != task.measured:
        raise DataError(
            f"the cohort's grey values are {store.measured or 'as a viewer shows them'}",
            allowed=f"what the task measures: {task.measured or 'as a viewer shows them'}",
            do="ingest again for this federation's units and window",
        )
    if task.kind == "table" and tuple(store.features) != task.features:
        raise DataError(
            f"the cohort's columns are {listed(store.features)}",
            allowed=f"the task's features, in its order: {listed(task.features)}",
            do="ingest again for this federation's features",
        )


Encoding = Callable[[Callable[[Tensor], Tensor], Tensor, npt.NDArray[np.int64]], Tensor]
"""From an encoder, images [n, ...] and their rows in the store -> what `image_by_image` gives."""


def by_computing(encode: Callable[[Tensor], Tensor], x: Tensor, rows: npt.NDArray[np.int64]) -> Tensor:
    return image_by_image(encode, x)


@torch.no_grad()
def encoded(
    store: Store,
    rows: UsableRows,
    task: Task,
    model: Model,
    device: torch.device | str = "cpu",
    *,
    by: Encoding = by_computing,
) -> Examples:
    """Encode these rows of a cohort; see `examples_of`. by: how images are encoded, by computing or from a cache."""
    device, kept, others, labels = torch.device(device), rows.kept, task.variants - 1, LABEL_KINDS[task.labels]
    # The shapes come from an input of zeros, because there may be no row.
    blank = model.encode(torch.zeros(1, *task.input_shape, device=device))
    shape, cells = blank.shape[1:], task.cells
    z = torch.empty((len(kept) * cells, *shape), device=device)
    augmented = torch.empty((len(kept), others, *shape), device=device) if others else None
    y = np.empty((len(z), *rows.y.shape[1:]), rows.y.dtype)
    batch = max(1, _BATCH_BYTES // (4 * int(np.prod(task.input_shape))))
    for start in range(0, len(kept), batch):
        x, plane = images_of(store, kept[start : start + batch], device)
        here = slice(start * cells, (start + len(x)) * cells)
        y[here] = (
            rows.y[start : start + len(x)] if plane is None else labels.of_plane(plane, len(task.classes), task.cell_px)
        )
        for number, variant in enumerate(variants(x, task.augment)):
            part = by(model.encode, variant, kept[start : start + len(x)])
            if augmented is not None and number:
                augmented[here, number - 1] = part
            else:
                z[here] = part
    return Examples(
        z=z,
        y=torch.from_numpy(y).to(device),
        patient=torch.from_numpy(rows.patient.repeat(cells)).to(device),
        summary=_summaries(model, z),
        classes=len(task.classes),
        left_out=rows.left_out,
        augmented=augmented,
        labels=labels,
        cells=cells,
        drawn=task.drawn,
    )


def images_of(
    store: Store, rows: npt.NDArray[np.int64], device: torch.device
) -> tuple[Tensor, npt.NDArray[np.uint16] | None]:
    """What a model takes, float32 [n, ...], and the planes of marks behind it, uint16 [n, S, S], if there are any."""
    raw, plane = store.inputs[rows], None
    if store.marks:
        raw, plane = raw[:, :-1], raw[:, -1]
    x = torch.from_numpy(raw.astype(np.float32)).to(device)
    return x / _UINT16_MAX if raw.dtype == np.uint16 else x, plane


def _summaries(model: Model, z: Tensor) -> Tensor:
    """float32 [n, d] of encoded examples; the examples themselves where that is what they are."""
    blank = z.new_zeros(1, *z.shape[1:])
    return z if model.summary(blank) is blank else image_by_image(model.summary, z)
