"""An answer a whole image: probabilities of classes, or of findings that are there or not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from wardround.algorithms import Fitted
from wardround_client.personal.heatmap import heat_map, picture
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.metrics import Report
from wardround_client.personal.nearest_cases import nearest

if TYPE_CHECKING:
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.page import Columns, Page, Row


class Classes:
    """Judged by `metrics.report`."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> Report:
        """See `metrics.report`."""
        return learner.report(fitted, who.examples, who.manufacturers)

    def weights(self, learner: Learner, fitted: Fitted, support: Labelled) -> None:
        """None: a method learns its classes balanced."""
        return

    def answers(self, page: Page) -> list[Row]:
        """Predicted, probabilities (by class), nearest (support cases), heatmap."""
        adapted, classes = page.adapted, page.classes
        predicted = adapted.learner.probabilities(adapted.fitted, page.z).tolist()
        return [
            {
                "predicted": adapted.learner.loss.labels.prediction(probabilities, classes),
                "probabilities": dict(zip(classes, probabilities, strict=True)),
                "nearest": [
                    {
                        "case": case.patient,
                        "patient": adapted.support[case.patient].hex(),
                        "class": classes[case.label],
                        "similarity": case.similarity,
                    }
                    for case in cases
                ],
                "heatmap": _heatmap(page, number, probabilities) if page.heatmap else "",
            }
            for number, (probabilities, cases) in enumerate(zip(predicted, nearest(adapted, page.z), strict=True))
        ]

    def pooled(self, rows: Sequence[Row], adapted: AdaptedModel) -> Row:
        """The mean of the probabilities, as `evaluate` pools them."""
        classes = adapted.federation.task.classes
        means = np.mean([list(row["probabilities"].values()) for row in rows], axis=0).tolist()
        return {
            "predicted": adapted.learner.loss.labels.prediction(means, classes),
            "probabilities": dict(zip(classes, means, strict=True)),
        }

    def flat(self, record: Columns) -> Columns:
        """A column for each probability, the nearest cases as text."""
        cases = record.get("nearest", ())
        near = "; ".join(f"case {case['case']} {case['class']} {case['similarity']:.4g}" for case in cases)
        return {_PROBABILITY.format(name): f"{p:.6f}" for name, p in record["probabilities"].items()} | {
            "nearest": near
        }

    def columns(self, classes: Sequence[str], *, patients: bool) -> tuple[str, ...]:
        """See `flat`."""
        own = () if patients else ("nearest", "heatmap")
        return (*own, *(_PROBABILITY.format(name) for name in classes))

    def tables(self, images: Sequence[Row]) -> dict[str, Any]:
        """None."""
        return {}


_PROBABILITY = "probability of {}"


def _heatmap(page: Page, number: int, probabilities: Sequence[float]) -> str:
    """Draw it -> its file."""
    label, x = int(np.argmax(probabilities)), page.x[number]
    heat = heat_map(page.adapted.learner, page.adapted.fitted, x, label)
    caption = f"{page.classes[label]}: {100 * probabilities[label]:.0f} %"
    return page.write("heatmaps", number, ".png", picture(x, heat, caption))


kind = Classes()
