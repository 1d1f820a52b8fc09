"""What a federation's model is worth at a hospital, before and after adapting to it, on the same patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wardround.algorithms import Fitted
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner


def before_and_after(
    learner: Learner,
    fitted: Fitted,
    *,
    classes: Sequence[str],
    support: Examples,
    query: Examples,
    manufacturers: Sequence[str],
) -> dict[str, Any]:
    """Judge the same patients twice.

    Args:
        learner: at the federation's model.
        fitted: what it made of the support.
        classes: names, one for each class index.
        support: whom it learned from.
        query: who is judged; none of them is in the support.
        manufacturers: [patients] of the query.

    Returns:
        classes, support_patients, support_by_class {class: patients}, support_images; before and after, each a
        `metrics.Report` as JSON.

    Raises: DataError, when there is nobody to judge.
    """
    images = torch.zeros(support.patients, support.classes, device=support.device)
    shown = images.index_add(0, support.patient, support.targets) > 0
    return {
        "classes": list(classes),
        "support_patients": support.patients,
        "support_by_class": dict(zip(classes, map(int, shown.sum(0).tolist()), strict=True)),
        "support_images": len(support.y),
        "before": learner.report(learner.unadapted(), query, manufacturers).to_json(),
        "after": learner.report(fitted, query, manufacturers).to_json(),
    }
