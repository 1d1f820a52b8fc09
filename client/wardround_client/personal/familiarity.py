"""Whether an input is like those that a model was adapted to, or out of distribution: then its prediction is void.

The distance to the nearest image of the support (Sun et al., "Out-of-distribution detection with deep nearest
neighbors", 2022), against the distances of the support's own images to the nearest image of another patient.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.stats import t as student
from torch import Tensor

from wardround_client.personal.adapted_model import AdaptedModel

CONFIDENCE = 0.99
"""About so many of the inputs that are like the support stay below the threshold."""

_LEAST_SPREAD = 0.1  # of the largest: what hardly varies in a small support may vary elsewhere


@dataclass(frozen=True)
class Familiarity:
    """The support of an adapted model as distances are taken in it.

    points: float32 [n, k], each column divided by spread [k]. threshold: of distances; infinite where the support has
    too few patients to tell.
    """

    points: Tensor
    spread: Tensor
    threshold: float

    @classmethod
    def of(cls, adapted: AdaptedModel) -> Familiarity:
        """From the support's embeddings and features."""
        points, patient = adapted.cases.points, adapted.cases.patient
        spread = points.std(0, correction=0)
        spread = spread.clamp_min(_LEAST_SPREAD * float(spread.max())).clamp_min(1e-6)
        points = points / spread
        others = torch.cdist(points, points).masked_fill(patient.unsqueeze(1) == patient, torch.inf)
        nearest = others.min(1).values
        # Images of a patient are alike: one number a patient, or the many images of one would count as independent.
        patients = torch.unique(patient)
        own = torch.stack([nearest[patient == number].max() for number in patients]).clamp_min(1e-6).log()
        return cls(points, spread, _limit(own) if len(patients) > 2 else torch.inf)

    def scores(self, points: Tensor) -> list[float]:
        """Of inputs, points [n, k] as `Learner.points` gives them: their distance over the threshold; above 1 they
        are out of distribution.
        """
        distances = torch.cdist(points[:, : len(self.spread)] / self.spread, self.points).min(1).values
        scores: list[float] = (distances / self.threshold).tolist()
        return scores


def _limit(logs: Tensor) -> float:
    """Above which one more of these logarithms is with 1 - CONFIDENCE, were they normal: Student's prediction bound
    (Geisser, "Predictive inference", 1993), which is wide where there are few.
    """
    n = len(logs)
    bound = float(student.ppf(CONFIDENCE, n - 1)) * float(logs.std()) * (1 + 1 / n) ** 0.5
    return float((logs.mean() + bound).exp())
