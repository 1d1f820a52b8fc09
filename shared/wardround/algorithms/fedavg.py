"""FedAvg: McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data", 2017.

Algorithm 1 is the baseline that every meta-learner is compared with. In the form of Reddi et al. 2021 (algorithm 1),
clients send differences, and averaging the models is the server's SGD step of size 1 along the mean difference. Its
hospital half is Reptile's; the two differ in the outer step (`outer.learning_rate = 1`, `momentum = 0` and
`weighting = "declared"`
is FedAvg as published) and in what the result is for: a model that is used as it is, or one that is adapted.
"""

from __future__ import annotations

from torch import Tensor

from wardround.meta.fine_tuned import FineTuned
from wardround.meta.local import descend
from wardround.questions import Cohort, FewShotLoss


class FedAvg(FineTuned):
    """Federated averaging over hospitals."""

    name: str = "fedavg"

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """ClientUpdate: w_k - theta, float32 [P], after `local_steps` private steps."""
        w = descend(theta, cohort, loss, steps=self.local_steps, learning_rate=self.local_learning_rate)
        return w - theta


algorithm = FedAvg
