"""What may be asked about a hospital's patients, one file a question. There is no other road to them.

A hospital's cohort answers three ways: with a sum of clipped gradients, of few-shot episodes' clipped gradients, or of
clipped vectors; each noised, its price in the ledger before it is computed. A question says which of these it asks, how
its answer looks and what the coordinator learns from it; clip and noise are the cohort's alone. Whatever is done with
an answer is post-processing (docs/privacy.md).

The file's name is the question's name, in the schedule, the ledger and hospital.toml (`wardround.schedule.QUESTIONS`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from wardround.labels import LabelKind
from wardround.labels.one import kind as one_class
from wardround.reach import EXCESS, Part, Reach
from wardround.vector import Layout

if TYPE_CHECKING:
    from wardround.config import Federation, Privacy
    from wardround.models import Model, Objective


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


@dataclass(frozen=True)
class Summand:
    """One stretch of an answer that is a sum over patients. Raises: ValueError, for a norm or weight of no length.

    name, shape: of the stretch. norm: how long a patient's part is at most, in its own units; what is longer is
    clipped. weight: how long the part is beside the others in the block that one noise is made for. Numbers of a
    greater weight bear less noise, and all others more.
    """

    name: str
    shape: tuple[int, ...]
    norm: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not all(0 < each < math.inf for each in (self.norm, self.weight)):
            raise ValueError(f"{self.name} has norm {self.norm} and weight {self.weight}")


@dataclass(frozen=True)
class Blocks:
    """How summands of any norms become one vector of norm 1 a patient, so that a sum needs one noise."""

    summands: tuple[Summand, ...]

    @property
    def layout(self) -> Layout:
        """Of an answer."""
        return Layout(tuple((each.name, each.shape) for each in self.summands))

    def units(self) -> list[float]:
        """Of each summand: what a number of the block is worth in its own units."""
        length = math.hypot(*(each.weight for each in self.summands))
        return [each.norm * length / each.weight for each in self.summands]

    def scaled(self, vector: Tensor, *, down: bool) -> Tensor:
        """A sum of blocks [..., size] in the summands' own units; down: the other way round."""
        parts = torch.split(vector, list(self.layout.sizes), -1)
        pairs = zip(parts, self.units(), strict=True)
        return torch.cat([part / unit if down else part * unit for part, unit in pairs], -1)

    def longest(self, noise_multiplier: float, declared_patients: int) -> tuple[Part, ...]:
        """How long each summand's stretch of an honest answer is."""
        return tuple(
            (size, each.norm * Reach(EXCESS * declared_patients, noise_multiplier * unit / each.norm).sum((1.0,), size))
            for each, size, unit in zip(self.summands, self.layout.sizes, self.units(), strict=True)
        )


class OfImages(Protocol):
    """What a sum adds up, of images; public numbers and each image decide its row, and no other image."""

    def __call__(self, x: Tensor, y: Tensor, features: Tensor) -> Tensor:
        """X [n, ...] encoded images, y [n, ...] their labels, features float32 [n, d], of about mean 0 and variance 1
        -> [n, size], numbers in the summands' order.
        """
        ...


@dataclass(frozen=True)
class ClassMeans:
    """Noised sums of embeddings and patients, a class.

    sums: float32 [classes, e], sums over patients of clipped embeddings. counts: float32 [classes], may be negative.
    """

    sums: Tensor
    counts: Tensor

    def means(self, floor: float = 1.0) -> Tensor:
        """Prototypes, float32 [classes, e]; noisy counts below `floor` are taken as `floor`, above 0."""
        return self.sums / self.counts.clamp_min(floor).unsqueeze(1)


