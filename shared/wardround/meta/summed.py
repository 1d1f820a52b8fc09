"""FedAvg's steps on a head, and class sums in the same clipped vectors (`wardround.meta.class_sums`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from wardround.meta.class_sums import WithSums, with_places
from wardround.meta.fine_tuned import FineTuned
from wardround.meta.local import descend
from wardround.models.base import Model
from wardround.questions import Cohort, FewShotLoss


class Summed(FineTuned):
    """A method that learns a head and sums beside it. lengths: see `WithSums`."""

    one_class_each = True
    of_classes = ("scatter", "sums", "counts")
    lengths: ClassVar[Mapping[str, float]]

    def extended(self, model: Model) -> Model:
        """With the sums beside the model."""
        return with_places(model, model.embedding_size, self.lengths)

    @property
    def answers_per_round(self) -> int:
        """The local steps: one private gradient each."""
        return self.local_steps

    def inner(self, theta: Tensor, cohort: Cohort, loss: FewShotLoss) -> Tensor:
        """w_k - theta, float32 [P], after `local_steps` private steps."""
        asked = WithSums(loss, self.lengths)
        w = descend(theta, cohort, asked, steps=self.local_steps, learning_rate=self.local_learning_rate)
        return w - theta
