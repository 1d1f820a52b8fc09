"""Per-FedAvg: Fallah, Mokhtari and Ozdaglar, "Personalized Federated Learning with Theoretical Guarantees: A
Model-Agnostic Meta-Learning Approach", 2020.

Algorithm 1, in the first-order form of its section 5, Per-FedAvg (FO): a hospital takes tau steps of MAML by itself
before it answers. Each of them asks twice, about independent samples: for the inner step, and for the gradient where
that one leads. FOMAML takes ONE meta-step a round, after k inner steps; with one step the two methods are the same.

The paper's step sizes alpha, of the inner step, and beta, of the meta-step, are both `local_learning_rate`. Its other
form, Per-FedAvg (HF), divides a difference of two gradients by a small number, and would do so to their noise as well.
"""

from __future__ import annotations

from torch import Tensor

from wardround.meta.fine_tuned import FineTuned
from wardround.meta.local import descend
from wardround.questions import Cohort, FewShotLoss
from wardround.reach import Part, Reach
from wardround.vector import Layout


class PerFedAvg(FineTuned):
    """Federated averaging of local meta-steps."""

    name: str = "per-fedavg"

    @property
    def answers_per_round(self) -> int:
        """Two a meta-step, of which there are tau = `local_steps`."""
        return 2 * self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """w_tau - theta, float32 [P], where w_t = w_(t-1) - beta g(w_(t-1) - alpha g(w_(t-1)))."""
        alpha = beta = self.local_learning_rate
        w = theta
        for _ in range(self.local_steps):
            ahead = descend(w, cohort, loss, steps=1, learning_rate=alpha)
            w = w - beta * cohort.gradient(loss, ahead)
        return w - theta

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """Of each meta-step the second answer alone is in the delta."""
        return ((layout.size, answer.sum([self.local_learning_rate] * self.local_steps, layout.size)),)


algorithm = PerFedAvg
