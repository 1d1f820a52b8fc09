"""Methods that learn a start: at home, all of them go on from it by gradients."""

from __future__ import annotations

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.base import Fitted, Method
from wardround.meta.local import LossOfEach, fine_tune
from wardround.questions import FewShotLoss, Shots


class FineTuned(Method):
    """A method whose model is fine-tuned at home."""

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """Fine-tuning from theta, as `adapt_steps`, `adapt_learning_rate` and `adapt_pull` say."""
        return {"theta": tuned(theta, support, loss, choice)}


def tuned(theta: Tensor, support: Shots, loss: LossOfEach, choice: AlgorithmChoice) -> Tensor:
    """`fine_tune` as a federation says: float32 [P], a new vector."""
    return fine_tune(
        theta,
        support,
        loss,
        steps=choice.adapt_steps,
        learning_rate=choice.adapt_learning_rate,
        pull=choice.adapt_pull,
    )
