"""MR-MTL: Liu, Hu, Wu and Smith, "On Privacy and Personalization in Cross-Silo Federated Learning", 2022 (mean-
regularised multi-task learning); Ditto (Li, Hu, Beirami and Smith, 2021) is its cousin.

Each hospital has a model of its own, w_h, which is pulled to the mean of all of them while it learns:

    w_h <- w_h - eta (g_h(w_h) + lambda (w_h - w)),   then w = mean of the w_h

At lambda 0 every hospital learns alone; the greater lambda, the more noise the mean takes out of w_h, and the less a
hospital may differ. What must be sent is the step of w_h, and nothing else: all w_h start where the model does, so w_h
is that start and the sum of what this hospital has sent in this run, which its ledger keeps with the replies (as
`scaffold`'s c_i). And the coordinator's theta is the start and the sum of the mean steps, which is w. So w_h is
post-processing of answers that were noised and paid for, and nobody stores it. The pull costs nothing.

What differs from the paper, and why:

* The pull of a step is never more than twice as long as the answer of that step. In a run in which all take part it
  is shorter: the pull is what balances gradients. A hospital that was away for long, or that begins late at the start,
  is drawn to the mean over several rounds. So the length of an honest reply is known, wherever theta is.
* theta is the mean itself: the outer optimizer has no part in it, or theta would run away from the models that are
  pulled to it. Hospitals that miss a round do not move, so the mean moves by the share of those that answer.

At home a hospital, inside or outside, starts from the mean and is held by it (`adapt_pull`).
"""

from __future__ import annotations

from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from wardround.algorithms import Pooled, State
from wardround.meta.fine_tuned import FineTuned
from wardround.models.objective import Objective
from wardround.optimizers import Optimizer
from wardround.questions import Cohort, FewShotLoss
from wardround.reach import Part, Reach
from wardround.settings import Limit
from wardround.vector import Layout

# Of a step's pull, in units of the step's answer.
LONGEST_PULL = 2.0


class MrMtl(FineTuned):
    """Models of one's own, pulled to their mean. pull: lambda."""

    remembers = True

    name: str = "mr-mtl"
    pull: Annotated[float, Field(ge=0, le=1e6), Limit("proximal")] = 0.1

    @model_validator(mode="after")
    def _converges(self) -> Self:
        if self.local_learning_rate * self.pull > 1:
            raise ValueError("mr-mtl needs local_learning_rate x pull of 1 at most, or its pull overshoots the mean")
        return self

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner_after(self, sent: Tensor, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The way of w_h in `local_steps` private steps, float32 [P], from the start and what was sent before."""
        assert isinstance(loss, Objective)
        own, eta = loss.model.initial().to(theta) + sent, self.local_learning_rate
        moved = torch.zeros_like(theta)
        for _ in range(self.local_steps):
            answer = cohort.gradient(loss, own + moved)
            pull = self.pull * (own + moved - theta)
            most = LONGEST_PULL * answer.norm() / pull.norm().clamp_min(1e-30)
            moved = moved - eta * (answer + most.clamp(max=1.0) * pull)
        return moved

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """Of answers, each with its pull."""
        factors = [(1 + LONGEST_PULL) * self.local_learning_rate] * self.local_steps
        return ((layout.size, answer.sum(factors, layout.size)),)

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """Nothing but theta."""
        return {}

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """The mean of the hospitals' models, of whom `share` have moved."""
        return state, theta + pooled.share * pooled.delta


algorithm = MrMtl
