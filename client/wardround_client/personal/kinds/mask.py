"""Masks: judged by overlap, distance of the surfaces and volume, patient by patient, a class at a time.

Of a patient all images count together, at the resolution of the cohort. What nobody looked at counts nowhere.

* dice: 2 |A and B| / (|A| + |B|) (Dice, "Measures of the amount of ecologic association between species", 1945). Of a
  patient without the class: 0 where it is predicted, and left out where it is not: there is no overlap to speak of.
* surface_distance_95_px: the 95th percentile of the distances from the edge of what is predicted to the edge of what is
  there, or the other way round, whichever is greater; in pixels of the cohort's image. Of the images that show both;
  what is missed, or invented, in a whole image is what Dice tells.
* volume_error: |predicted - there| / there, in pixels; of patients who have the class.

The mean over patients, of each class but the first; then over the classes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from wardround.algorithms import Fitted
from wardround.planes import classes_in
from wardround_client.personal.dense import DenseReport, reported
from wardround_client.personal.heatmap import picture
from wardround_client.personal.labelled import Labelled
from wardround_client.personal.learner import Learner
from wardround_client.personal.maps import Seen, best_weights, grids, lead, upsampled, weighted, weights_of
from wardround_client.personal.original import Placed
from wardround_client.personal.segmentation import png, seg

if TYPE_CHECKING:
    from wardround_client.personal.adapted_model import AdaptedModel
    from wardround_client.personal.page import Columns, Page, Row

METRICS = ("dice", "surface_distance_95_px", "volume_error")
PERCENTILE = 95.0

Array = NDArray[Any]


class Masks:
    """Pixels, each of one class."""

    def report(self, learner: Learner, fitted: Fitted, who: Labelled, names: Sequence[str]) -> DenseReport:
        """See above."""
        assert who.planes is not None
        examples, classes = who.examples, len(names)
        seen = Seen.of(learner, fitted, examples, who.planes)
        tallies = [Tally(classes) for _ in range(seen.patients)]
        weights = weights_of(fitted, classes)
        for patient, maps, plane in seen.maps():
            tallies[patient].add(weighted(maps, weights).argmax(0), classes_in(plane, classes))
        table = torch.from_numpy(
            np.array([tally.metrics() for tally in tallies]).reshape(-1, len(METRICS), classes - 1)
        )
        areas = np.array([tally.there for tally in tallies]).reshape(-1, classes - 1)
        metrics = [*METRICS]
        if classes > 2:
            metrics += [f"{metric}, {name}" for metric in METRICS for name in names[1:]]
        background = torch.ones(len(table), 1, dtype=torch.bool)
        return reported(
            lambda patients: _means(table, patients),
            metrics,
            shares=[name for name in metrics if name.startswith("dice")],
            shown=torch.cat([background, ~table[:, 0].isnan()], 1),
            images=seen.patient.bincount(minlength=seen.patients),
            stratum=examples.labels.stratum(torch.from_numpy(np.pad(areas, ((0, 0), (1, 0)))).float()),
            manufacturers=who.manufacturers,
        )

    def weights(self, learner: Learner, fitted: Fitted, support: Labelled) -> Tensor | None:
        """For each class but the first, in turn, those of the best mean Dice on patients who were not learned from."""
        assert support.planes is not None
        return best_weights(_best, Seen.held_out(learner, fitted, support.examples, support.planes))

    def answers(self, page: Page) -> list[Row]:
        """Of each image, in pixels of the image as it was: areas_px, shares (of the image) and parts (that hang
        together), each by class without the first; mask, the file of a PNG whose values are the classes' numbers;
        segmentation, of a DICOM file that of a segmentation, "" where there is none, and why; heatmap.
        """
        adapted, names, size = page.adapted, page.classes, page.x.shape[-1]
        cells = grids(adapted.learner.probabilities(adapted.fitted, page.z).cpu(), adapted.federation.task.cells)
        weights = weights_of(adapted.fitted, len(names))
        assert isinstance(page.instance, Placed)
        rows: list[Row] = []
        masks: list[Array] = []
        for number, (original, grid) in enumerate(zip(page.instance.originals, cells, strict=True)):
            maps = weighted(upsampled(grid, size), weights)
            mask = original.classes(maps)
            masks.append(mask)
            areas = {name: int((mask == label).sum()) for label, name in enumerate(names) if label}
            shares = {name: area / mask.size for name, area in areas.items()}
            parts = {name: int(ndimage.label(mask == label, _EIGHT)[1]) for label, name in enumerate(names) if label}
            rows.append(
                {
                    "predicted": _in_words(areas, names[0], shares),
                    "areas_px": areas,
                    "shares": {name: round(share, 6) for name, share in shares.items()},
                    "parts": parts,
                    "mask": page.write("masks", number, ".png", png(mask)),
                    "heatmap": probability_map(page, number, maps) if page.heatmap else "",
                }
            )
        file, why = _segmentation(page, page.instance, masks)
        return [{**row, "segmentation": file, "no_segmentation": why} for row in rows]

    def pooled(self, rows: Sequence[Row], adapted: AdaptedModel) -> Row:
        """The sums of areas and parts."""
        names = adapted.federation.task.classes
        areas, parts = (
            {name: sum(row[key][name] for row in rows) for name in names[1:]} for key in ("areas_px", "parts")
        )
        return {"predicted": _in_words(areas, names[0]), "areas_px": areas, "parts": parts}

    def flat(self, record: Columns) -> Columns:
        """A column for each class and number."""
        return {
            template.format(name): value
            for key, template in _COLUMNS.items()
            for name, value in record.get(key, {}).items()
        }

    def columns(self, classes: Sequence[str], *, patients: bool) -> tuple[str, ...]:
        """See `flat`."""
        keys = [key for key in _COLUMNS if not patients or key != "shares"]
        own = () if patients else ("mask", "segmentation", "no_segmentation", "heatmap")
        return (*own, *(_COLUMNS[key].format(name) for key in keys for name in classes[1:]))

    def tables(self, images: Sequence[Row]) -> dict[str, Any]:
        """None."""
        return {}


_COLUMNS = {"areas_px": "area of {} in px", "shares": "share of {}", "parts": "parts of {}"}
_EIGHT = np.ones((3, 3))  # what touches at a corner hangs together


def _in_words(areas: Mapping[str, int], nothing: str, shares: Mapping[str, float] | None = None) -> str:
    shown = (
        f"{name} {100 * shares[name]:.1f} %" if shares else f"{name} {area} px" for name, area in areas.items() if area
    )
    return ", ".join(shown) or nothing


def _segmentation(page: Page, instance: Placed, masks: Sequence[Array]) -> tuple[str, str]:
    """The file of a DICOM segmentation and "", or "" and why there is none."""
    if instance.source is None:
        return "", "not a DICOM file"
    try:
        content = seg(instance.source, instance.originals, masks, page.classes)
    except Exception as error:  # a header may lack whatever highdicom looks for
        return "", f"the image's header does not say enough for a segmentation ({type(error).__name__})"
    return page.write("masks", 0, ".dcm", content), ""


def probability_map(page: Page, number: int, maps: Array) -> str:
    """A picture of where anything but the first class is, and how probable -> its file."""
    heat = torch.from_numpy(1 - maps[0])
    drawn = picture(page.x[number], heat, f"not {page.classes[0]}", "how probable: 0 to 1", "Probability of a pixel")
    return page.write("heatmaps", number, ".png", drawn)


_STEP, _MOST = 0.1, 12.0  # of the logarithms of weights


def _best(seen: Seen, label: int, weights: Array) -> float:
    """The weight of one class, where the others have theirs."""
    thresholds = np.linspace(-_MOST, _MOST, round(2 * _MOST / _STEP) + 1)  # of the lead
    taken, both = np.zeros((2, seen.patients, len(thresholds) + 1), np.int64)
    for patient, maps, plane in seen.maps():
        there = classes_in(plane, len(weights))
        above = np.searchsorted(thresholds, lead(maps, label, weights))  # so many thresholds lie below
        taken[patient] += np.bincount(above[there >= 0], minlength=len(thresholds) + 1)
        both[patient] += np.bincount(above[there == label], minlength=len(thresholds) + 1)
    size = both.sum(1, keepdims=True)
    taken, both = (each[:, ::-1].cumsum(1)[:, ::-1][:, 1:] for each in (taken, both))
    with np.errstate(invalid="ignore"):
        dice = torch.from_numpy(2 * both / (taken + size)).nanmean(0).nan_to_num(nan=0.0).numpy()
    best = np.flatnonzero(dice == dice.max(initial=0.0))
    return float(np.exp(-thresholds[best[np.abs(thresholds[best]).argmin()]])) if len(best) else 1.0


def _means(table: Tensor, weights: Tensor) -> Tensor:
    """Table [patients, metrics, classes - 1] of weighted patients [patients, resamples] -> [resamples, all]."""
    there, known = ~table.isnan(), table.nan_to_num(nan=0.0)
    sums, counts = (torch.einsum("pmc,pr->rmc", each.double(), weights) for each in (known, there))
    means = sums / counts  # 0 / 0 is NaN
    both = [means.nanmean(2), means.flatten(1)] if table.shape[2] > 1 else [means[:, :, 0]]
    return torch.cat(both, 1)


class Tally:
    """What is counted of one patient, class by class without the first."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.both, self.taken, self.there = (np.zeros(classes - 1, np.int64) for _ in range(3))
        self._distances: dict[int, tuple[list[Array], list[Array]]] = defaultdict(lambda: ([], []))

    def add(self, taken: Array, there: Array) -> None:
        """An image: the class predicted and the class that is there of each pixel, [S, S]; -1 where it is unknown."""
        taken = np.where(there < 0, -1, taken)
        for place, label in enumerate(range(1, self.classes)):
            a, b = taken == label, there == label
            self.both[place] += int((a & b).sum())
            self.taken[place] += int(a.sum())
            self.there[place] += int(b.sum())
            if a.any() and b.any():
                for known, found in zip(self._distances[place], surface_distances(a, b), strict=True):
                    known.append(found)

    def metrics(self) -> Array:
        """float64 [metrics, classes - 1]; NaN where the patient says nothing."""
        with np.errstate(invalid="ignore", divide="ignore"):
            dice = 2 * self.both / (self.taken + self.there)
            volume = np.where(self.there > 0, np.abs(self.taken - self.there) / self.there, np.nan)
        distance = np.full(self.classes - 1, np.nan)
        for place, sides in self._distances.items():
            distance[place] = max(float(np.percentile(np.concatenate(side), PERCENTILE)) for side in sides)
        return np.stack([dice, distance, volume])


def surface_distances(a: Array, b: Array) -> tuple[Array, Array]:
    """From each pixel of the edge of a to the nearest of the edge of b, and the other way round: bool [H, W] each, of
    which neither is empty -> float64 [edge of a] and [edge of b], in pixels. An edge is what has a neighbour, above,
    below or beside, that is not in the mask; beyond the image nothing is.
    """
    edges = [mask & ~ndimage.binary_erosion(mask) for mask in (a, b)]
    to_a, to_b = (ndimage.distance_transform_edt(~edge) for edge in edges)
    return to_b[edges[0]], to_a[edges[1]]


kind = Masks()
