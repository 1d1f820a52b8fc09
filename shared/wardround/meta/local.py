"""The local steps that several meta-learners share."""

from __future__ import annotations

from torch import Tensor

from wardround.questions import Cohort, Loss


def descend(theta: Tensor, cohort: Cohort, loss: Loss, *, steps: int, learning_rate: float) -> Tensor:
    """`steps` steps of SGD from theta float32 [P], each on one private gradient -> the last iterate, float32 [P]."""
    for _ in range(steps):
        theta = theta - learning_rate * cohort.gradient(loss, theta)
    return theta
