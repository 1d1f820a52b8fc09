"""Methods that take local steps from a start that they learn; at home, they go on from it by gradients."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from wardround.algorithms import AdaptsBy, Algorithm, Fitted
from wardround.meta.local import LossOfEach, fine_tune
from wardround.questions import FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.settings import HomeRate, HomeSteps, HomeStrength, LocalRate, LocalSteps
from wardround.vector import Layout


class FineTuned(Algorithm):
    """A method whose model is fine-tuned at home.

    local_steps, local_learning_rate: of the inner loop; the learning rate also scales what a hospital sends.
    adapt_steps, adapt_learning_rate: SGD with momentum at home. adapt_pull: how strongly the start holds the adapted
    model back, against the loss summed over patients.
    """

    adapts_by: ClassVar[AdaptsBy | None] = "adapt_pull"

    local_steps: LocalSteps = 1
    local_learning_rate: LocalRate = 1.0
    adapt_steps: HomeSteps = 100
    adapt_learning_rate: HomeRate = 1.0
    adapt_pull: HomeStrength = 1.0

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """Of a delta that is alpha times the sum of all answers, as most are."""
        factors = [self.local_learning_rate] * self.answers_per_round
        return ((layout.size, answer.sum(factors, layout.size)),)

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Fine-tuning from theta."""
        return {"theta": self.tuned(theta, support, loss)}

    def tuned(self, theta: Tensor, support: Shots, loss: LossOfEach) -> Tensor:
        """`fine_tune` as the settings say: float32 [P], a new vector."""
        return fine_tune(
            theta,
            support,
            loss,
            steps=self.adapt_steps,
            learning_rate=self.adapt_learning_rate,
            pull=self.adapt_pull,
        )
