"""Times to an event: judged by who has it first, and by how near the probabilities are to what became of patients.

Who was lost early is made up for by those who were seen as long, each by how likely that was (inverse probability of
censoring weights), estimated on the very patients who are judged.

* concordance: of two patients, how often the one with the event first had the greater risk (`survival.concordance`:
  Uno's, which unlike Harrell's does not depend on how early a hospital loses its patients); 0.5 is chance.
* brier_score: squared error of the probability of being without the event at the end of an interval, the mean over the
  intervals (Graf, Schmoor, Sauerbrei and Schumacher, "Assessment and comparison of prognostic classification schemes
  for survival data", 1999).
* calibration_error: how far the mean of these probabilities is from Kaplan and Meier's estimate, the mean likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.labels import survival
from wardround_client.cohort.examples import Examples
from wardround_client.personal.dense import DenseReport, reported
from wardround_client.personal.kinds.classes import Classes
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner

if TYPE_CHECKING:
    from wardround_client.personal.page import Columns, Row

METRICS = ("concordance", "brier_score", "calibration_error")


@dataclass(frozen=True)
class Outcomes:
    """A row for each patient and each outcome that rows of the patient have.

    free: float64 [u, classes], the probability of being without the event at each end. y: float64 [u, 2]. patient:
    int64 [u].
    """

    free: Tensor
    y: Tensor
    patient: Tensor

    @classmethod
    def of(cls, probabilities: Tensor, examples: Examples) -> Outcomes:
        """The mean over the rows of a patient that have one outcome."""
        patient, y = examples.patient.cpu(), examples.y.cpu().double()
        units, unit = torch.unique(torch.cat([patient.double().unsqueeze(1), y], 1), dim=0, return_inverse=True)
        sums = torch.zeros(len(units), probabilities.shape[1], dtype=torch.float64)
        sums.index_add_(0, unit, probabilities.cpu().double())
        return cls(sums / unit.bincount(minlength=len(units)).unsqueeze(1), units[:, 1:], units[:, 0].long())

    def metrics(self, weights: Tensor) -> Tensor:
        """Of weighted patients float64 [patients, resamples]: [resamples, METRICS]."""
        weights, classes = weights[self.patient], self.free.shape[1]
        found = survival.concordance(survival.risk_of(self.free), self.y, weights, classes)
        brier, error = self._probabilities(weights)
        return torch.stack([found, brier, error], 1)

    def _probabilities(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Brier score and calibration error, [resamples] each, over the ends that somebody was seen up to."""
        time, event, total = self.y[:, 0].contiguous(), self.y[:, 1] > 0, weights.sum(0)
        ends = torch.arange(1, self.free.shape[1] + 1, dtype=torch.float64)
        of_event = weights / survival.kept(self.y, weights, time).clamp_min(1e-12)
        at_end = survival.kept(self.y, weights, ends).clamp_min(1e-12)
        squares, gaps = [], []
        for number, free in enumerate(self.free.T):
            had = (event & (time <= ends[number])).unsqueeze(1)
            still = (time >= ends[number]).unsqueeze(1) & ~had
            share = torch.where(had, of_event, torch.where(still, weights / at_end[number], 0.0)) / total
            reached = (weights * still).sum(0) > 0
            error = share * (still.double() - free.unsqueeze(1)).square()
            gap = (weights * free.unsqueeze(1)).sum(0) / total - 1 + (share * had).sum(0)
            squares.append(torch.where(reached, error.sum(0), torch.nan))
            gaps.append(torch.where(reached, gap.abs(), torch.nan))
        return torch.stack(squares).nanmean(0), torch.stack(gaps).nanmean(0)


class Times(Classes):
    """Probabilities of being without the event."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> DenseReport:  # type: ignore[override]
        """See above."""
        examples = who.examples
        outcomes = Outcomes.of(learner.probabilities(fitted, examples.z), examples)
        shown = torch.zeros(examples.patients, len(names))
        shown.index_add_(0, examples.patient.cpu(), examples.targets.cpu())
        return reported(
            outcomes.metrics,
            METRICS,
            shares=METRICS[:1],
            shown=shown.cumsum(1) > 0,
            images=examples.images.cpu(),
            stratum=(shown > 0).any(1).long(),  # so that no resample lacks events
            manufacturers=who.manufacturers,
        )

    def flat(self, record: Columns) -> dict[str, Any]:
        """A column for each end."""
        return {_FREE.format(name): f"{p:.6f}" for name, p in record["probabilities"].items()}

    def columns(self, classes: Sequence[str], *, patients: bool) -> tuple[str, ...]:
        """See `flat`."""
        return tuple(_FREE.format(name) for name in classes)

    def tables(self, images: Sequence[Row]) -> dict[str, Any]:
        """None."""
        return {}


_FREE = "without the event at {}"

kind = Times()
