"""First-order MAML: Finn, Abbeel and Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", 2017.

Section 5.2's approximation: the meta-gradient is taken at the adapted parameters and second derivatives are left out.
The hospital is the task. Its k support steps and its query gradient are independent private answers about independent
random samples of its patients, so a round costs k + 1 of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.local import descend
from wardround.questions import Cohort, ImageLoss
from wardround.schedule import TrainingQuestion


@dataclass(frozen=True)
class Fomaml:
    """First-order MAML with the hospital as the task."""

    name: str = "fomaml"
    question: TrainingQuestion = "gradient"

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """One a support step, k in all, and one query gradient."""
        return choice.local_steps + 1

    def inner(self, theta: Tensor, cohort: Cohort, loss: ImageLoss, choice: AlgorithmChoice) -> Tensor:
        """The delta -alpha g_query(theta_k), float32 [P]; theta_k after k support steps of size alpha (equation 1).

        alpha scales the query gradient too, so that delta means for every algorithm what Reptile's means: a
        displacement of the size of a local step.
        """
        alpha = choice.local_learning_rate
        theta_k = descend(theta, cohort, loss, steps=choice.local_steps, learning_rate=alpha)
        return -alpha * cohort.gradient(loss, theta_k)

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """The mean query gradient times alpha, float32 [P]."""
        return -mean_delta
