"""MAML: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017.

Algorithm 2, with second derivatives. A hospital's patients are dealt into few-shot episodes; an episode is a task, its
meta-gradient goes through the steps on the support. The support is read again by that gradient, so the ANSWER is what
is made private, an episode at a time: one `episode_gradient` a round, whatever the number of steps.
"""

from __future__ import annotations

from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.base import Episodic
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.inner import meta_gradient, task_loss
from wardround.meta.local import descend_on
from wardround.questions import EpisodeGradient, FewShotLoss, Shots


class Maml(FineTuned, Episodic):
    """MAML with the episode as the task."""

    name: str = "maml"

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.shots + self.local_steps * (4 * at.through + 4 * at.theta) + 4 * at.through

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """theta'_i: `local_steps` steps of size alpha on the support (equation 1)."""
        return {
            "theta": descend_on(theta, support, loss, steps=self.local_steps, learning_rate=self.local_learning_rate)
        }

    def gradient_of(self, loss: FewShotLoss) -> EpisodeGradient:
        """The gradient of `episode_loss`, back through the steps one at a time."""

        def of_episode(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            return meta_gradient(
                task_loss(support, loss.each),
                task_loss(query, loss.each),
                theta,
                steps=self.local_steps,
                learning_rate=self.local_learning_rate,
            )

        return of_episode


algorithm = Maml
