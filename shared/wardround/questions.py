"""The questions that an algorithm may ask about a hospital's patients. There is no other road to them.

A hospital's `PrivateCohort` answers with clipped and noised vectors whose price stands in the ledger before they are
computed; whatever an algorithm does with an answer is post-processing (architecture.md, privacy.md).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from wardround.labels import LabelKind
from wardround.labels.one import kind as one_class


class Loss(Protocol):
    """A differentiable loss of ONE patient's images."""

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...] encoded images, y [m, ...] their labels -> float32 [], the mean over the m."""
        ...


@runtime_checkable
class ElementaryLoss(Loss, Protocol):
    """A loss whose gradient elementary operations can compute (`wardround.elementary`), where `elementary` says so."""

    @property
    def elementary(self) -> bool: ...

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """The gradient of each image's own loss, float64 [m, P]: bit for bit a function of that image, theta and public
        numbers. Only where it is `elementary`.
        """
        ...


class FewShotLoss(Loss, Protocol):
    """What few-shot learners use of a model: its loss image by image, its embedding, its linear head.

    theta, float32 [P], is body, head, and whatever a method learns beside the model. The head is linear on the
    embedding: weight [classes, e] and bias [classes].
    """

    @property
    def classes(self) -> int: ...

    def each(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [n, ...], labels y [n, ...] -> float32 [n], the loss of each image."""
        ...

    def of_logits(self, logits: Tensor, y: Tensor) -> Tensor:
        """Logits [n, classes] as predicted, labels y [n, ...] -> float32 [n], the loss of each image."""
        ...

    def embed(self, theta: Tensor, x: Tensor) -> Tensor:
        """X [n, ...] -> float32 [n, e]; depends on theta's body alone."""
        ...

    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """X [n, ...] -> float32 [n, classes], as predicted."""
        ...

    def head(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """The head's place in theta float32 [P]: weight [classes, e] and bias [classes], views."""
        ...

    def with_head(self, theta: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Theta float32 [P] with another head: weight [classes, e], bias [classes]. Differentiable in all three."""
        ...

    def body(self, theta: Tensor) -> Tensor:
        """What lies below the head: float32 [b], a view."""
        ...

    def with_body(self, theta: Tensor, body: Tensor) -> Tensor:
        """Theta float32 [P], or a model's own part alone, with another body."""
        ...

    def own(self, theta: Tensor) -> Tensor:
        """The model's own part, body and head, without the extras: float32 [p], a view."""
        ...

    def with_own(self, theta: Tensor, own: Tensor) -> Tensor:
        """Theta float32 [P] with another model's own part."""
        ...

    def extras(self, theta: Tensor) -> dict[str, Tensor]:
        """What the method learns beside the model, by name, views; empty for most."""
        ...

    def with_extras(self, theta: Tensor, **extras: Tensor) -> Tensor:
        """Theta float32 [P] with other extras of these names."""
        ...


@dataclass(frozen=True)
class Shots:
    """The support or the query of an episode: the images of some patients, ragged, with classes that may be missing.

    x: [n, ...] encoded images. y: [n, ...], labels as their kind lays them out. patient: int64 [n], 0 .. patients - 1.
    weight: float32 [n], which sums to 1 over the images of a patient; 0 would be padding. labels: their kind.
    """

    x: Tensor
    y: Tensor
    patient: Tensor
    weight: Tensor
    labels: LabelKind = one_class

    def __getitem__(self, rows: Tensor | slice) -> Shots:
        """Some of the images: bool [n], int64 [m] or a slice."""
        return replace(self, x=self.x[rows], y=self.y[rows], patient=self.patient[rows], weight=self.weight[rows])

    def mean(self, values: Tensor) -> Tensor:
        """The mean over patients of the mean over a patient's images of values [n]: float32 []; 0 for no patient."""
        return (values * self.weight).sum() / self.weight.sum().clamp_min(1e-6)

    def shares(self, classes: int) -> Tensor:
        """float32 [n, classes]: the weight of each image in the classes that it shows, else 0."""
        return self.labels.targets(self.y, classes).to(self.weight.dtype) * self.weight.unsqueeze(1)

    def balanced(self, classes: int) -> Shots:
        """The same shots, weighted so that each class that occurs weighs the same."""
        return self.labels.balanced(self, classes)

    def among(self, seen: Tensor) -> Shots:
        """The same shots, weighing nothing where only classes of `seen`, bool [classes], can be predicted right."""
        return self.labels.restricted(self, seen)


class EpisodeGradient(Protocol):
    """What an algorithm makes of one episode, as a direction in which theta would go downhill.

    The cohort clips it, whatever it is; mostly it is the gradient of the loss on the query after learning from the
    support.
    """

    def __call__(self, theta: Tensor, support: Shots, query: Shots) -> Tensor:
        """Theta float32 [P], neither side empty -> float32 [P]."""
        ...


class Embed(Protocol):
    """x [n, ...] encoded images -> float32 [n, e], of about unit variance, at fixed parameters."""

    def __call__(self, x: Tensor) -> Tensor: ...


class Predict(Protocol):
    """x [n, ...] encoded images -> float32 [n, classes] logits, at fixed parameters."""

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Statistics:
    """Noised class counts and feature moments: one answer, one Gaussian.

    counts: float32 [classes], patients a class (an image-averaged patient counts as shares), may be negative.
    sum_z, sum_zz: float32 [d], sums over patients of clipped features and of their squares.
    """

    counts: Tensor
    sum_z: Tensor
    sum_zz: Tensor

    def pack(self) -> Tensor:
        """float32 [classes + 2 d]: counts, sum_z, sum_zz."""
        return torch.cat([self.counts, self.sum_z, self.sum_zz])

    @classmethod
    def unpack(cls, vector: Tensor, classes: int) -> Statistics:
        """The inverse of `pack`. Raises: ValueError, when what follows the counts cannot be halved."""
        if (len(vector) - classes) % 2 or len(vector) < classes:
            raise ValueError(f"{len(vector)} numbers are not {classes} counts and two moments")
        counts, sum_z, sum_zz = torch.split(vector, [classes, *[(len(vector) - classes) // 2] * 2])
        return cls(counts, sum_z, sum_zz)


@dataclass(frozen=True)
class ClassMeans:
    """Noised sums of embeddings and patients, a class: one answer, one Gaussian.

    sums: float32 [classes, e], sums over patients of clipped embeddings. counts: float32 [classes], may be negative.
    """

    sums: Tensor
    counts: Tensor

    def means(self, floor: float = 1.0) -> Tensor:
        """Prototypes, float32 [classes, e]; noisy counts below `floor` are taken as `floor`, above 0."""
        return self.sums / self.counts.clamp_min(floor).unsqueeze(1)

    def pack(self) -> Tensor:
        """float32 [classes (e + 1)]: the counts, then the sums class by class."""
        return torch.cat([self.counts, self.sums.flatten()])

    @classmethod
    def unpack(cls, vector: Tensor, classes: int) -> ClassMeans:
        """The inverse of `pack`. Raises: ValueError, when the length is not classes times something."""
        if len(vector) < classes or len(vector) % classes:
            raise ValueError(f"{len(vector)} numbers are not the means of {classes} classes")
        return cls(vector[classes:].view(classes, -1), vector[:classes])


class Cohort(Protocol):
    """A hospital's patients, as an algorithm sees them."""

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over one Poisson sample of patients of clipped mean gradients, plus noise, divided by
        a public number of expected patients. privacy.md, "One step".
        """
        ...

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over one sample's episodes of their clipped gradients, plus noise, divided by a public
        number of episodes. A patient is in one episode at most, and there in the support or in the query; an episode
        without one of the two counts as zero. privacy.md, "Each algorithm".
        """
        ...

    def class_means(self, embed: Embed) -> ClassMeans:
        """Noised sums of embeddings and counts of patients, a class; of all patients."""
        ...

    def statistics(self) -> Statistics:
        """Noised class counts and moments of the encoder's features."""
        ...

    def confusion(self, predict: Predict) -> Tensor:
        """float32 [classes, classes]: noised counts, rows truth, columns prediction; a patient weighs at most 1."""
        ...
