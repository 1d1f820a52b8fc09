"""What a federation's model is worth at a hospital, before and after adapting to it, on the same patients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wardround.algorithms import Fitted
from wardround_client.personal.kinds import at_home
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner


def before_and_after(
    learner: Learner,
    fitted: Fitted,
    *,
    classes: Sequence[str],
    support: Labelled,
    query: Labelled,
) -> dict[str, Any]:
    """Judge the same patients twice.

    Args:
        learner: at the federation's model.
        fitted: what it made of the support.
        classes: names, one for each class index.
        support: whom it learned from.
        query: who is judged; none of them is in the support.

    Returns:
        classes, support_patients, support_by_class {class: patients}, support_images; before and after, each a
        `kinds.Judged` as JSON.

    Raises: DataError, when there is nobody to judge.
    """
    who, kind = support.examples, at_home(query.examples.labels)
    images = torch.zeros(who.patients, who.classes, device=who.device)
    shown = images.index_add(0, who.patient, who.targets) > 0
    return {
        "classes": list(classes),
        "support_patients": who.patients,
        "support_by_class": dict(zip(classes, map(int, shown.sum(0).tolist()), strict=True)),
        "support_images": len(who.y) // who.cells,
        "before": kind.report(learner, learner.unadapted(), query, classes).to_json(),
        "after": kind.report(learner, fitted, query, classes).to_json(),
    }
