"""First-order MAML: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017.

Section 5.2's approximation: the meta-gradient is taken at the adapted parameters and second derivatives are left out.
A task is a hospital, whose k support steps and query gradient are independent private answers about independent random
samples of its patients, so that a round costs k + 1 of them; or it is a few-shot episode, and the answer is private as
MAML's is.
"""

from __future__ import annotations

from torch import Tensor

from wardround.algorithms import EpisodeSizes
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.inner import descended, slope, task_loss
from wardround.meta.local import descend
from wardround.questions import Cohort, FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.vector import Layout


class Fomaml(FineTuned):
    """First-order MAML with the hospital or the episode as the task."""

    units = ("hospitals", "episodes")

    name: str = "fomaml"

    @property
    def answers_per_round(self) -> int:
        """One a support step, k in all, and one query gradient; or one of all episodes together."""
        return self.local_steps + 1 if self.question == "gradient" else 1

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.shots + 8 * at.part * at.forward + 6 * at.theta

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The delta -alpha g_query(theta_k), float32 [P]; theta_k after k support steps of size alpha (equation 1).

        alpha scales the query gradient too, so that delta means for every algorithm what Reptile's means: a
        displacement of the size of a local step.
        """
        alpha, k = self.local_learning_rate, self.local_steps
        if self.question == "gradient":
            theta_k = descend(theta, cohort, loss, steps=k, learning_rate=alpha)
            return -alpha * cohort.gradient(loss, theta_k)

        def query_gradient(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            theta_k = descended(task_loss(support, loss.each), theta, steps=k, learning_rate=alpha)
            return slope(task_loss(query, loss.each), theta_k)

        return -alpha * cohort.episode_gradient(query_gradient, theta)

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """The query's answer alone is in the delta."""
        return ((layout.size, answer.sum([self.local_learning_rate], layout.size)),)


algorithm = Fomaml
