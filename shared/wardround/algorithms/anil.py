"""ANIL: Raghu, Raghu, Bengio and Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of
MAML", 2020.

MAML whose steps on the support adapt the head alone (section 4); the meta-gradient, through those steps, is the body's.
In the paper the head's start is learned too. Here the head stays at home: it starts at zero in every episode, and of
theta its place is neither read nor learned nor sent, so that hospitals may have tasks of different classes. That a head
from zero serves MAML well is known (Kao, Chiu and Chen, "MAML is a Noisy Contrastive Learner in Classification", 2022,
the zeroing trick).
"""

from __future__ import annotations

from torch import Tensor

from wardround.algorithms import EpisodeSizes, Fitted
from wardround.meta.base import Episodic, headless
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.head import HeadAlone
from wardround.meta.local import descend_on
from wardround.questions import Cohort, FewShotLoss, Shots


class Anil(FineTuned, Episodic):
    """ANIL with the episode as the task and a head that stays at home."""

    needs_embedding = True

    name: str = "anil"

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """The episodes' mean step, float32 [P], with zeros and not their noise at the head's place."""
        return headless(super().inner(theta, cohort, loss), loss)

    def episode_numbers(self, at: EpisodeSizes) -> int:
        """See `Algorithm`."""
        return at.embedded + self.local_steps * 6 * at.rows * (at.embedding + at.classes)

    def fit(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """Theta with the head after `local_steps` steps of size alpha from zero, on the support (section 4.1)."""
        alone = HeadAlone(theta, loss)
        head = descend_on(
            alone.zero(),
            alone.embedded(support),
            alone,
            steps=self.local_steps,
            learning_rate=self.local_learning_rate,
        )
        return {"theta": alone.around(head)}

    def episode_loss(self, theta: Tensor, support: Shots, query: Shots, loss: FewShotLoss) -> Tensor:
        """As everywhere, of the queries whose class the support shows: a head from zero knows no other."""
        seen = support.shares(loss.classes).sum(0) > 0
        return super().episode_loss(theta, support, query.among(seen), loss)

    def unadapted(self, theta: Tensor, loss: FewShotLoss) -> Fitted:
        """A head of zeros: without a shot no class is more likely than another. With stand-ins, as everywhere."""
        if self.unit == "stand-ins":
            return super().unadapted(theta, loss)
        return {"theta": headless(theta, loss)}

    def adapt(self, theta: Tensor, support: Shots, loss: FewShotLoss) -> Fitted:
        """The body as it is, and a head that is fine-tuned from zero, by many steps instead of `local_steps`."""
        alone = HeadAlone(theta, loss)
        return {"theta": alone.around(self.tuned(alone.zero(), alone.embedded(support), alone))}


algorithm = Anil
