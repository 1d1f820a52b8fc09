"""What trees and regression learn where all patients lie at one place, without privacy: the truth-telling baseline.

The support of the new hospital joins the others' patients. Classes as they are, each weighing the same; times to an
event as a row for each interval that somebody reached, with the interval beside the columns (discrete-time hazards).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from rows import Row, Trial
from wardround_client.cohort.examples import Examples

Settings = Mapping[str, float | str]
Predict = Callable[[Tensor], Tensor]
OUTSIDE = (
    Row(
        "trees, one place",
        "fedavg",
        "outside",
        tuple(
            Trial(settings={"learning_rate": rate, "max_leaf_nodes": leaves})
            for rate in (0.02, 0.1)
            for leaves in (3, 8, 31)
        ),
    ),
    Row(
        "regression, one place",
        "fedavg",
        "outside",
        tuple(Trial(settings={"C": 10.0**power}) for power in range(-4, 2)),
    ),
)


def trees(settings: Settings) -> Any:
    """Histogram gradient boosting (Friedman, 2001). settings: learning_rate, max_leaf_nodes."""
    return HistGradientBoostingClassifier(
        learning_rate=settings["learning_rate"],
        max_leaf_nodes=int(settings["max_leaf_nodes"]),
        max_iter=100,
        early_stopping=False,
        random_state=0,
    )


def regression(settings: Settings) -> Any:
    """Logistic regression on standardised columns; of hazards it is Cox's model in discrete time. settings: C."""
    return make_pipeline(StandardScaler(), LogisticRegression(C=settings["C"], max_iter=2000))


def fitted(make: Callable[[Settings], Any], settings: Settings, others: Examples, support: Examples) -> Predict:
    """Learn from all patients -> from columns z [n, d], probabilities float32 [n, classes]."""
    z, y = (torch.cat(parts).numpy() for parts in ((others.z, support.z), (others.y, support.y)))
    learn = _hazards if others.labels.timed else _classes
    found = learn(make(settings), z, y, others.classes)
    return lambda some: torch.from_numpy(found(some.numpy())).float()


def _classes(
    model: Any, z: NDArray[Any], y: NDArray[Any], classes: int
) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    counts = np.bincount(y, minlength=classes)
    step = "logisticregression__sample_weight" if hasattr(model, "steps") else "sample_weight"
    model.fit(z, y, **{step: 1 / counts[y]})

    def probabilities(some: NDArray[Any]) -> NDArray[np.float64]:
        found = np.zeros((len(some), classes))
        found[:, model.classes_] = model.predict_proba(some)
        return found

    return probabilities


def _hazards(
    model: Any, z: NDArray[Any], y: NDArray[Any], classes: int
) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    rows, events = [], []
    for interval in range(classes):
        event = (y[:, 1] > 0) & (np.maximum(np.ceil(y[:, 0]) - 1, 0) == interval)
        reached = event | (y[:, 0] >= interval + 1)
        rows.append(_beside(z[reached], interval, classes))
        events.append(event[reached])
    model.fit(np.concatenate(rows), np.concatenate(events))

    def without(some: NDArray[Any]) -> NDArray[np.float64]:
        hazards = [model.predict_proba(_beside(some, interval, classes))[:, 1] for interval in range(classes)]
        found: NDArray[np.float64] = np.cumprod(1 - np.stack(hazards, 1), axis=1)
        return found

    return without


def _beside(z: NDArray[Any], interval: int, classes: int) -> NDArray[Any]:
    return np.concatenate([z, np.tile(np.eye(classes)[interval], (len(z), 1))], 1)


LEARNERS = {row.name: partial(fitted, make) for row, make in zip(OUTSIDE, (trees, regression), strict=True)}
"""By the names of their rows: what learns from settings, all others, and a support."""
