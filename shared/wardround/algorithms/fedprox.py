"""FedProx: Li et al., "Federated Optimization in Heterogeneous Networks", 2020.

FedAvg whose local objective holds the model near the one that arrived (algorithm 2). The pull back is computed from
private gradients and public numbers alone, so it costs nothing. The paper's inexactness gamma is set by the number of
steps: hospitals all take the same, because a round's price is fixed before it starts.
"""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator
from torch import Tensor

from wardround.meta.fine_tuned import FineTuned
from wardround.questions import Cohort, FewShotLoss
from wardround.reach import Part, Reach
from wardround.settings import Limit
from wardround.vector import Layout


class FedProx(FineTuned):
    """Federated averaging with a proximal term. proximal: mu."""

    name: str = "fedprox"
    proximal: Annotated[float, Field(ge=0, le=1e6), Limit("proximal")] = 0.1

    @model_validator(mode="after")
    def _converges(self) -> Self:
        if self.local_learning_rate * self.proximal >= 2:
            raise ValueError(
                "fedprox needs local_learning_rate x proximal below 2, or its pull overshoots ever further"
            )
        return self

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """w_k - theta, float32 [P], after `local_steps` private steps on F(w) + mu/2 |w - theta|^2 (equation 2).

        The first step starts where the pull is zero, so that one local step is FedAvg's.
        """
        eta, mu = self.local_learning_rate, self.proximal
        w = theta
        for _ in range(self.local_steps):
            w = w - eta * (cohort.gradient(loss, w) + mu * (w - theta))
        return w - theta

    def longest(self, layout: Layout, answer: Reach) -> tuple[Part, ...]:
        """The pull shortens a step's answer again in each step after it, by 1 - eta mu."""
        eta, mu = self.local_learning_rate, self.proximal
        factors = [eta * abs(1 - eta * mu) ** later for later in range(self.local_steps)]
        return ((layout.size, answer.sum(factors, layout.size)),)


algorithm = FedProx
