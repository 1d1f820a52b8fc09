"""What every algorithm file offers: a hospital half, a coordinator half, and its price."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.questions import Cohort, ImageLoss
from wardround.schedule import TrainingQuestion


class Algorithm(Protocol):
    """A meta-learner: a pair of functions, `inner` at the hospital and `outer_gradient` at the coordinator."""

    @property
    def name(self) -> str: ...

    @property
    def question(self) -> TrainingQuestion:
        """What `inner` asks: about a sample of patients, or about few-shot episodes."""
        ...

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """How often `inner` asks it: the price of a round (privacy.md, "Each algorithm")."""
        ...

    def inner(self, theta: Tensor, cohort: Cohort, loss: ImageLoss, choice: AlgorithmChoice) -> Tensor:
        """The hospital half: theta float32 [P] -> delta float32 [P], asking exactly `answers_per_round` times."""
        ...

    def outer_gradient(self, mean_delta: Tensor) -> Tensor:
        """The coordinator half: the weighted mean delta float32 [P] -> what the outer optimizer descends on."""
        ...
