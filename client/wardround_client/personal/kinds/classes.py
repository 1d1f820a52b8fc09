"""An answer a whole image: probabilities of classes, or of findings that are there or not."""

from __future__ import annotations

from collections.abc import Sequence

from wardround.algorithms import Fitted
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.metrics import Report


class Classes:
    """Judged by `metrics.report`."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> Report:
        """See `metrics.report`."""
        return learner.report(fitted, who.examples, who.manufacturers)

    def weights(self, learner: Learner, fitted: Fitted, support: Labelled) -> None:
        """None: a method learns its classes balanced."""
        return


kind = Classes()
