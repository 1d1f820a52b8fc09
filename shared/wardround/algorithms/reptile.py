"""Reptile: Nichol, Achiam and Schulman, "On First-Order Meta-Learning Algorithms", 2018, algorithms 1 and 2.

A task is a hospital, or a few-shot episode of its patients. k steps go from theta to phi; the coordinator moves theta
along the mean of phi - theta (the batched version, algorithm 2, with the step size in the outer optimizer).

What Reptile learns that training on all tasks at once would not, it learns where a step's images differ from those of
the step before (section 5.1: the gradients' inner product). A hospital's steps each have a sample of their own; those
within an episode take its patients in `local_batches` minibatches, one after the other.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from wardround.algorithms import EpisodeSizes
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.inner import descended, task_loss
from wardround.meta.local import descend
from wardround.questions import Cohort, FewShotLoss, Shots
from wardround.settings import Limit


class Reptile(FineTuned):
    """Reptile with the hospital or the episode as the task.

    local_batches: minibatches of an episode's patients, which its steps take in turn.
    """

    units = ("hospitals", "episodes")

    name: str = "reptile"
    local_batches: Annotated[int, Field(ge=1, le=10_000), Limit("local_batches")] = 1

    @property
    def answers_per_round(self) -> int:
        """One a step, k; or one of all episodes together."""
        return self.local_steps if self.question == "gradient" else 1

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.shots + 8 * at.part * at.forward + 6 * at.theta

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The delta phi - theta, float32 [P], where phi = U^k(theta): k private gradients, or a mean over episodes."""
        alpha, k = self.local_learning_rate, self.local_steps
        if self.question == "gradient":
            return descend(theta, cohort, loss, steps=k, learning_rate=alpha) - theta

        def sum_of_gradients(theta: Tensor, support: Shots, query: Shots) -> Tensor:
            """(theta - phi) / alpha: the paper's g_1 + ... + g_k, on all shots of the episode (section 6.1)."""
            dealt = _dealt(_together(support, query), self.local_batches)
            batches = [task_loss(batch, loss.each) for batch in dealt]
            phi = theta
            for step in range(k):
                phi = descended(batches[step % len(batches)], phi, steps=1, learning_rate=alpha)
            return (theta - phi) / alpha

        return -alpha * cohort.episode_gradient(sum_of_gradients, theta)


def _together(support: Shots, query: Shots) -> Shots:
    """All shots of an episode: Reptile needs no query of its own."""
    patients = support.patient.max() + 1
    return replace(
        support,
        x=torch.cat([support.x, query.x]),
        y=torch.cat([support.y, query.y]),
        patient=torch.cat([support.patient, query.patient + patients]),
        weight=torch.cat([support.weight, query.weight]),
    )


def _dealt(shots: Shots, batches: int) -> list[Shots]:
    """Minibatches of whole patients, none empty: as many as asked for, or as there are patients."""
    turn = shots.patient % batches
    rows = [turn == each for each in sorted(set(turn.tolist()))]
    return [shots[row] for row in rows]


algorithm = Reptile
