"""Federated averaging of weighed gradients, and of the weights, which everybody's query teaches: see `meta.weighed`."""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import Pooled, State
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.weighed import SHARE, Weighed
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.optimizers import Optimizer
from wardround.questions import Cohort, FewShotLoss

KEPT = 0.5  # of the query's direction, from one round to the next


class Weighing(FineTuned):
    """A method whose loss is a `Weighed`."""

    one_class_each = True
    of_classes = ("query",)

    def weighed(self, loss: FewShotLoss) -> Weighed:
        """The loss, with the method's weights."""
        raise NotImplementedError

    def equal(self) -> Tensor:
        """The weights phi where nothing was learned yet, float32 [M]."""
        raise NotImplementedError

    def learned(self, state: State, weights: Tensor, gain: Tensor, loss: FewShotLoss) -> tuple[State, Tensor]:
        """The new state and weights. gain: [M], how fast the query's loss falls as each of weights [M] rises."""
        raise NotImplementedError

    def extended(self, model: Model) -> Model:
        """With the weights, and the direction of the query."""
        return Extended.of(model, {"query": torch.zeros(model.layout.size), "weights": self.equal()})

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """-eta times the sum of the answers, float32 [P]; weights and direction stay as they came meanwhile."""
        moved, weighed = torch.zeros_like(theta), self.weighed(loss)
        for _ in range(self.local_steps):
            at = loss.with_own(theta, loss.own(theta) + loss.own(moved))
            moved = moved - self.local_learning_rate * cohort.gradient(weighed, at)
        return moved

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """The outer optimizer's, of the model alone."""
        return optimizer.start(loss.own(theta))

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The model by the outer optimizer; the direction by what was asked, the weights by what was agreed."""
        state, own = optimizer.step(state, loss.own(theta), -loss.own(pooled.delta))
        beside, heard = loss.extras(theta), loss.extras(pooled.delta)
        scale = self.local_learning_rate * self.local_steps
        query = KEPT * beside["query"] - heard["query"] / scale
        state, weights = self.learned(state, beside["weights"], heard["weights"] / (SHARE * scale), loss)
        return state, loss.with_extras(loss.with_own(theta, own), query=query, weights=weights)
