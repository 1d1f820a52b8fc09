"""What the two questions of the training have in common: an algorithm asks, and its answer is a delta."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from wardround.algorithms import Pooled
from wardround.config import Federation
from wardround.models import Model, Objective
from wardround.questions import Cohort, Findings, L, Point, Pool, Question
from wardround.reach import Part, Reach
from wardround.rules import LEAST_HOSPITALS
from wardround.vector import Layout


class Training(Question):
    """A question of the training."""

    trains = True

    def layout(self, federation: Federation, model: Model) -> Layout:
        """As theta's."""
        return model.layout

    def ask(self, cohort: Cohort, at: Point) -> Tensor:
        """What the algorithm makes of its pool."""
        algorithm = at.federation.algorithm
        if at.sent is None:
            return algorithm.inner(at.theta, cohort, at.loss)
        return algorithm.inner_after(at.sent, at.theta, cohort, at.loss)

    def reach(self, federation: Federation, *, noise_multiplier: float, declared_patients: int) -> Reach:
        """Of one answer to the algorithm."""
        raise NotImplementedError

    def longest(
        self, federation: Federation, model: Model, *, noise_multiplier: float, declared_patients: int
    ) -> tuple[Part, ...]:
        """As the algorithm says."""
        reach = self.reach(federation, noise_multiplier=noise_multiplier, declared_patients=declared_patients)
        return federation.algorithm.longest(model.layout, reach)

    def learn(self, pool: Pool, learned: L, federation: Federation, model: Model) -> tuple[L, Findings]:
        """The algorithm's coordinator half, on what the rule makes of the deltas."""
        delta = pool.rule(pool.matrix, pool.weights)
        pooled, loss = Pooled(delta, pool.share), Objective.of(federation, model, learned.shift, learned.scale)
        algorithm, optimizer = federation.algorithm, federation.outer.optimizer
        outer, theta = algorithm.outer(learned.outer, learned.theta, pooled, loss, optimizer)
        findings = {"delta_norm": float(delta.norm()), "apart": _apart(pool, delta)}
        return replace(learned, theta=theta, outer=outer), findings


def _apart(pool: Pool, delta: Tensor) -> dict[str, float]:
    """How far each delta lies from what was made of them, in units of the median distance; nobody, for two replies."""
    distances = torch.stack([(answer.double() - delta.double()).norm() for answer in pool.matrix])
    middle = float(distances.median())
    if len(distances) < LEAST_HOSPITALS or not middle > 0:
        return {}
    return {who: round(float(each) / middle, 3) for who, each in zip(pool.hospitals, distances, strict=True)}
