"""Nearest class means from one noised answer: what is left to learn when privacy is dear.

A patient adds its features to its class's sum, and one to its class's count; nothing else is asked, in one round or in
many, whose noise averages out. From the means, shrunk as their noise demands (`wardround.meta.class_sums`), follows a
head: with features f of d numbers, standardised so that they vary by 1 / d each, linear discriminant analysis (Fisher,
1936) with that public covariance has

    w_k = d m_k,   b_k = -d |m_k|^2 / 2

Nothing is trained, so nothing has to be tuned: neither steps nor their size matter, and each number is noised once in
effect. Against FedAvg's head it loses what a covariance would tell, and bears noise better: at epsilon 3 and below it
was ahead at the hospitals that stood in for targets (docs/benchmarks.md). Shrinking a class's mean towards the centre
of all is after Tibshirani et al., "Diagnosis of multiple cancer types by shrunken centroids of gene expression", 2002;
how far, is after the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import Pooled, State
from wardround.meta.class_sums import ClassMeans, WithSums, with_places
from wardround.meta.fine_tuned import FineTuned
from wardround.models.base import Model
from wardround.optimizers import Optimizer
from wardround.questions import Cohort, FewShotLoss

# A patient's vector is hypot(1, 0.3) = 1.04 long.
LENGTHS = {"sums": 1.0, "counts": 0.3, "blanks": 0.0}


class Centroids(FineTuned):
    """Class means; at home, a head that is fine-tuned from theirs."""

    one_class_each = True
    of_classes = ("sums", "counts")

    name: str = "centroids"

    def extended(self, model: Model) -> Model:
        """With the sums beside the model."""
        return with_places(model, model.embedding_size, LENGTHS)

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """What the hospital's patients add, float32 [P]: zero but at the places of the sums."""
        return -self.local_learning_rate * cohort.gradient(WithSums(loss, LENGTHS, alone=True), theta)

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The sums go on, and the head follows from them; the noise at the model's own place goes nowhere."""
        own = loss.own(pooled.delta)
        delta = loss.with_own(pooled.delta, torch.zeros_like(own))
        state, theta = optimizer.step(state, theta, -delta)
        m = ClassMeans.of(loss.extras(theta), LENGTHS).means.to(theta.dtype)
        d = m.shape[1]
        return state, loss.with_head(theta, d * m, -d * m.square().sum(1) / 2)


algorithm = Centroids
