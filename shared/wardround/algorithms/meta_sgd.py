"""Meta-SGD: Li, Zhou, Chen and Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017.

MAML in which each parameter has a learning rate of its own, alpha, learned with the start by the gradient of the same
loss (algorithm 1). As in the paper alpha may become negative, one meta learning rate serves both, and nothing weighs
one against the other. Gradients of alpha are products of two gradients, so mostly far smaller than theta's: "adam" and
"yogi" as `outer.optimizer`, which scale each number by itself, move alpha; "sgd" hardly does.

A task is an episode, with second derivatives, as MAML's; or a hospital, in first order, as FOMAML's, from whose answers
the gradient of alpha is made for nothing. Answers are independent, so the noise of one does not bias the product with
another; but where theta's signal is a tenth of its noise, alpha's is a hundredth.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.base import Episodic
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.local import differentiable_slope
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.questions import Cohort, FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.vector import Layout


class MetaSgd(FineTuned, Episodic):
    """MAML with learned rates, and the hospital or the episode as the task."""

    units = ("hospitals", "episodes")
    of_classes = ("alpha",)
    by_class = ()

    name: str = "meta-sgd"

    def extended(self, model: Model) -> Model:
        """With alpha, as many numbers as the model has, each starting at `local_learning_rate`."""
        return Extended.of(model, {"alpha": torch.full((model.layout.size,), self.local_learning_rate)})

    @property
    def answers_per_round(self) -> int:
        """One a support step, k in all, and one query gradient; or one of all episodes together."""
        return self.local_steps + 1 if self.question == "gradient" else 1

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The delta of (theta, alpha), float32 [P]: -eta times the gradient of both, eta the local learning rate.

        In first order theta_k = theta - alpha * (g_1 + ... + g_k), element by element. So theta's gradient is
        g_query(theta_k), and that of alpha is -g_query(theta_k) * (g_1 + ... + g_k).
        """
        if self.question == "episode_gradient":
            return super().inner(theta, cohort, loss)
        rates = _rates(theta, loss)
        theta_k, total = theta, torch.zeros_like(theta)
        for _ in range(self.local_steps):
            g_i = cohort.gradient(loss, theta_k)
            theta_k, total = theta_k - rates * g_i, total + g_i
        g_query = cohort.gradient(loss, theta_k)
        of_alpha = -loss.own(g_query) * loss.own(total)
        return -self.local_learning_rate * loss.with_extras(g_query, alpha=of_alpha)

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """In first order the gradient of alpha is a product: at most the greatest number of one factor times the length
        of the other.
        """
        if self.question == "episode_gradient":
            return super().longest(layout, answer)
        eta, size = self.local_learning_rate, layout.size_of("alpha")
        product = answer.number(size) * answer.sum([1.0] * self.local_steps, size)
        return (size, answer.sum([eta], size)), (size, eta * product)

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.shots + self.local_steps * (10 * at.through + 6 * at.theta) + 4 * at.through

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """theta'_i: `local_steps` steps on the support, of size alpha element by element (algorithm 1, line 6)."""
        rates = _rates(theta, loss)
        for _ in range(self.local_steps):
            theta = theta - rates * differentiable_slope(theta, support, loss)
        return {"theta": theta}

    def for_classes(self, theta: Tensor, theirs: FewShotLoss, ours: FewShotLoss, start: Tensor, like: Tensor) -> Tensor:
        """The body, the head, and their alpha; of a class that is like none of theirs a head of zeros, with the alpha
        that it began with.
        """
        anew = super().for_classes(theta, theirs, ours, start, like)
        known = like.sum(1) > 0
        theirs_alpha, alpha = theirs.extras(theta)["alpha"], ours.extras(start)["alpha"]
        weight, bias = ours.head(alpha)
        mixed = [like @ each for each in theirs.head(theirs_alpha)]
        alpha = ours.with_head(alpha, mixed[0].where(known.unsqueeze(1), weight), mixed[1].where(known, bias))
        return ours.with_extras(anew, alpha=ours.with_body(alpha, theirs.body(theirs_alpha)))

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Fine-tuning in which a parameter moves as easily as alpha says, beside the eta from which alpha began.

        At home there are many steps instead of the few that alpha was learned for. They descend on a loss of v, where
        theta + sqrt(alpha / eta) v are the parameters: a step in v then moves theta by alpha / eta times its slope, and
        the start holds a parameter the less, the greater its alpha is. Where alpha is negative a parameter stays: many
        steps up its slope would have no end.
        """
        scale = (_rates(theta, loss) / self.local_learning_rate).clamp_min(0).sqrt()
        v = self.tuned(torch.zeros_like(theta), support, _Scaled(loss, theta, scale))
        return {"theta": theta + scale * v}


def _rates(theta: Tensor, loss: FewShotLoss) -> Tensor:
    """float32 [P]: alpha for the model's parameters, and 0 for alpha itself, which no step on the support moves."""
    alpha = loss.extras(theta)["alpha"]
    return torch.cat([alpha, torch.zeros_like(alpha)])


@dataclass(frozen=True)
class _Scaled:
    """A loss as a function of v float32 [P], where start + scale * v are the parameters."""

    loss: FewShotLoss
    start: Tensor
    scale: Tensor

    @property
    def classes(self) -> int:
        """The loss's."""
        return self.loss.classes

    def each(self, v: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """float32 [n]."""
        return self.loss.each(self.start + self.scale * v, x, y)


algorithm = MetaSgd
