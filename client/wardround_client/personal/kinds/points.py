"""Points and boxes: judged finding by finding, by how many are found at how many false ones.

A candidate is where the probability of a class is greatest among the cells around. It hits a finding of its class in
whose drawn area it lies, or from whose middle it is no farther than its radius (`found.hits`); of several that hit one
finding the most probable counts, and the others not at all. What hits none is false.

* sensitivity_at_N: the share of the findings that are hit at a probability at which there are at most N false ones an
  image (free-response operating characteristic: Bunch, Hamilton, Sanderson and Simmons, "A free-response approach to
  the measurement and characterization of radiographic-observer performance", 1977); cpm: the mean of the seven
  (Niemeijer et al., "On combining computer-aided detection systems", 2011).
* f1, sensitivity and false_findings_per_image: of the candidates that are called findings.

All classes together; cpm of each class too, where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardround.algorithms import Fitted
from wardround_client.personal.dense import DenseReport, reported
from wardround_client.personal.found import candidates, findings_of, hits, unknown
from wardround_client.personal.kinds.mask import probability_map
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.maps import Seen, best_weights, grids, upsampled, weighted, weights_of
from wardround_client.personal.original import Placed

if TYPE_CHECKING:
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.page import Columns, Page, Row

RATES = (0.125, 0.25, 0.5, 1, 2, 4, 8)
METRICS = (
    "cpm",
    *(f"sensitivity_at_{rate:g}" for rate in RATES),
    *("f1", "sensitivity", "false_findings_per_image"),
)
PER_IMAGE = "false_findings_per_image"

Array = NDArray[Any]


@dataclass(frozen=True)
class Calls:
    """What is counted of candidates, those that hit what another hits better left out, and of the findings there.

    label, patient: int64 [k]. probability, lead: float64 [k]. hit: bool [k]. there: int64 [patients, classes], how many
    findings. images: int64 [patients].
    """

    label: Array
    patient: Array
    probability: Array
    lead: Array
    hit: Array
    there: Array
    images: Array

    @classmethod
    def of(cls, seen: Seen, weights: Array) -> Calls:
        """Match what is predicted with what is there."""
        classes = len(weights)
        there = np.zeros((seen.patients, classes), np.int64)
        rows: list[tuple[int, int, float, float, bool]] = []
        for patient, cells, plane in zip(seen.patient.tolist(), seen.cells.numpy(), seen.planes, strict=True):
            known, cell_px = findings_of(plane, classes), plane.shape[-1] / cells.shape[-1]
            for finding in known:
                there[patient, finding.label] += 1
            hit: set[int] = set()
            for one in sorted(candidates(cells, weights), key=lambda each: -each.probability):
                at = hits(one, known, cell_px)
                if (at < 0 and not unknown(one, plane, cell_px)) or (at >= 0 and at not in hit):
                    rows.append((one.label, patient, one.probability, one.lead, at >= 0))
                hit.add(at)
        columns = np.array(rows, np.float64).reshape(-1, 5).T
        label, patient, probability, ahead, found = columns
        images = np.bincount(seen.patient.numpy(), minlength=seen.patients)
        return cls(label.astype(int), patient.astype(int), probability, ahead, found > 0, there, images)

    def metrics(self, weights: Tensor) -> Tensor:
        """Of weighted patients [patients, resamples]: [resamples, METRICS, and the cpm of each class]."""
        everything = np.ones(len(self.label), bool)
        sensitivities = self._froc(everything, self.there.sum(1), weights)
        called = torch.from_numpy(self.lead > 0)
        hit, weight = torch.from_numpy(self.hit), weights[torch.from_numpy(self.patient)]
        right, wrong = weight[called & hit].sum(0), weight[called & ~hit].sum(0)
        there, images = (torch.from_numpy(each).double() @ weights for each in (self.there.sum(1), self.images))
        f1 = 2 * right / (right + wrong + there)
        columns = [sensitivities.mean(0), *sensitivities, f1, right / there, wrong / images]
        classes = self.there.shape[1]
        if classes > 2:
            each = (self._froc(self.label == label, self.there[:, label], weights) for label in range(1, classes))
            columns += [of_class.mean(0) for of_class in each]
        return torch.stack(columns, 1)

    def _froc(self, chosen: Array, there: Array, weights: Tensor) -> Tensor:
        """Sensitivity at each rate of false candidates an image, [RATES, resamples]; NaN where no finding is there."""
        order = np.argsort(-self.probability[chosen], kind="stable")
        patient, hit, score = (each[chosen][order] for each in (self.patient, self.hit, self.probability))
        weight = weights[torch.from_numpy(patient)]
        found = torch.from_numpy(hit).unsqueeze(1)
        right, wrong = (weight * found).cumsum(0), (weight * ~found).cumsum(0)
        # Candidates of one probability are called together.
        last = torch.from_numpy(np.append(np.flatnonzero(np.diff(score)), max(len(score) - 1, 0)))
        if len(score):
            right, wrong = right[last], wrong[last]
        nothing = weights.new_zeros(1, weights.shape[1])
        right = torch.cat([nothing, right])
        images = torch.from_numpy(self.images).double() @ weights
        total = torch.from_numpy(there).double() @ weights
        rows = [right.gather(0, (wrong <= rate * images * (1 + 1e-12)).sum(0, keepdim=True))[0] for rate in RATES]
        return torch.stack(rows) / total


class Points:
    """Findings at places."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> DenseReport:
        """See above."""
        assert who.planes is not None
        examples = who.examples
        calls = Calls.of(Seen.of(learner, fitted, examples, who.planes), weights_of(fitted, len(names)))
        metrics = [*METRICS, *(f"cpm, {name}" for name in names[1:] if len(names) > 2)]
        shown = torch.from_numpy(calls.there > 0)
        shown[:, 0] = True
        return reported(
            calls.metrics,
            metrics,
            shares=[name for name in metrics if name != PER_IMAGE],
            shown=shown,
            images=torch.from_numpy(calls.images),
            stratum=examples.labels.stratum(torch.from_numpy(calls.there).float()),
            manufacturers=who.manufacturers,
        )

    def weights(self, learner: Learner, fitted: Fitted, support: Labelled) -> Tensor | None:
        """For each class but the first, in turn, those of the best F1 on patients who were not learned from."""
        assert support.planes is not None

        def best(seen: Seen, label: int, weights: Array) -> float:
            return float(weights[label] * np.exp(-_best(Calls.of(seen, weights), label)))

        return best_weights(best, Seen.held_out(learner, fitted, support.examples, support.planes))

    def answers(self, page: Page) -> list[Row]:
        """Of each image the findings, the most probable first: class, x and y in pixels of the image as it was, from
        the upper left corner of the first, and probability; counts, by class without the first; heatmap.
        """
        adapted, names, size = page.adapted, page.classes, page.x.shape[-1]
        cells = grids(adapted.learner.probabilities(adapted.fitted, page.z).cpu(), adapted.federation.task.cells)
        weights = weights_of(adapted.fitted, len(names))
        assert isinstance(page.instance, Placed)
        rows: list[Row] = []
        for number, (original, grid) in enumerate(zip(page.instance.originals, cells, strict=True)):
            px = size / grid.shape[-1]
            found = [
                (one, place)
                for one in sorted(candidates(grid.numpy(), weights), key=lambda each: -each.probability)
                if one.called and (place := original.place(one.x * px, one.y * px, size))
            ]
            counts = {name: sum(one.label == label for one, _ in found) for label, name in enumerate(names) if label}
            maps = weighted(upsampled(grid, size), weights)
            rows.append(
                {
                    "predicted": _in_words(counts, names[0]),
                    "counts": counts,
                    "findings": [
                        {
                            "class": names[one.label],
                            "x": round(x, 1),
                            "y": round(y, 1),
                            "probability": round(one.probability, 4),
                        }
                        for one, (x, y) in found
                    ],
                    "heatmap": probability_map(page, number, maps) if page.heatmap else "",
                }
            )
        return rows

    def pooled(self, rows: Sequence[Row], adapted: AdaptedModel) -> Row:
        """The sums of the counts."""
        names = adapted.federation.task.classes
        counts = {name: sum(row["counts"][name] for row in rows) for name in names[1:]}
        return {"predicted": _in_words(counts, names[0]), "counts": counts}

    def flat(self, record: Columns) -> Columns:
        """A column for each class."""
        return {_COUNT.format(name): count for name, count in record["counts"].items()}

    def columns(self, classes: Sequence[str], *, patients: bool) -> tuple[str, ...]:
        """See `flat`."""
        return (*(() if patients else ("heatmap",)), *(_COUNT.format(name) for name in classes[1:]))

    def tables(self, images: Sequence[Row]) -> dict[str, tuple[Sequence[str], Sequence[Columns]]]:
        """findings.csv: a line a finding."""
        lines = [
            {**{key: row[key] for key in _WHERE}, **finding} for row in images for finding in row.get("findings", ())
        ]
        return {"findings.csv": ((*_WHERE, "class", "x", "y", "probability"), lines)}


_COUNT, _WHERE = "findings of {}", ("file", "number", "patient")


def _in_words(counts: Mapping[str, int], nothing: str) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or nothing


def _best(calls: Calls, label: int) -> float:
    """The lead above which candidates of a class are called findings, for the best F1; 0 where none hits."""
    own = calls.label == label
    order = np.argsort(-calls.lead[own], kind="stable")
    ahead, hit = calls.lead[own][order], calls.hit[own][order]
    last = np.append(np.flatnonzero(np.diff(ahead)), len(ahead) - 1)  # of those that are called together
    if not hit.any():
        return 0.0
    f1 = 2 * hit.cumsum()[last] / (last + 1 + calls.there[:, label].sum())
    best = int(f1.argmax())
    at = ahead[last[best]]
    below = ahead[last[best] + 1] if best + 1 < len(last) else at - 1
    return float((at + below) / 2)


kind = Points()
