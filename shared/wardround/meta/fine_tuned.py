"""Methods that take local steps from a start that they learn; at home, they go on from it by gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from torch import Tensor

from wardround.algorithms import AdaptsBy, Algorithm, Fitted
from wardround.meta.head import HeadAlone
from wardround.meta.local import LossOfEach, fine_tune
from wardround.questions import FewShotLoss, Shots
from wardround.reach import Part, Reach
from wardround.settings import HomeRate, HomeSteps, HomeStrength, LocalRate, LocalSteps
from wardround.vector import Layout

# Chosen at hospitals and diseases that stood in for others (docs/benchmarks.md, "Classes under other names").
SCORES_PULL = 3.0


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

    def of_scores(self, theta: Tensor, support: Shots, loss: FewShotLoss, weight: Tensor, bias: Tensor) -> Tensor:
        """Stacking (Wolpert, "Stacked generalization", 1992): a head on the federation's class scores, fine-tuned from
        zero. It is linear in the embedding too, so that it is a head like any other, from which adapting goes on.
        """
        head = HeadAlone(theta, loss)
        scores = head.embedded(support).x @ weight.T + bias
        size = scores.square().sum(1).mean().sqrt().clamp_min(1e-6)
        method = self.model_copy(update={"adapt_pull": SCORES_PULL})
        start = scores.new_zeros(loss.classes * (len(bias) + 1))
        a, c = head.parts(method.tuned(start, replace(support, x=scores / size), head))
        return loss.with_head(theta, a @ weight / size, a @ bias / size + c)

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
