"""The meta-learners, one file each: settings, the hospital half, the coordinator half, and what it does at home.

Nothing here imports torch, so that an agreement can be read, and its algorithm chosen, by commands that need no model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol, Self

from pydantic import model_validator

from wardround.errors import ConfigError
from wardround.plugins import Kind
from wardround.settings import Part, Unit

if TYPE_CHECKING:
    from torch import Tensor

    from wardround.models.base import Model
    from wardround.optimizers import Optimizer
    from wardround.questions import ClassMeans, Cohort, FewShotLoss, Shots
    from wardround.reach import Part as Stretch
    from wardround.reach import Reach
    from wardround.vector import Layout

Fitted = Mapping[str, "Tensor"]
"""What is left of a support once a method has learned from it; "theta" float32 [P] is always there."""
State = Mapping[str, "Tensor"]
"""What the coordinator remembers between two rounds beside theta, by name; it is in every checkpoint."""
AdaptsBy = Literal["adapt_pull", "adapt_prior", "adapt_learning_rate"]
"""The setting that says how far adapting goes from what was shared."""


@dataclass(frozen=True)
class EpisodeSizes:
    """What decides how much memory the gradient of an episode takes.

    rows: images, or rows of a table, on one side. row: numbers of one of them. part: of so many rows a first-order step
    holds the activations at once. forward: numbers that a model makes of a row on its way. theta: numbers of the
    vector. embedding, classes: of the model.
    """

    rows: int
    row: int
    part: int
    forward: int
    theta: int
    embedding: int
    classes: int

    @property
    def shots(self) -> int:
        """Numbers of both sides."""
        return 2 * self.rows * (3 * self.row + self.classes)

    @property
    def through(self) -> int:
        """Numbers that one side makes on its way through the model."""
        return self.rows * self.forward

    @property
    def embedded(self) -> int:
        """Numbers held by a method that goes through the model once, and back."""
        return self.shots + 8 * self.through + 8 * self.theta


@dataclass(frozen=True)
class Pooled:
    """One round's deltas as the agreement's rule combines them. delta: float32 [P].

    share: hospitals in it, of those that have ever answered in this run.
    """

    delta: Tensor
    share: float = 1.0


class Federated(Protocol):
    """How a federation learns: a pair of functions, `inner` at the hospital and `outer` at the coordinator."""

    @property
    def answers_per_round(self) -> int:
        """How often `inner` asks: the price of a round (docs/privacy-specification.md, "Each question")."""
        ...

    def extended(self, model: Model) -> Model:
        """The model with what the method learns beside it. Raises: ConfigError, when the method cannot use it."""
        ...

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The hospital half: theta float32 [P] -> delta float32 [P], asking exactly `answers_per_round` times."""
        ...

    def inner_after(self, sent: Tensor, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """`inner` of an algorithm that remembers: sent float32 [P] is the sum of all deltas that this hospital sent
        before in this run, zeros at first.
        """
        ...

    def longest(self, layout: Layout, answer: Reach) -> tuple[Stretch, ...]:
        """How long a delta of theta's layout can be, part by part, when its answers reach so far."""
        ...

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """What the coordinator remembers before the first round."""
        ...

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The coordinator half: one round's deltas -> the new state, and theta float32 [P]."""
        ...

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss) -> Tensor:
        """Theta float32 [P] after the closing class means (embeddings as of `FewShotLoss.embed`)."""
        ...


