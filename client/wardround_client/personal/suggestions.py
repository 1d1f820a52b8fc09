"""Whom to label next: the unlabelled patients of whom a label would tell most.

One after another, the patient who is farthest from all who are labelled or suggested already (the greedy k-centre of
Sener and Savarese, "Active learning for convolutional neural networks: a core-set approach", 2018), where one about
whom the model is sure counts half as far as one about whom it knows nothing. No number is drawn: the same cohort and
model give the same list. docs/benchmarks.md says where that pays, and where it was not shown to.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from wardround.errors import ConfigError
from wardround.labels import LABEL_KINDS, LabelKind
from wardround.task import Task
from wardround_client.cohort.examples import Encoding, Examples, UsableRows, by_computing, encoded, usable_rows
from wardround_client.cohort.store import CohortStore
from wardround_client.personal.learner import Learner
from wardround_client.personal.shared_model import SharedModel

FOLDER = "suggestions"
"""Of a home: lists of whom to label, CSV files that name their patients' pseudonyms."""

_AT_ONCE = 1024  # patients whose distances are taken together
_UNSURE = 0.5
_FAR = 0.75  # as a quantile of how far patients without a label are from those who have one
_PICTURE_PX = 128


@dataclass(frozen=True)
class Suggestion:
    """A patient to label.

    pseudonym: the hospital's. row: of the cohort, the image to look at. why: in words. probabilities: of the task's
    classes, of all of the patient's images; () where nothing could be predicted. uncertainty: in [0, 1], 1 where
    nothing is known. distance: from the nearest who was labelled or suggested before, over the median of all.
    """

    pseudonym: bytes
    row: int
    why: str
    probabilities: tuple[float, ...]
    uncertainty: float
    distance: float

    def record(self, classes: Sequence[str]) -> dict[str, Any]:
        """Plain values, by name."""
        return {
            "patient": self.pseudonym.hex(),
            "why": self.why,
            "uncertainty": round(self.uncertainty, 4),
            "distance": round(self.distance, 4),
            "probabilities": dict(zip(classes, self.probabilities, strict=False)),
        }

    def thumbnail(self, store: CohortStore) -> bytes | None:
        """The image to look at as a PNG, of a volume its middle slice; None of a table or several inputs."""
        if store.kind not in ("image", "volume"):
            return None
        pixels = store.inputs[self.row]
        if store.kind == "volume":
            pixels = pixels[:, pixels.shape[1] // 2]
        grey = (pixels[: store.channels] >> 8).astype(np.uint8)
        image = Image.fromarray(grey[0] if len(grey) == 1 else np.ascontiguousarray(grey.transpose(1, 2, 0)))
        image.thumbnail((_PICTURE_PX, _PICTURE_PX))
        file = io.BytesIO()
        image.save(file, "PNG")
        return file.getvalue()


@dataclass(frozen=True)
class Suggestions:
    """The patients to label, the most telling first.

    unlabelled: patients without any label in the task's column, whether somebody can name them or not. named: those of
    them who could be suggested. labelled: patients with a label of the task. predicted: whether a model was asked too,
    and not only how patients differ.
    """

    chosen: tuple[Suggestion, ...]
    unlabelled: int
    named: int
    labelled: int
    predicted: bool


def suggested(
    store: CohortStore,
    start: SharedModel,
    device: torch.device,
    count: int,
    *,
    among: Collection[int] | None = None,
    by: Encoding = by_computing,
) -> Suggestions:
    """Suggest so many patients of a cohort, or fewer where there are no more.

    Args:
        store: the cohort, without those who have withdrawn.
        start: the model that sees; it is adapted to those who are labelled.
        device: where it computes.
        count: patients at most.
        among: rows of the cohort that somebody can name; None: all.
        by: how images are encoded.

    Raises:
        ConfigError: a task whose labels are places.
        DataError: a cohort of another shape.
    """
    task = start.federation.task
    if task.dense:
        raise ConfigError(
            f'a task with labels = "{task.labels}"',
            allowed="tasks with a label for a whole image, volume or row",
            do="choose by hand: images without outlines or places are in no cohort",
        )
    labelled, (candidates, unlabelled) = _labelled(store, task), _without_label(store, task, among)
    learner = start.learner(device)
    seen = encoded(store, labelled, task, start.model, device, by=by)
    new = encoded(store, candidates, task.model_copy(update={"augment": ()}), start.model, device, by=by)
    told = _probabilities(learner, start, labelled, seen, new)
    points = [over_patients(learner.embed(each.z), each) for each in (new, seen)]
    unsure = torch.ones(len(new.z)) if told is None else uncertainty(told, learner.loss.labels)
    per_patient = None if told is None else over_patients(told, new)
    doubt = torch.ones(new.patients) if per_patient is None else uncertainty(per_patient, learner.loss.labels)
    chosen: list[Suggestion] = []
    for number, distance, far in islice(_with_distances(points[0], points[1], doubt), count):
        images = torch.nonzero(new.patient == number).flatten()
        of_classes = () if per_patient is None else tuple(per_patient[number].tolist())
        chosen.append(
            Suggestion(
                pseudonym=store.pseudonyms[int(candidates.patients[number])],
                row=int(candidates.kept[int(images[unsure[images].argmax()])]),  # the image about which least is known
                why=_why(of_classes, float(doubt[number]), far, task, known=len(seen.y) > 0, first=not chosen),
                probabilities=of_classes,
                uncertainty=float(doubt[number]),
                distance=distance,
            )
        )
    return Suggestions(tuple(chosen), unlabelled, new.patients, len(labelled.patients), told is not None)


def farthest(points: Tensor, seen: Tensor, unsure: Tensor) -> Iterator[tuple[int, float]]:
    """Points one after another, each the farthest from all that were seen or given before, and how far it is.

    Args:
        points: float32 [n, e]; one for each patient without a label.
        seen: float32 [m, e]; of those who have one. Without any the first point is the one nearest to the middle.
        unsure: float32 [n] in [0, 1]; a point of 0 counts half as far as one of 1.
    """
    left, weight = torch.ones(len(points), dtype=torch.bool), (1 + unsure) / 2
    distance = _nearest(points, seen)
    for turn in range(len(points)):
        if turn or len(seen):
            number = int((distance * weight).masked_fill(~left, -1).argmax())
        else:
            number = int((points - points.mean(0)).norm(dim=1).argmin())
        yield number, float(distance[number])
        left[number] = False
        distance = torch.minimum(distance, (points - points[number]).norm(dim=1))


def uncertainty(probabilities: Tensor, labels: LabelKind) -> Tensor:
    """Of predictions [n, classes] float32 [n] in [0, 1]: of classes that exclude each other 1 less how far the first is
    ahead of the second, of findings that of the least certain one.
    """
    if labels.exclusive:
        first, second = probabilities.topk(2, dim=1).values.unbind(1)
        return 1 - (first - second)
    return (1 - (2 * probabilities - 1).abs()).max(1).values


def _labelled(store: CohortStore, task: Task) -> UsableRows:
    """Those that the task can use."""
    if set(task.label_columns) <= set(store.label_columns):
        return usable_rows(store, task)
    return _rows(store, np.zeros(0, np.int64), task)


def _without_label(store: CohortStore, task: Task, among: Collection[int] | None) -> tuple[UsableRows, int]:
    """Images of patients of whom no image has any label in the task's column, and how many such patients there are."""
    has_one = np.zeros(len(store.pseudonyms), bool)
    for column in (each for each in task.label_columns if each in store.label_columns):
        has_one[store.patients[[label is not None for label in store.labels(column)]]] = True
    free = ~has_one[store.patients]
    kept = [row for row in np.flatnonzero(free).tolist() if among is None or row in among]
    return _rows(store, np.array(kept, np.int64), task), len(np.unique(store.patients[free]))


def _rows(store: CohortStore, kept: NDArray[np.int64], task: Task) -> UsableRows:
    y, _ = LABEL_KINDS[task.labels].parse([None] * len(kept), task)
    patients, patient = np.unique(store.patients[kept], return_inverse=True)
    return UsableRows(kept, y, patient.astype(np.int64), patients, 0)


def _probabilities(
    learner: Learner, start: SharedModel, labelled: UsableRows, seen: Examples, new: Examples
) -> Tensor | None:
    """Of the new images [n, classes]: after learning from those that are labelled, where they show two classes; else of
    the shared model, where it knows the classes; else None. Of times to an event nobody can be sure.
    """
    if seen.labels.timed:
        return None
    if len(seen.y) and not seen.labels.alike(labelled.y, ["?"] * seen.classes):
        fitted = learner.adapt(seen)
    elif start.new_classes and not all(start.like.values()):
        return None
    else:
        fitted = learner.unadapted()
    return learner.probabilities(fitted, new.z).cpu()


def over_patients(values: Tensor, of: Examples) -> Tensor:
    """The mean over each patient's images: [n, k] -> [patients, k], on the CPU."""
    sums = torch.zeros(of.patients, values.shape[1]).index_add_(0, of.patient.cpu(), values.cpu())
    return sums / of.images.cpu().unsqueeze(1)


def _nearest(points: Tensor, seen: Tensor) -> Tensor:
    """How far each point is from the nearest seen one; infinitely, where there is none."""
    if not len(seen):
        return torch.full((len(points),), torch.inf)
    return torch.cat([torch.cdist(part, seen).min(1).values for part in torch.split(points, _AT_ONCE)])


def _with_distances(points: Tensor, seen: Tensor, unsure: Tensor) -> Iterator[tuple[int, float, bool]]:
    """`farthest`, each distance over the median of all, and whether it is among the largest."""
    if not len(points):
        return
    all_ = _nearest(points, seen if len(seen) else points.mean(0, keepdim=True))
    usual = max(float(all_.median()), 1e-12)
    far = float(all_.quantile(_FAR))
    for number, distance in farthest(points, seen, unsure):
        finite = distance if distance < float("inf") else float(all_[number])
        yield number, finite / usual, finite >= far


def _why(probabilities: Sequence[float], doubt: float, far: bool, task: Task, *, known: bool, first: bool) -> str:
    """In words."""
    said = []
    if probabilities and doubt >= _UNSURE:
        named = sorted(zip(probabilities, task.classes, strict=True), reverse=True)
        if LABEL_KINDS[task.labels].exclusive:
            (p, one), (q, other) = named[:2]
            said.append(f"uncertain between {one} ({100 * p:.0f} %) and {other} ({100 * q:.0f} %)")
        else:
            p, one = min(named, key=lambda each: abs(each[0] - 0.5))
            said.append(f"uncertain about {one} ({100 * p:.0f} %)")
    if first and not known:
        said.append("like most of those without a label")
    elif far or not said:
        said.append("unlike anything labelled" if known else "unlike those before it")
    return "; ".join(said)
