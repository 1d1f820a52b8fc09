"""ANIL: Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of
MAML", 2020.

MAML whose steps on the support adapt the head alone (section 4); the meta-gradient, through those steps, is the body's.
In the paper the head's start is learned too. Here the head stays at home: it starts at zero in every episode, and of
theta its place is neither read nor learned nor sent, so that hospitals may have tasks of different classes. That a head
from zero serves MAML well is known (Kao, Chiu and Chen, "MAML is a Noisy Contrastive Learner in Classification", 2022,
the zeroing trick).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.base import EpisodicMethod, Fitted, headless, with_body
from wardround.meta.fine_tuned import tuned
from wardround.meta.head import HeadAlone
from wardround.meta.local import descend_on
from wardround.models.base import Model
from wardround.questions import Cohort, FewShotLoss, Shots


@dataclass(frozen=True)
class Anil(EpisodicMethod):
    """ANIL with the episode as the task and a head that stays at home."""

    name: str = "anil"

    def extended(self, model: Model, choice: AlgorithmChoice) -> Model:
        """The model as it is. Raises: ConfigError, when it has no body: there would be nothing to learn."""
        return with_body(model, self.name)

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """The episodes' mean step, float32 [P], with zeros and not their noise at the head's place."""
        return headless(super().inner(theta, cohort, loss, choice), loss)

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """Theta with the head after `local_steps` steps of size alpha from zero, on the support (section 4.1)."""
        alone = HeadAlone(theta, loss)
        head = descend_on(
            alone.zero(),
            alone.embedded(support),
            alone,
            steps=choice.local_steps,
            learning_rate=choice.local_learning_rate,
        )
        return {"theta": alone.around(head)}

    def episode_loss(
        self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss, choice: AlgorithmChoice
    ) -> Tensor:
        """As everywhere, of the queries whose class the support shows: a head from zero knows no other."""
        seen = support.shares(loss.classes).sum(0) > 0
        return super().episode_loss(theta, support, query.among(seen), loss, choice)

    def unadapted(self, theta: Tensor, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """A head of zeros: without a shot no class is more likely than another."""
        return {"theta": headless(theta, loss)}

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss, choice: AlgorithmChoice) -> Fitted:
        """The body as it is, and a head that is fine-tuned from zero, by many steps instead of `local_steps`."""
        alone = HeadAlone(theta, loss)
        return {"theta": alone.around(tuned(alone.zero(), alone.embedded(support), alone, choice))}


algorithm = Anil()
