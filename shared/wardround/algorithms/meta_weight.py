"""A weight for each patient, learned: Meta-Weight-Net (Shu et al., "Meta-Weight-Net: Learning an Explicit Mapping For
Sample Weighting", 2019), with a table in the place of its network.

A patient's gradient is weighed by how likely the model finds the patient's own label,

    w(p; phi) = the piecewise linear function through phi_k at KNOTS_k,

and phi is learned by what all patients say of it (`wardround.meta.weighed`). Where labels are right, what fits badly is
what teaches most, and the table stays at 1. Where they are wrong, it is mostly those that fit badly, and their weights
fall. p is the model's balanced prediction, without the prior of the training, so that no class counts less because it
is rare.

A table of weights has optima that no hospital wants: it can trade classes off against each other by their usual p. So
what is learned is kept to tables that never fall and end at 1 (`nearest`): w(p) = p^q, by which the generalized cross
entropy weighs (Zhang and Sabuncu, 2018), is one of them; with `table = "generalized"` it stays there, and nothing is
learned.

At home the support is weighed by the same table, where the shared model knows its classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from wardround.algorithms import Fitted, State
from wardround.meta.weighed import Weighed
from wardround.meta.weighing import Weighing
from wardround.questions import FewShotLoss, Shots

KNOTS = (0.0, 0.05, 0.15, 0.3, 0.5, 0.75, 1.0)
EXPONENT = 0.7  # q of the generalized cross entropy, as published
STEP = 3.0  # of the table, along its gradient


class MetaWeight(Weighing):
    """Federated averaging of weighed gradients, and of the table that weighs them."""

    name: str = "meta-weight"
    table: Literal["learned", "generalized"] = "learned"

    def weighed(self, loss: FewShotLoss) -> Weighed:
        """By the table."""
        return Tabled(loss)

    def equal(self) -> Tensor:
        """Ones; or p^q, which stays."""
        return torch.ones(len(KNOTS)) if self.table == "learned" else torch.tensor(KNOTS) ** EXPONENT

    def learned(self, state: State, weights: Tensor, gain: Tensor, loss: FewShotLoss) -> tuple[State, Tensor]:
        """A step along the gain, and the nearest table."""
        return state, nearest(weights + STEP * gain) if self.table == "learned" else weights

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Fine-tuning on the support, weighed by what the shared model, which has not seen it, says of its labels.

        Of classes that it does not know, all weigh the same.
        """
        with torch.no_grad():
            right = (support.shares(loss.classes) * loss.logits(theta, support.x).softmax(1)).sum(1)
            weights = near(right / support.weight.clamp_min(1e-6)) @ loss.extras(theta)["weights"]
            weights = torch.nan_to_num(weights, nan=0.0, posinf=0.0, neginf=0.0).clamp_min(0)
            mean = support.mean(weights)
        if not mean > 1e-6:  # a table that weighs nobody says nothing
            return super().adapt(theta, support, loss)
        return super().adapt(theta, replace(support, weight=support.weight * weights / mean), loss)


class Tabled(Weighed):
    """Weighed by the table."""

    def basis(self, right: Tensor, variant: Tensor) -> Tensor:
        """As `near`."""
        return near(right)


def near(right: Tensor) -> Tensor:
    """How near each p [m] is to each knot: [m, knots], 1 at the knot and 0 at its neighbours."""
    past = [((right - low) / (high - low)).clamp(0, 1) for low, high in pairwise(KNOTS)]
    ends = [torch.ones_like(right), *past, torch.zeros_like(right)]
    return torch.stack([here - there for here, there in pairwise(ends)], -1)


def nearest(table: Tensor) -> Tensor:
    """The table [knots] that never falls, nearest to this one (by pooling neighbours), from 0 to 1 where it ends."""
    groups: list[tuple[float, int]] = []
    for value in table.nan_to_num(1.0).clamp(0, 2).tolist():
        groups.append((value, 1))
        while len(groups) > 1 and groups[-2][0] > groups[-1][0]:
            groups[-2:] = [_pooled(groups[-2:])]
    level = torch.tensor([value for value, number in groups for _ in range(number)]).to(table)
    return level / level[-1] if level[-1] > 0 else torch.ones_like(level)


def _pooled(groups: Sequence[tuple[float, int]]) -> tuple[float, int]:
    number = sum(number for _, number in groups)
    return sum(value * number for value, number in groups) / number, number


algorithm = MetaWeight