class Personal(Protocol):
    """What a hospital does with the result at home. Nothing leaves, so nothing is clipped or noised."""

    def unadapted(self, theta: Tensor, loss: FewShotLoss) -> Fitted:
        """What predicts before there is a shot."""
        ...

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor, like: Tensor) -> Tensor:
        """What of theta serves a task of other classes.

        Args:
            theta: float32 [P], the federation's.
            theirs: the loss of the federation's model, extended.
            ours: that of the same model with our classes, extended.
            start: float32 [P'], where ours starts.
            like: float32 [our classes, theirs], each row the shares of theirs that one of ours is made of; a row of
                zeros where it is like none.

        Returns:
            float32 [P'].
        """
        ...

    def of_scores(
        self, theta: Tensor, supports: Sequence[Shots], loss: FewShotLoss, weight: Tensor, bias: Tensor
    ) -> list[Tensor]:
        """For each support a theta float32 [P] whose classes are told by their likeness to classes that a federation
        knows.

        weight, bias: of its head, [theirs, e] and [theirs], on the embedding of theta's body.
        """
        ...

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Learn from a support, which is not empty."""
        ...

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """Logits of x [n, ...], float32 [n, classes]."""
        ...


class Algorithm(Part):
    """A meta-learner with its settings: `Federated` and `Personal`, with the usual answers to most of both.

    units: what one task may be, the first by default: a whole hospital; a few-shot episode of its patients; or an
    episode whose support is drawn from what the hospitals released, and whose query is a patient ("stand-ins").
    one_class_each: it compares classes as wholes, so that an image must be of one class. needs_embedding: it learns an
    embedding and no head. closes_with_means: the run ends with class means, from which the coordinator makes a head
    that needs no shots. compares: one case alone is a classifier. remembers: see `Federated.inner_after`. adapts_by:
    None where nothing can be set. of_classes: the extras that belong to the federation's classes, and mean nothing for
    others; by_class: those of them with a row for each class, which one of ours takes of those that it is like.
    """

    units: ClassVar[tuple[Unit, ...]] = ("hospitals",)
    one_class_each: ClassVar[bool] = False
    needs_embedding: ClassVar[bool] = False
    closes_with_means: ClassVar[bool] = False
    compares: ClassVar[bool] = False
    remembers: ClassVar[bool] = False
    adapts_by: ClassVar[AdaptsBy | None] = None
    of_classes: ClassVar[tuple[str, ...]] = ()
    by_class: ClassVar[tuple[str, ...]] = ()

    tasks: Literal["auto", Unit] = "auto"

    @model_validator(mode="after")
    def _of_its_units(self) -> Self:
        if self.tasks != "auto" and self.tasks not in self.units:
            raise ValueError(f"tasks of {self.name} are {' or '.join(self.units)}")
        return self

    @property
    def unit(self) -> Unit:
        """What one task is."""
        return self.units[0] if self.tasks == "auto" else self.tasks

    @property
    def question(self) -> Literal["gradient", "episode_gradient"]:
        """What the hospital half asks in a round."""
        return "episode_gradient" if self.unit == "episodes" else "gradient"

    @property
    def answers_per_round(self) -> int:
        """Once."""
        return 1

    def extended(self, model: Model) -> Model:
        """Nothing is learned beside the model."""
        if self.needs_embedding and not model.body_size:
            raise ConfigError(
                f"algorithm.name = {self.name!r} learns an embedding, and the model has none",
                allowed='model.embedding above 0 (encoder-head), or family "conv4" or "mlp"',
                do="set model.embedding, for instance to model.features",
            )
        return model

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """Numbers of float32 that the gradient of one episode holds at once; generous, where a file says nothing."""
        return 2 * at.embedded + 40 * at.theta + at.rows * at.classes * (64 + 9 * at.rows)

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """As the file says; of one that remembers, the first round: nothing was sent before."""
        if self.remembers:
            return self.inner_after(theta.new_zeros(theta.shape), theta, cohort, loss)
        raise NotImplementedError

    def inner_after(self, sent: Tensor, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """Most remember nothing."""
        return self.inner(theta, cohort, loss)

    def longest(self, layout: Layout, answer: Reach) -> tuple[Stretch, ...]:
        """Of a delta that is one answer."""
        return ((layout.size, answer.sum([1.0], layout.size)),)

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """The outer optimizer's alone."""
        return optimizer.start(theta)

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The outer optimizer's step: one of size 1 is the hospitals' mean step."""
        return optimizer.step(state, theta, -pooled.delta)

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss) -> Tensor:
        """As it is: no class means are asked for."""
        return theta

    def unadapted(self, theta: Tensor, loss: FewShotLoss) -> Fitted:
        """The model at theta."""
        return {"theta": theta}

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor, like: Tensor) -> Tensor:
        """The body, and what is learned beside the model; a head of those classes that ours are like, and zeros for
        others; `of_classes` as at the start, but for those `by_class`.
        """
        anew = ours.with_body(ours.with_head(start, *self.head_like(like, theta, theirs)), theirs.body(theta))
        known, learned = like.sum(1) > 0, {}
        for name, each in theirs.extras(theta).items():
            if name in self.by_class:
                mixed, before = like @ each, ours.extras(start)[name]
                learned[name] = mixed.where(known.view(-1, *[1] * (each.dim() - 1)), before)
            elif name not in self.of_classes:
                learned[name] = each
        return ours.with_extras(anew, **learned)

    def head_like(self, like: Tensor, theta: Tensor, theirs: FewShotLoss) -> tuple[Tensor, Tensor]:
        """Weight [ours, e] and bias [ours] of classes that are made of theirs, as `for_classes` says.

        Learning makes all classes equally likely, so a mixture of classes j in shares s_j has the logit log sum_j s_j
        exp z_j. Its tangent where all z_j are equal is sum_j s_j z_j: the mean of weights and of biases, for log n of a
        sum of n is log n of its shares again. Part of a class of theirs has that class's logit.
        """
        weight, bias = theirs.head(theta)
        return like @ weight, like @ bias

    def of_scores(
        self, theta: Tensor, supports: Sequence[Shots], loss: FewShotLoss, weight: Tensor, bias: Tensor
    ) -> list[Tensor]:
        """As it is: the method starts elsewhere."""
        return [theta for _ in supports]

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """As the file says."""
        raise NotImplementedError

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """The model's logits."""
        return loss.logits(fitted["theta"], x)


ALGORITHMS: Kind[type[Algorithm]] = Kind("algorithm", "wardround.algorithms", "algorithm", "wardround.algorithms")
