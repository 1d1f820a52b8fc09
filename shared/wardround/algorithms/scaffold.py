"""SCAFFOLD: Karimireddy, Kale, Mohri, Reddi, Stich and Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated
Learning", 2020.

Algorithm 1, with option II for the control variates. A hospital's steps are corrected by how its gradients usually
differ from everybody's, c - c_i, so that K of them do not drift towards its own minimum (section 4):

    y <- y - eta_l (g_i(y) + c - c_i), K times from y = x          (equation 3)
    c_i+ = c_i - c + (x - y) / (K eta_l)                           (equation 4, option II)
    x <- x + eta_g mean(y_i - x),   c <- c + |S| / N mean(c_i+ - c_i)   (equation 5)

c travels beside the model as an extra of theta. c_i stays at its hospital and is not even stored: it starts at zero, so
it is the sum of the c_i+ - c_i that this hospital has sent in this run, and its ledger keeps these with the replies. A
hospital that dies loses nothing of it, and it is post-processing of answers that were noised and paid for. N are the
hospitals that have answered in this run. The published algorithm has `outer.rule = "mean"`, `weighting = "uniform"` and
the optimizer "sgd" with momentum 0, whose learning rate is eta_g; other choices make other means of the same replies.

What is sent is y - x with c's part, -K eta_l c, taken out: the coordinator knows c, and puts it back. So the length of
an honest reply does not depend on c. Both parts then say the same, y - x + K eta_l c = -K eta_l (c_i+ - c_i); they are
sent as published, so that theta and delta have one layout.

What noise does. With option II c_i+ is the mean of the round's K answers, noise included, sigma / sqrt(K) a number, and
the next round subtracts it from every step: each reply bears twice the variance of FedAvg's. In the mean over all
hospitals c - c_i is zero, noise and signal alike, so what remains there is FedAvg's noise; hospitals that miss a round,
or a rule that trusts some replies less, leave a part of it. SCAFFOLD helps where hospitals differ by more than that.
A reply that was sent and never arrived counts in c_i, not in c. Where hospitals share their noise, an own
reply bears less of it: c_i must then come from a reply with all of it, or the method be refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wardround.algorithms import Pooled, State
from wardround.meta.fine_tuned import FineTuned
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.optimizers import Optimizer
from wardround.questions import Cohort, FewShotLoss
from wardround.reach import Part, Reach
from wardround.vector import Layout


class Scaffold(FineTuned):
    """Federated averaging with control variates."""

    remembers = True
    of_classes = ("c",)

    name: str = "scaffold"

    def extended(self, model: Model) -> Model:
        """With c, as many numbers as the model has, each starting at 0."""
        return Extended.of(model, {"c": torch.zeros(model.layout.size)})

    @property
    def answers_per_round(self) -> int:
        """K local steps: one private gradient each."""
        return self.local_steps

    def inner_after(self, sent: Tensor, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """(y - x + K eta_l c, c_i+ - c_i), float32 [P], from theta = (x, c) and the sum of what was sent before."""
        eta_l, k = self.local_learning_rate, self.local_steps
        x, c, c_i = loss.own(theta), loss.extras(theta)["c"], loss.extras(sent)["c"]
        moved = torch.zeros_like(x)  # y - x: added up by itself, so that rounding is of its size and not of x's
        for _ in range(k):
            g_i = loss.own(cohort.gradient(loss, loss.with_own(theta, x + moved)))
            moved = moved - eta_l * (g_i + c - c_i)
        return loss.with_extras(loss.with_own(theta, moved + k * eta_l * c), c=-c - moved / (k * eta_l))

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """c_i+ and c_i are means of K answers each."""
        k, size = self.local_steps, layout.size_of("c")
        apart = 2 * answer.sum([1 / k] * k, size)
        return (size, k * self.local_learning_rate * apart), (size, apart)

    def start(self, theta: Tensor, loss: FewShotLoss, optimizer: Optimizer) -> State:
        """The outer optimizer's, of x alone."""
        return optimizer.start(loss.own(theta))

    def outer(
        self, state: State, theta: Tensor, pooled: Pooled, loss: FewShotLoss, optimizer: Optimizer
    ) -> tuple[State, Tensor]:
        """X by the outer optimizer, along mean(y_i - x); c by its share of the hospitals (equation 5)."""
        c, more = loss.extras(theta)["c"], loss.extras(pooled.delta)["c"]
        step = loss.own(pooled.delta) - self.local_steps * self.local_learning_rate * c
        state, x = optimizer.step(state, loss.own(theta), -step)
        return state, loss.with_extras(loss.with_own(theta, x), c=c + pooled.share * more)


algorithm = Scaffold
