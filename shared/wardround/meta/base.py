"""What every algorithm file offers: a hospital half, a coordinator half, what it does at home, and its price.

`Algorithm` is the contract. `Method` is what most of them have in common, and `EpisodicMethod` what those have in
common whose task is a few-shot episode: such a file says how to learn from a support, and the rest follows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.func import grad

from wardround.config import AlgorithmChoice
from wardround.errors import ConfigError
from wardround.models.base import Model
from wardround.questions import ClassMeans, Cohort, EpisodeGradient, FewShotLoss, Shots
from wardround.reach import Part, Reach

Fitted = Mapping[str, Tensor]
"""What is left of a support once a method has learned from it; "theta" float32 [P] is always there."""


AdaptsBy = Literal["adapt_pull", "adapt_prior", "adapt_learning_rate"]
"""A setting of `AlgorithmChoice`."""


class Algorithm(Protocol):
    """A meta-learner: a pair of functions, `inner` at the hospital and `outer_gradient` at the coordinator.

    name: as in federation.toml. closes_with_means: whether the run ends with class means, from which the coordinator
    makes a head that needs no shots. adapts_by: the setting that says how far adapting goes from what was shared.
    """

    @property
    def name(self) -> str: ...
    @property
    def closes_with_means(self) -> bool: ...
    @property
    def adapts_by(self) -> AdaptsBy: ...

    def extended(self, model: Model, choice: AlgorithmChoice) -> Model:
        """The model with what the method learns beside it. Raises: ConfigError, when the method cannot use it."""
        ...

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """How often `inner` asks `choice.question`: the price of a round (privacy.md, "Each algorithm")."""
        ...

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """The hospital half: theta float32 [P] -> delta float32 [P], asking exactly `answers_per_round` times."""
        ...

    def longest(self, choice: AlgorithmChoice, size: int, answer: Reach) -> tuple[Part, ...]:
        """How long a delta of `size` numbers can be, part by part, when its answers reach so far."""
        ...

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """The coordinator half: the weighted mean delta float32 [P] -> what the outer optimizer descends on."""
        ...

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """Theta float32 [P] after the closing class means (embeddings as of `FewShotLoss.embed`)."""
        ...

    def unadapted(self, theta: Tensor, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """What predicts before there is a shot."""
        ...

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor) -> Tensor:
        """What of theta serves a task of other classes.

        Args:
            theta: float32 [P], the federation's.
            theirs: the loss of the federation's model, extended.
            ours: that of the same model with our classes, extended.
            start: float32 [P'], where ours starts.

        Returns:
            float32 [P'].
        """
        ...

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """At home: learn from a support, which is not empty. Nothing leaves, so nothing is clipped or noised."""
        ...

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """Logits of x [n, ...], float32 [n, classes]."""
        ...


class Method:
    """The usual answers: the model as it is, a delta that is a displacement, predictions of the model at theta."""

    @property
    def closes_with_means(self) -> bool:
        """Most learn a head."""
        return False

    @property
    def adapts_by(self) -> AdaptsBy:
        """Most go on from a start."""
        return "adapt_pull"

    @property
    def of_classes(self) -> tuple[str, ...]:
        """Which of the extras belong to the federation's classes, and mean nothing for others."""
        return ()

    def extended(self, model: Model, choice: AlgorithmChoice) -> Model:
        """Nothing is learned beside the model."""
        return model

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """As often as the file says."""
        raise NotImplementedError

    def longest(self, choice: AlgorithmChoice, size: int, answer: Reach) -> tuple[Part, ...]:
        """Of a delta that is alpha times the sum of all answers, as most are."""
        factors = [choice.local_learning_rate] * self.answers_per_round(choice)
        return ((size, answer.sum(factors, size)),)

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """Minus the weighted mean delta, float32 [P]: a step of size 1 along it is the hospitals' mean step."""
        return -mean_delta

    def with_means(self, theta: Tensor, means: ClassMeans, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """As it is: no class means are asked for."""
        return theta

    def unadapted(self, theta: Tensor, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """The model at theta."""
        return {"theta": theta}

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor) -> Tensor:
        """The body, and what is learned beside the model; a head of zeros, and `of_classes` as at the start."""
        learned, fresh = theirs.extras(theta), ours.extras(start)
        kept = {name: fresh[name] if name in self.of_classes else learned[name] for name in fresh}
        without = headless(start, ours)
        head_and_beside = sum(each.numel() for each in (*ours.head(start), *fresh.values()))
        body, rest = len(start) - head_and_beside, len(start) - sum(each.numel() for each in fresh.values())
        return torch.cat([theta[:body], without[body:rest], *(each.flatten() for each in kept.values())])

    def predict(self, fitted: Fitted, x: Tensor, loss: FewShotLoss) -> Tensor:
        """The model's logits."""
        return loss.logits(fitted["theta"], x)


class EpisodicMethod(Method):
    """A method whose task is an episode: its file says how it learns from a support."""

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """Learn from a support, differentiably in theta."""
        raise NotImplementedError

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """At home as in training."""
        return {name: tensor.detach() for name, tensor in self.fit(theta, support, loss, choice).items()}

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """One, of all episodes together."""
        return 1

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """The delta -alpha times the mean of the episodes' gradients, float32 [P].

        alpha scales it so that a delta means for every algorithm what Reptile's means: a displacement of the size of a
        local step.
        """
        return -choice.local_learning_rate * cohort.episode_gradient(self.gradient_of(loss, choice), theta)

    def gradient_of(self, loss: FewShotLoss, choice: AlgorithmChoice) -> EpisodeGradient:
        """What is asked about each episode: the gradient of `episode_loss`."""

        def episode_loss(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            return self.episode_loss(theta, support, query, loss, choice)

        return grad(episode_loss)

    def episode_loss(
        self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss, choice: AlgorithmChoice
    ) -> Tensor:
        """The loss on the query after learning from the support, float32 []."""
        fitted = self.fit(theta, support, loss, choice)
        return query.mean(loss.of_logits(self.predict(fitted, query.x, loss), query.y))


def with_body(model: Model, name: str) -> Model:
    """The model as it is, for the algorithm `name`. Raises: ConfigError, when it has no body to embed with."""
    if not model.body_size:
        raise ConfigError(
            f"algorithm.name = {name!r} learns an embedding, and the model has none",
            allowed='model.embedding above 0 (encoder-head), or family "conv4" or "mlp"',
            do="set model.embedding, for instance to model.features",
        )
    return model


def headless(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """Theta float32 [P] with zeros at the head's place: a new vector, differentiable in the rest."""
    weight, bias = loss.head(theta)
    return loss.with_head(theta, torch.zeros_like(weight), torch.zeros_like(bias))
