"""MAML: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017.

Algorithm 2, with second derivatives. A hospital's patients are dealt into few-shot episodes; an episode is a task, its
meta-gradient goes through the steps on the support. The support is read again by that gradient, so the ANSWER is what
is made private, an episode at a time: one `episode_gradient` a round, whatever the number of steps.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from torch.func import grad

from wardround.config import AlgorithmChoice
from wardround.questions import Cohort, ImageLoss, Shots
from wardround.schedule import TrainingQuestion


@dataclass(frozen=True)
class Maml:
    """MAML with the episode as the task."""

    name: str = "maml"
    question: TrainingQuestion = "episode_gradient"

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """One, of all episodes together."""
        return 1

    def inner(self, theta: Tensor, cohort: Cohort, loss: ImageLoss, choice: AlgorithmChoice) -> Tensor:
        """The delta -alpha times the mean meta-gradient, float32 [P] (equations 1 and 4).

        alpha scales it so that delta means for every algorithm what Reptile's means: a displacement of the size of a
        local step.
        """
        alpha, steps = choice.local_learning_rate, choice.local_steps

        def episode_loss(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            def support_loss(at: Tensor) -> Tensor:
                return support.mean(loss.each(at, support.x, support.y))

            for _ in range(steps):
                theta = theta - alpha * grad(support_loss)(theta)
            return query.mean(loss.each(theta, query.x, query.y))

        return -alpha * cohort.episode_gradient(episode_loss, theta)

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """The mean meta-gradient times alpha, float32 [P]."""
        return -mean_delta
