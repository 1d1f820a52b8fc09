"""What those algorithms have in common whose task is a few-shot episode: such a file says how to learn from a support.

`wardround.algorithms.Algorithm` is the contract; `wardround.meta.fine_tuned` is for those that learn a start.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.func import grad

from wardround.algorithms import Algorithm, Fitted
from wardround.meta import stand_ins
from wardround.models.base import Model
from wardround.models.objective import Objective
from wardround.questions import Cohort, EpisodeGradient, FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.settings import LocalRate, StandIns, Unit
from wardround.vector import Layout


class Episodic(Algorithm):
    """A method whose task is an episode. local_learning_rate: alpha, which scales what a hospital sends.

    stand_ins: where supports are drawn (`wardround.meta.stand_ins`), patients of each class. affine: what is learned
    from a support, on a model that is linear in its features, predicts by logits that are linear in them too.
    """

    units: ClassVar[tuple[Unit, ...]] = ("episodes", "stand-ins")
    affine: ClassVar[bool] = True
    of_classes: ClassVar[tuple[str, ...]] = ("sums", "counts")
    by_class: ClassVar[tuple[str, ...]] = of_classes

    local_learning_rate: LocalRate = 1.0
    stand_ins: StandIns = 5

    def extended(self, model: Model) -> Model:
        """With the classes' sums, where supports are drawn from them. Raises: ConfigError, where they cannot be."""
        model = super().extended(model)
        return stand_ins.extended(model, self.name) if self.unit == "stand-ins" else model

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Learn from a support, differentiably in theta."""
        raise NotImplementedError

    def unadapted(self, theta: Tensor, loss: FewShotLoss) -> Fitted:
        """The model at theta; with stand-ins, what is learned from the class means."""
        if self.unit != "stand-ins":
            return super().unadapted(theta, loss)
        assert isinstance(loss, Objective)
        fitted = self.fit(theta, stand_ins.centres(theta, loss), loss)
        return {name: tensor.detach() for name, tensor in fitted.items()}

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """At home as in training."""
        return {name: tensor.detach() for name, tensor in self.fit(theta, support, loss).items()}

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The delta -alpha times the mean of the episodes' gradients, float32 [P].

        alpha scales it so that a delta means for every algorithm what Reptile's means: a displacement of the size of a
        local step.
        """
        if self.unit == "stand-ins":
            assert isinstance(loss, Objective)
            return -self.local_learning_rate * stand_ins.mean_step(self, theta, cohort, loss)
        return -self.local_learning_rate * cohort.episode_gradient(self.gradient_of(loss), theta)

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """Of one answer, times alpha. With stand-ins, of a head on the features and their sums."""
        size = layout.size
        if self.unit == "stand-ins":
            sums = layout.size_of("sums")
            size = max(size, 2 * (sums + layout.size_of("counts")) + layout.size_of("blanks"))
        return ((layout.size, answer.sum([self.local_learning_rate], size)),)

    def gradient_of(self, loss: FewShotLoss) -> EpisodeGradient:
        """What is asked about each episode: the gradient of `episode_loss`."""

        def episode_loss(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            return self.episode_loss(theta, support, query, loss)

        return grad(episode_loss)

    def episode_loss(self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss) -> Tensor:
        """The loss on the query after learning from the support, float32 []."""
        fitted = self.fit(theta, support, loss)
        return query.mean(loss.of_logits(self.predict(fitted, query.x, loss), query.y))


def headless(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """Theta float32 [P] with zeros at the head's place: a new vector, differentiable in the rest."""
    weight, bias = loss.head(theta)
    return loss.with_head(theta, torch.zeros_like(weight), torch.zeros_like(bias))
