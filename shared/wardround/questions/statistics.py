"""Class counts, and moments of the encoder's features: the first question of every run.

From the moments comes the scaling that all hospitals share, from its own counts a hospital's prior.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from wardround.config import Federation, Privacy
from wardround.labels import LABEL_KINDS
from wardround.models import Model
from wardround.models.scaling import scaling_of
from wardround.questions import Findings, L, OfImages, Point, Pool, Summand, SumQuestion
from wardround.reach import EXCESS
from wardround.rules.mean import Mean

FIRST_ROUND = 0


class Statistics(SumQuestion):
    """counts: patients a class; one with images of several classes counts in shares. sum_z, sum_zz: sums of features
    and of their squares. Features of variance 1 make each of the three parts about as long as its norm.
    """

    described = "patients of each class, sums of features and of their squares"

    def share(self, privacy: Privacy) -> float:
        """As agreed."""
        return privacy.statistics_share

    def due(self, after: int, federation: Federation) -> bool:
        """Before the first training round."""
        return after == FIRST_ROUND

    def summands(self, federation: Federation, model: Model) -> tuple[Summand, ...]:
        """A patient with large features loses no weight in the class counts."""
        d, full = model.scaling_size, LABEL_KINDS[federation.task.labels].full
        return (
            Summand("counts", (model.classes,), math.sqrt(full)),
            Summand("sum_z", (d,), math.sqrt(d)),
            Summand("sum_zz", (d,), math.sqrt(3 * d)),
        )

    def of_images(self, at: Point) -> OfImages:
        """The three of each image, in float64."""

        def counts_and_moments(x: Tensor, y: Tensor, features: Tensor) -> Tensor:
            z = torch.nan_to_num(features.double(), nan=0.0, posinf=0.0, neginf=0.0)
            return torch.cat([at.loss.labels.targets(y, at.loss.classes).double(), z, z.square()], 1)

        return counts_and_moments

    def prior(self, answer: Tensor, federation: Federation, model: Model, declared_patients: int) -> Tensor:
        """From a hospital's own answer float32 [size], once released: what it adds to logits in learning."""
        counts = self.layout(federation, model).unpack(answer)["counts"]
        return LABEL_KINDS[federation.task.labels].prior(counts, declared_patients)

    def learn(self, pool: Pool, learned: L, federation: Federation, model: Model) -> tuple[L, Findings]:
        """The shared scaling; and for the event, the share of each class.

        The mean pools the sums, so that a hospital weighs as many patients as it has. Another rule is given each
        hospital's moments of ONE patient, by declared patients, of whom its noised counts say how many there are,
        within EXCESS.
        """
        counts, z, zz = pool.stretches(self.layout(federation, model)).values()
        patients = LABEL_KINDS[federation.task.labels].patients(counts, pool.declared)
        moments, total = torch.cat([z, zz], 1), patients.sum()
        if isinstance(federation.outer.rule, Mean):
            pooled = moments.sum(0)
        else:
            declared, total = pool.declared, pool.declared.sum()
            patients = torch.minimum(torch.maximum(patients, declared / EXCESS), declared * EXCESS)
            pooled = pool.rule(moments / patients.unsqueeze(1), declared) * total
        z, zz = pooled.chunk(2)
        shift, scale = scaling_of(z, zz, total)
        known = counts.sum(0).clamp_min(0)  # noise makes some negative
        balance = known / known.sum().clamp_min(1e-6)
        return replace(learned, shift=shift, scale=scale), {"balance": tuple(balance.tolist())}


question = Statistics()
