"""Where a model sees what, in tasks of masks and points: probabilities of cells -> maps of the image; and the truth.

A class' probability is multiplied with its weight before the classes are compared, at home alone: which probability is
enough depends on how much of an image is background, and `Kind.weights` chooses it on the support.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from wardround.algorithms import Fitted
from wardround_client.cohort.examples import Examples, Inputs
from wardround_client.personal.learner import Learner, folds_of

WEIGHTS = "weights"
"""In what was fitted to a support: float32 [classes]. Without it every class weighs 1."""
LEAST = 1e-12
"""A probability is at least so large where its logarithm is taken."""

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Planes:
    """The planes of a cohort's images (`wardround.planes`), read from the disk when they are asked for.

    inputs: rows of a cohort, the last channel of which is the plane. rows: int64 [images], which of them.
    """

    inputs: Inputs
    rows: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, image: int) -> Array:
        """uint16 [S, S]."""
        return np.asarray(self.inputs[self.rows[image : image + 1]][0, -1])

    def __iter__(self) -> Iterator[Array]:
        return (self[image] for image in range(len(self)))

    def subset(self, chosen: Tensor) -> Planes:
        """Those of the chosen images, bool [images]."""
        return replace(self, rows=self.rows[chosen.numpy()])


@dataclass(frozen=True)
class Seen:
    """Images, what a model makes of their cells, and what is there.

    cells: float32 [images, classes, side, side], probabilities, on the CPU. planes: of the images. patient: int64
    [images], 0 .. patients - 1.
    """

    cells: Tensor
    planes: Planes
    patient: Tensor

    @classmethod
    def of(cls, learner: Learner, fitted: Fitted, examples: Examples, planes: Planes) -> Seen:
        """What is predicted of examples, by what was fitted."""
        cells = grids(learner.probabilities(fitted, examples.z), examples.cells)
        return cls(cells.cpu(), planes, examples.patient[:: examples.cells].cpu())

    @classmethod
    def held_out(cls, learner: Learner, fitted: Fitted, examples: Examples, planes: Planes) -> Seen:
        """What is predicted of the examples that `fitted` was made of, by what is fitted without their patients: in
        five folds, class by class. The only patient of a class is predicted by `fitted` itself.
        """
        cells, fold = examples.cells, folds_of(examples)
        probabilities = learner.probabilities(fitted, examples.z)
        for number in torch.unique(fold[fold >= 0]):
            held = (fold == number).to(examples.device)[examples.patient]
            rest = learner.adapt(examples.subset(~held))
            probabilities[held] = learner.probabilities(rest, examples.z[held])
        return cls(grids(probabilities, cells).cpu(), planes, examples.patient[::cells].cpu())

    @property
    def patients(self) -> int:
        """Distinct ones."""
        return int(self.patient.max()) + 1 if len(self.patient) else 0

    def maps(self) -> Iterator[tuple[int, Array, Array]]:
        """Image by image: the patient, probabilities float32 [classes, S, S], and the plane uint16 [S, S]."""
        for patient, cells, plane in zip(self.patient.tolist(), self.cells, self.planes, strict=True):
            yield patient, upsampled(cells, plane.shape[-1]), plane


def grids(probabilities: Tensor, cells: int) -> Tensor:
    """Of cells [images cells, classes], row by row -> [images, classes, side, side]."""
    side = isqrt(cells)
    return probabilities.view(-1, side, side, probabilities.shape[1]).permute(0, 3, 1, 2)


def upsampled(cells: Tensor, size: int) -> Array:
    """Of one image [classes, side, side] -> float32 [classes, size, size], bilinear between the middles of cells."""
    return np.asarray(interpolate(cells[None], (size, size), mode="bilinear", align_corners=False)[0].numpy())


def weights_of(fitted: Fitted, classes: int) -> Array:
    """float32 [classes]."""
    return np.asarray(fitted.get(WEIGHTS, torch.ones(classes)).cpu().numpy(), np.float32)


def best_weights(best: Callable[[Seen, int, Array], float], seen: Seen) -> Tensor:
    """A weight for each class but the first, in turn: float32 [classes].

    best: of what is seen, a class, and the weights so far float64 [classes] -> that class' weight.
    """
    classes = seen.cells.shape[1]
    weights = np.ones(classes)
    for label in [*range(1, classes)] * (1 if classes == 2 else 2):  # the others' weights matter to each
        weights[label] = best(seen, label, weights)
    return torch.from_numpy(weights).float()


def weighted(maps: Array, weights: Array) -> Array:
    """Probabilities [classes, ...] with weights [classes] -> probabilities of the same shape."""
    found = maps * weights.reshape(-1, *[1] * (maps.ndim - 1))
    return np.asarray(found / np.maximum(found.sum(0, keepdims=True), LEAST))


def lead(maps: Array, label: int, weights: Array) -> Array:
    """By how much the logarithm of a class' probability is ahead of the best other class', which has its weight: of
    maps [classes, ...], float [...]. A class of weight w is taken where its lead is above -log w.
    """
    logs = np.log(np.maximum(maps, LEAST)) + np.log(weights).reshape(-1, *[1] * (maps.ndim - 1))
    others = np.delete(logs, label, axis=0).max(0)
    return np.asarray(np.log(np.maximum(maps[label], LEAST)) - others)
