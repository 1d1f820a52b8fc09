"""Means of embeddings, a class: methods that learn an embedding make a head of them, which needs no shots."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from wardround.config import Federation, Privacy
from wardround.meta.embedded import LEAST_PATIENTS
from wardround.models import Model, Objective
from wardround.questions import ClassMeans, Findings, L, OfImages, Point, Pool, Summand, SumQuestion
from wardround.rules.mean import Mean

COUNT_SHARE = 0.5
"""lambda: how long a count is beside an embedding, in a patient's block. Sums of e numbers need less noise than counts:
where e is 32, a quarter of the variance for the counts costs the sums 12 % more noise."""


class Means(SumQuestion):
    """counts: patients a class. sums: of their embeddings, class by class; each of the two is clipped over ALL classes
    together. Embeddings have a variance of about 1, so that they are about sqrt e long.
    """

    described = "sums of features of each class"

    def share(self, privacy: Privacy) -> float:
        """As the statistics."""
        return privacy.statistics_share

    def due(self, after: int, federation: Federation) -> bool:
        """Before each evaluation and at the end."""
        algorithm, last = federation.algorithm, after == federation.rounds.rounds
        wanted = algorithm.closes_with_means and algorithm.unit != "stand-ins"
        return wanted and (last or federation.rounds.evaluates(after))

    def summands(self, federation: Federation, model: Model) -> tuple[Summand, ...]:
        """Counts, then sums."""
        classes, e = model.classes, model.embedding_size
        return Summand("counts", (classes,), weight=COUNT_SHARE), Summand("sums", (classes, e), math.sqrt(e))

    def of_images(self, at: Point) -> OfImages:
        """Which classes an image shows, and its embedding at these."""

        def targets_and_embedding(x: Tensor, y: Tensor, features: Tensor) -> Tensor:
            z = (at.loss.embed(at.theta, x) * at.loss.model.embedding_gain).double()
            z = torch.nan_to_num(z, nan=0.0, posinf=0.0, neginf=0.0)
            targets = at.loss.labels.targets(y, at.loss.classes).double()
            return torch.cat([targets, (targets.unsqueeze(2) * z.unsqueeze(1)).flatten(1)], 1)

        return targets_and_embedding

    def learn(self, pool: Pool, learned: L, federation: Federation, model: Model) -> tuple[L, Findings]:
        """The head."""
        pooled = self.pooled(pool, federation, model)
        means = replace(pooled, sums=pooled.sums / model.embedding_gain)
        loss = Objective.of(federation, model, learned.shift, learned.scale)
        theta = federation.algorithm.with_means(learned.theta, means, loss)
        return replace(learned, theta=theta), {}

    def pooled(self, pool: Pool, federation: Federation, model: Model) -> ClassMeans:
        """The federation's sums and counts.

        The mean adds them up. Another rule is given the means of one class at a time, of hospitals that have patients
        of it, by their counts: a class that a few hospitals alone have is as safe as those few.
        """
        counts, sums = pool.stretches(self.layout(federation, model)).values()
        if isinstance(federation.outer.rule, Mean):
            return ClassMeans(sums.sum(0), counts.sum(0))
        robust = sums.sum(0)
        for each in range(model.classes):
            there = counts[:, each] >= LEAST_PATIENTS
            if there.any():
                patients = counts[there, each]
                robust[each] = pool.rule(sums[there, each] / patients.unsqueeze(1), patients) * patients.sum()
        return ClassMeans(robust, torch.where(counts >= LEAST_PATIENTS, counts, 0.0).sum(0))


question = Means()
