"""What a model of masks or points is worth to patients: numbers of patients -> metrics with intervals over patients."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from wardround.errors import DataError
from wardround_client.personal.bootstrap import Estimate, estimates
from wardround_client.personal.metrics import no_point

RESAMPLES, SEED = 1000, 0

Metrics = Callable[[Tensor], Tensor]  # float64 [patients, resamples] weights -> float64 [resamples, metrics]


@dataclass(frozen=True)
class DenseReport:
    """What a model is worth to these patients.

    classes: indices of those that were judged, the first, which is what is left over, among them. images: of all
    patients. metrics: by name; None where nobody here has them. manufacturers: the same for the patients of each
    scanner manufacturer; empty in these. confusion, operating_points: none, as of `metrics.Report`.
    """

    patients: int
    images: int
    classes: tuple[int, ...]
    metrics: Mapping[str, Estimate | None]
    manufacturers: Mapping[str, DenseReport] = field(default_factory=dict)
    confusion: None = None
    operating_points: tuple[None, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names of the fields."""
        return asdict(self)


def reported(
    metrics: Metrics,
    names: Sequence[str],
    *,
    shares: Sequence[str],
    shown: Tensor,
    images: Tensor,
    stratum: Tensor,
    manufacturers: Sequence[str],
) -> DenseReport:
    """Metrics of weighted patients -> the report.

    Args:
        metrics: of weighted patients; NaN where there is none.
        names: of the metrics, in their order.
        shares: those of them that are in [0, 1]: where all resamples say the same, the interval is a proportion's.
        shown: bool [patients, classes]: which classes a patient can be judged on.
        images: int64 [patients].
        stratum: int64 [patients]: see `bootstrap.estimates`.
        manufacturers: [patients].

    Raises: DataError, when there is nobody.
    """
    if not len(stratum):
        raise DataError("there is no patient to evaluate on", do="keep some labelled patients out of the support set")

    def of(chosen: Tensor) -> DenseReport:
        def weighted(weights: Tensor) -> Tensor:
            everybody = weights.new_zeros(len(stratum), weights.shape[1])
            everybody[chosen] = weights
            return metrics(everybody)

        patients = int(chosen.sum())
        found = estimates(weighted, stratum[chosen], resamples=RESAMPLES, seed=SEED)
        return DenseReport(
            patients=patients,
            images=int(images[chosen].sum()),
            classes=tuple(torch.nonzero(shown[chosen].any(0)).flatten().tolist()),
            metrics={
                name: no_point(each, patients) if name in shares else each
                for name, each in zip(names, found, strict=True)
            },
        )

    makers = {name: of(torch.tensor([maker == name for maker in manufacturers])) for name in sorted(set(manufacturers))}
    return replace(of(torch.ones(len(stratum), dtype=torch.bool)), manufacturers=makers)