class Cohort(Protocol):
    """A hospital's patients, as a question and an algorithm see them.

    Each answer takes one of those that were reserved for the round, with its noise multiplier and sampling rate.
    """

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over one Poisson sample of patients of clipped mean gradients, plus noise, divided by
        a public number of expected patients. docs/privacy-specification.md, "One step".
        """
        ...

    def episode_gradient(self, gradient: EpisodeGradient, theta: Tensor) -> Tensor:
        """float32 [P]: the sum over one sample's episodes of their clipped gradients, plus noise, divided by a public
        number of episodes. A patient is in one episode at most, and there in the support or in the query; an episode
        without one of the two counts as zero. docs/privacy-specification.md P16.
        """
        ...

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        """float32 [size of the summands]: the sum over patients of the mean over a patient's images of `of_images`,
        each summand clipped to its norm, plus noise. Where patients are sampled it is divided by the rate.
        """
        ...


@dataclass(frozen=True)
class Point:
    """Where a question is asked: the agreement, and what the coordinator sent.

    loss: of the model, with what the algorithm learns beside it, at the shared scaling; its prior is the hospital's
    own, from counts that it released before. theta: float32 [P]. sent: float32 [P], the sum of all deltas that the
    hospital released before in the run, for an algorithm that remembers; None for all others.
    """

    federation: Federation
    loss: Objective
    theta: Tensor
    sent: Tensor | None = None


@dataclass(frozen=True)
class Pool:
    """One round's answers of all hospitals that gave one.

    matrix: float32 [hospitals, size]. hospitals: their names. declared: float32 [hospitals], declared patients.
    weights: float32 [hospitals], of each in a mean. rule: how the agreement combines rows [hospitals, n] of such
    weights. share: how many hospitals these are, of those that have ever answered in the run.
    """

    matrix: Tensor
    hospitals: Sequence[str]
    declared: Tensor
    weights: Tensor
    rule: Callable[[Tensor, Tensor], Tensor]
    share: float = 1.0

    def stretches(self, layout: Layout) -> dict[str, Tensor]:
        """By name: [hospitals, *shape]."""
        parts = torch.split(self.matrix, list(layout.sizes), 1)
        return {name: part.view(-1, *shape) for (name, shape), part in zip(layout.tensors, parts, strict=True)}


@dataclass(frozen=True)
class Learned:
    """What a run has learned so far.

    theta: float32 [P]. shift, scale: float32 [d]. outer: what the algorithm's coordinator half remembers, by name.
    """

    theta: Tensor
    shift: Tensor
    scale: Tensor
    outer: Mapping[str, Tensor]


L = TypeVar("L", bound=Learned)
Findings = dict[str, Any]
"""What a round's event says of its answers, by name."""


class Question:
    """One question: all that is known of it.

    described: what leaves, for a person. trains: whether the training asks it, as often as the algorithm says, about
    Poisson samples of the agreed rate, and its answer is a delta. Others are asked once, about everybody.
    """

    described: str
    trains: bool = False

    def share(self, privacy: Privacy) -> float:
        """The part of the run's epsilon that all its answers cost together; the training gets what all others leave."""
        raise NotImplementedError

    def due(self, after: int, federation: Federation) -> bool:
        """Whether it is asked after that training round (0: before the first)."""
        return False

    def layout(self, federation: Federation, model: Model) -> Layout:
        """Which float32 numbers an answer holds, in their order: public, whatever the data are."""
        raise NotImplementedError

    def ask(self, cohort: Cohort, at: Point) -> Tensor:
        """The hospital half: ask the cohort -> float32 [size of the layout]."""
        raise NotImplementedError

    def longest(
        self, federation: Federation, model: Model, *, noise_multiplier: float, declared_patients: int
    ) -> tuple[Part, ...]:
        """How long an honest answer is at most, part by part, in their order."""
        raise NotImplementedError

    def learn(self, pool: Pool, learned: L, federation: Federation, model: Model) -> tuple[L, Findings]:
        """The coordinator half: what the run has learned after this round, and what its event says of them."""
        return learned, {}


class SumQuestion(Question):
    """A question whose answer is one noised sum over patients."""

    def summands(self, federation: Federation, model: Model) -> tuple[Summand, ...]:
        """What the sum is made of."""
        raise NotImplementedError

    def of_images(self, at: Point) -> OfImages:
        """What is added up."""
        raise NotImplementedError

    def layout(self, federation: Federation, model: Model) -> Layout:
        """The summands, one after another."""
        return Blocks(self.summands(federation, model)).layout

    def ask(self, cohort: Cohort, at: Point) -> Tensor:
        """The sum."""
        return cohort.sum(self.summands(at.federation, at.loss.model), self.of_images(at))

    def longest(
        self, federation: Federation, model: Model, *, noise_multiplier: float, declared_patients: int
    ) -> tuple[Part, ...]:
        """Of each summand."""
        return Blocks(self.summands(federation, model)).longest(noise_multiplier, declared_patients)
