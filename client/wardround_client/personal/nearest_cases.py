"""Which support cases a prediction is nearest to, for methods that compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from wardround.meta.embedded import Embedding

if TYPE_CHECKING:
    from wardround_client.personal.adapted_model import AdaptedModel


@dataclass(frozen=True)
class Case:
    """A support case. patient: its number in the adapted model. label: index of its class. similarity: see `nearest`"""

    patient: int
    label: int
    similarity: float


def nearest(adapted: AdaptedModel, z: Tensor, count: int = 5) -> list[list[Case]]:
    """The support patients whose images are most similar to encoded images z [n, ...], the most similar first.

    Similarity is the method's own: the logit that it gives to a class of which this image is the only shot. It can be
    compared within a query, not between methods. A patient is there once for each class, by the best image.

    Returns:
        One list of at most `count` cases for each of the n; empty lists for methods that do not compare.
    """
    algorithm, learner, cases = adapted.learner.algorithm, adapted.learner, adapted.cases
    if not (algorithm.compares and isinstance(algorithm, Embedding)):
        return [[] for _ in range(len(z))]
    found = []
    with torch.no_grad():
        # Each case stands in the place of a class, so that one prediction compares with as many as there are classes.
        for embedded in torch.split(cases.embedded, learner.loss.classes):
            shares = torch.eye(len(embedded), learner.loss.classes, device=z.device)
            fitted = algorithm.solve(learner.theta, embedded, shares, learner.loss)
            found.append(algorithm.predict(fitted, z, learner.loss)[:, : len(embedded)])
    whose = list(zip(cases.patient.tolist(), cases.y.tolist(), strict=True))
    return [_best(row, whose, count) for row in torch.cat(found, dim=1).tolist()]


def _best(similarities: list[float], whose: list[tuple[int, int]], count: int) -> list[Case]:
    best: dict[tuple[int, int], float] = {}
    for case, similarity in zip(whose, similarities, strict=True):
        best[case] = max(similarity, best.get(case, similarity))
    ordered = sorted(best.items(), key=lambda item: (-item[1], item[0]))
    return [Case(patient, label, similarity) for (patient, label), similarity in ordered[:count]]
