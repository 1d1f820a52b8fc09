"""Reptile: Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, algorithms 1 and 2.

A hospital is a task. It takes k steps from theta to phi and sends phi - theta; the coordinator moves theta along the
mean of these (the batched version, algorithm 2, with the step size in the outer optimizer).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.local import descend
from wardround.questions import Cohort, ImageLoss
from wardround.schedule import TrainingQuestion


@dataclass(frozen=True)
class Reptile:
    """Reptile with the hospital as the task."""

    name: str = "reptile"
    question: TrainingQuestion = "gradient"

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """One a step: k."""
        return choice.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: ImageLoss, choice: AlgorithmChoice) -> Tensor:
        """The delta phi - theta, float32 [P], where phi = U^k(theta): k private gradients."""
        phi = descend(theta, cohort, loss, steps=choice.local_steps, learning_rate=choice.local_learning_rate)
        return phi - theta

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """The mean theta - phi, float32 [P]: the paper treats it as a gradient (section 2)."""
        return -mean_delta
