"""Learned augmentation: how much the variants of an image count that each public change makes, by the meta-gradient.

A task names changes that leave a label true (`augment`), and a patient's gradient is the mean over all variants that
they make (`wardround.augment`). Here variant v weighs w_v >= 0, alike for all that the same changes made, with a mean
of 1, so that steps are as long as without weights. As in Ren et al., "Learning to Reweight Examples for Robust Deep
Learning", 2018 (equations 7 and 8), a weight is by how much the gradients that it weighs agree with a query's, and not
below zero; `wardround.meta.weighed` says what that is asked of. The query is of images as they are, because so they are
predicted. What is agreed adds up over all rounds, because late in a run gradients cancel, and to PRIOR, because each
answer is noised. (Steps along the gradient would end at the image as it is, which no variant surpasses in agreement.)

Variants and weights are public, and multiplicity stays inside the patient's one clipped vector, so that a round costs
what FedAvg's does. At home the variants of the support weigh the same. A task that names no change leaves FedAvg.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from wardround.algorithms import Fitted, State
from wardround.meta.weighed import Weighed
from wardround.meta.weighing import Weighing
from wardround.models import Objective
from wardround.optimizers import Optimizer
from wardround.questions import FewShotLoss, Shots
from wardround.task import MOST_VARIANTS, VERSIONS, Augmentation

AGREED = "meta-augment.agreed"
PRIOR, MOST = 0.5, 1e3  # what all have agreed before anything was asked, beside 0.1 to 0.5 a round; and at most


class MetaAugment(Weighing):
    """Federated averaging of gradients whose variants are weighed, and of these weights."""

    name: str = "meta-augment"

    def weighed(self, loss: FewShotLoss) -> Weighed:
        """By variant."""
        return Varied(loss)

    def equal(self) -> Tensor:
        """Ones, for as many variants as a task may have."""
        return torch.ones(MOST_VARIANTS)

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """And what each variant agreed so far."""
        return {**super().start(theta, loss, optimizer), AGREED: torch.zeros(MOST_VARIANTS)}

    def learned(self, state: State, weights: Tensor, gain: Tensor, loss: FewShotLoss) -> tuple[State, Tensor]:
        """By what was agreed, the mean over the variants that the same changes made."""
        alike = alike_in(augment_of(loss)).to(gain)
        agreed = state[AGREED].to(gain) + (len(alike) * gain).nan_to_num(0.0, 0.0, 0.0)
        found = alike @ (PRIOR + agreed[: len(alike)]).clamp(-MOST, MOST)
        return {**state, AGREED: agreed}, torch.cat([_of_mean_one(found.clamp_min(0)), weights[len(alike) :]])

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Fine-tuning on the support, whose variants are weighed."""
        variants = len(alike_in(augment_of(loss)))
        if len(support.y) % variants:  # of images as they are
            return super().adapt(theta, support, loss)
        learned = loss.extras(theta)["weights"][:variants].nan_to_num(0.0, 0.0, 0.0).clamp(0, MOST)
        weight = support.weight * _of_mean_one(learned).repeat(len(support.y) // variants)
        return super().adapt(theta, replace(support, weight=weight), loss)


class Varied(Weighed):
    """Weighed by which variant an image is."""

    def basis(self, right: Tensor, variant: Tensor) -> Tensor:
        """1 at the variant's place, 0 elsewhere."""
        return one_hot(variant, MOST_VARIANTS).to(right)

    def asked(self, variant: Tensor) -> Tensor:
        """Of images as they are alone."""
        return self.variants * (variant == 0).double()


def augment_of(loss: FewShotLoss) -> tuple[Augmentation, ...]:
    """What makes the variants that a loss is taken of."""
    return loss.augment if isinstance(loss, Objective) else ()


def alike_in(augment: Sequence[Augmentation]) -> Tensor:
    """What makes of numbers of variants the means over those that the same changes made: float32 [variants, variants],
    in the order of `wardround.augment.variants`.
    """
    made = [tuple(map(bool, versions)) for versions in product(*(range(VERSIONS[name]) for name in augment))]
    same = torch.tensor([[one == other for other in made] for one in made], dtype=torch.float32)
    return same / same.sum(1, keepdim=True)


def _of_mean_one(weights: Tensor) -> Tensor:
    """Weights as shares of their mean; ones, where all are zero."""
    mean = weights.mean()
    return weights / mean if mean > 1e-6 else torch.ones_like(weights)


algorithm = MetaAugment
