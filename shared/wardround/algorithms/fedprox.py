"""FedProx: Li et al., "Federated Optimization in Heterogeneous Networks", 2020.

FedAvg whose local objective holds the model near the one that arrived (algorithm 2). The pull back is computed from
private gradients and public numbers alone, so it costs nothing. The paper's inexactness gamma is set by the number of
steps: hospitals all take the same, because a round's price is fixed before it starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from wardround.config import AlgorithmChoice
from wardround.meta.fine_tuned import FineTuned
from wardround.questions import Cohort, FewShotLoss
from wardround.reach import Part, Reach


@dataclass(frozen=True)
class FedProx(FineTuned):
    """Federated averaging with a proximal term."""

    name: str = "fedprox"

    def answers_per_round(self, choice: AlgorithmChoice) -> int:
        """The local steps: one private gradient each."""
        return choice.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss, choice: AlgorithmChoice) -> Tensor:
        """w_k - theta, float32 [P], after `local_steps` private steps on F(w) + mu/2 |w - theta|^2 (equation 2).

        The first step starts where the pull is zero, so that one local step is FedAvg's.
        """
        eta, mu = choice.local_learning_rate, choice.proximal
        w = theta
        for _ in range(choice.local_steps):
            w = w - eta * (cohort.gradient(loss, w) + mu * (w - theta))
        return w - theta

    def longest(self, choice: AlgorithmChoice, size: int, answer: Reach) -> tuple[Part, ...]:
        """The pull shortens a step's answer again in each step after it, by 1 - eta mu."""
        eta, mu = choice.local_learning_rate, choice.proximal
        factors = [eta * abs(1 - eta * mu) ** later for later in range(choice.local_steps)]
        return ((size, answer.sum(factors, size)),)


algorithm = FedProx()
