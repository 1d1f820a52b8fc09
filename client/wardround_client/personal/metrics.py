"""How well a model does at a hospital: what `wardround hospital evaluate` says, each number with an interval.

The unit is the prediction for one patient and one label: the mean of the probabilities over the images of the patient
that share the label. Nearly every patient has one label, and so one prediction.

A label is a class, exactly one an image, or a set of findings, any number an image. Both are judged class by class,
this class against the rest, and averaged over the classes that have positives and negatives here (macro). Every metric
is a function of weights, one a prediction: ones give the value, the counts of a resample what the bootstrap needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from wardround.errors import ConfigError, DataError
from wardround.labels import LabelKind
from wardround.labels.one import kind as one_class
from wardround.labels.several import rarest
from wardround.proportions import wilson
from wardround_client.personal.bootstrap import Estimate, estimates

METRICS = (
    "balanced_accuracy",
    "macro_auroc",
    "macro_f1",
    "recall_at_specificity",
    "expected_calibration_error",
    "brier_score",
)
_BINS = 15  # Guo et al., 2017
_POINT = 1e-9  # an interval so narrow is none
_SUM_TOLERANCE = 0.01  # what a softmax in bfloat16 may miss 1 by


@dataclass(frozen=True)
class OperatingPoint:
    """Where a class is called present: at probabilities above threshold; and what that gives on these patients.

    sensitivity: with the interval of a proportion (Wilson). specificity: what is reached, at least what was asked for.
    """

    threshold: float
    sensitivity: Estimate
    specificity: float


@dataclass(frozen=True)
class Report:
    """What a model is worth to these patients.

    patients: distinct ones. predictions: as many, and more where a patient has several labels.
    classes: indices of those that have positives and negatives; the macro averages are over these.
    specificity: that the recall is at. metrics: by the names in METRICS, None where `classes` is empty.
    confusion: [class shown][class predicted], numbers of predictions; None where an image may show several.
    operating_points: one a class at that specificity, None for one without positives or negatives. They are chosen on
    these very patients: expect a little less of others.
    manufacturers: the same for the patients of each scanner manufacturer; empty in these.
    """

    patients: int
    predictions: int
    classes: tuple[int, ...]
    specificity: float
    metrics: Mapping[str, Estimate | None]
    confusion: tuple[tuple[int, ...], ...] | None
    operating_points: tuple[OperatingPoint | None, ...] = ()
    manufacturers: Mapping[str, Report] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain values, by the names of the fields."""
        return asdict(self)


def report(
    probabilities: Tensor,
    y: Tensor,
    patient: Tensor,
    *,
    labels: LabelKind = one_class,
    manufacturer: Sequence[str] | None = None,
    specificity: float = 0.9,
    resamples: int = 1000,
    seed: int = 0,
) -> Report:
    """Judge the predictions for a cohort's images.

    * balanced_accuracy: mean recall of the most probable class. Of findings, said to be there from 0.5 on: the mean of
      recall and specificity.
    * macro_auroc: how often a positive scores above a negative, a tie being half (Mann and Whitney, "On a test of
      whether one of two random variables is stochastically larger than the other", 1947).
    * macro_f1: 2 TP / (2 TP + FP + FN). A class that is predicted but not here is left out, unlike in scikit-learn.
    * recall_at_specificity: the greatest recall of a threshold that at least `specificity` of the negatives stay below.
      The threshold is chosen on these very patients, which flatters a little where they are few.
    * expected_calibration_error: over 15 bins of equal width, of the probability of the most probable class (Guo et
      al., "On calibration of modern neural networks", 2017, equation 3). Of findings, of their own probability (Naeini
      et al., "Obtaining well calibrated probabilities using Bayesian binning", 2015).
    * brier_score: squared error summed over classes, 0 to 2 (Brier, "Verification of forecasts expressed in terms of
      probability", 1950, equation 2). Of findings, of each by itself, 0 to 1.

    Args:
        probabilities: float [n, classes], of images, in [0, 1].
        y: [n, ...], labels of their kind.
        patient: int64 [n], 0 .. patients - 1.
        labels: the kind of y.
        manufacturer: [patients], of the scanner; None for no report by manufacturer.
        specificity: above 0 and below 1.
        resamples: of the bootstrap, at least 1.
        seed: of the bootstrap.

    Raises:
        DataError: nobody to judge, shapes that disagree, a value that is no probability, label or patient.
        ConfigError: an impossible specificity or number of resamples.
    """
    if not 0 < specificity < 1 or resamples < 1:
        raise ConfigError(
            f"specificity {specificity:g} with {resamples} resamples was asked for",
            allowed="a specificity above 0 and below 1, at least 1 resample",
        )
    _check(probabilities, y, patient, labels, manufacturer)
    # In float64 the sums of float32 are exact, near enough: patients whose images score alike still tie.
    predictions = _pooled(probabilities.detach().cpu().double(), y.cpu(), patient.cpu(), labels)

    def judged(some: _Predictions) -> Report:
        return _report(some, specificity, resamples, seed)

    makers = [] if manufacturer is None else [manufacturer[each] for each in predictions.patient.tolist()]
    by_maker = {
        name: judged(predictions.subset(torch.tensor([maker == name for maker in makers])))
        for name in sorted(set(makers))
    }
    return replace(judged(predictions), manufacturers=by_maker)


@dataclass(frozen=True)
class _Predictions:
    """One row for each patient and each label that the patient's images show.

    scores: float64 [u, classes]. truth: bool [u, classes]. patient: int64 [u].
    exclusive: exactly one class is true of each row.
    """

    scores: Tensor
    truth: Tensor
    patient: Tensor
    exclusive: bool

    @cached_property
    def decided(self) -> Tensor:
        """What the scores say, bool [u, classes]."""
        if self.exclusive:
            return one_hot(self.scores.argmax(1), self.scores.shape[1]).bool()
        return self.scores >= 0.5

    @cached_property
    def confidence(self) -> tuple[Tensor, Tensor]:
        """The probabilities to call calibrated, float64 [u, 1 or classes], and 1 where they came true, else 0."""
        if not self.exclusive:
            return self.scores, self.truth.double()
        top, predicted = self.scores.max(1, keepdim=True)
        return top, self.truth.gather(1, predicted).double()

    def subset(self, chosen: Tensor) -> _Predictions:
        """The chosen rows, bool [u]."""
        return replace(self, scores=self.scores[chosen], truth=self.truth[chosen], patient=self.patient[chosen])


def _pooled(probabilities: Tensor, y: Tensor, patient: Tensor, labels: LabelKind) -> _Predictions:
    """The mean over the images of one patient that share a label."""
    truth = labels.targets(y, probabilities.shape[1]).long()
    units, unit = torch.unique(torch.column_stack([patient, truth]), dim=0, return_inverse=True)
    sums = probabilities.new_zeros(len(units), probabilities.shape[1]).index_add_(0, unit, probabilities)
    return _Predictions(sums / unit.bincount().unsqueeze(1), units[:, 1:].bool(), units[:, 0], labels.exclusive)


def _report(predictions: _Predictions, specificity: float, resamples: int, seed: int) -> Report:
    patients, row = torch.unique(predictions.patient, return_inverse=True)
    truth = predictions.truth
    shown = torch.zeros(len(patients), truth.shape[1]).index_add_(0, row, truth.float()) > 0
    results = estimates(
        lambda weights: _metrics(predictions, weights[row], specificity),
        rarest(shown),
        resamples=resamples,
        seed=seed,
    )
    confusion = truth.long().T @ predictions.decided.long()
    return Report(
        patients=len(patients),
        predictions=len(truth),
        classes=tuple(torch.nonzero(truth.any(0) & ~truth.all(0)).flatten().tolist()),
        specificity=specificity,
        metrics={name: no_point(each, len(patients)) for name, each in zip(METRICS, results, strict=True)},
        confusion=tuple(map(tuple, confusion.tolist())) if predictions.exclusive else None,
        operating_points=tuple(
            _operating_point(score, truth, specificity)
            for score, truth in zip(predictions.scores.T, predictions.truth.T, strict=True)
        ),
    )


def _operating_point(score: Tensor, truth: Tensor, specificity: float) -> OperatingPoint | None:
    """Of one class against the rest: the least threshold that enough of the negatives do not pass."""
    negatives, positives = score[~truth].sort().values, score[truth]
    if not len(negatives) or not len(positives):
        return None
    threshold = negatives[ceil(specificity * len(negatives) * (1 - 1e-12)) - 1]
    hit = float((positives > threshold).double().mean())
    reached = float((negatives <= threshold).double().mean())
    return OperatingPoint(float(threshold), _proportion(hit, len(positives)), reached)


def no_point(found: Estimate | None, patients: int) -> Estimate | None:
    """The estimate; where every resample says the same, as of two patients, with the interval of a proportion."""
    if found is None or found.high - found.low > _POINT:
        return found
    return _proportion(found.value, patients)


def _proportion(value: float, count: int) -> Estimate:
    """With Wilson's interval, which holds its value."""
    low, high = wilson(min(max(value, 0.0), 1.0), count)
    return Estimate(value, min(low, value), max(high, value))


def _metrics(of: _Predictions, weights: Tensor, specificity: float) -> Tensor:
    """float64 [resamples, len(METRICS)], from weights [u, resamples]. NaN: no class has positives and negatives."""
    total = weights.sum(0)
    positives, predicted, hits = (
        some.double().T @ weights for some in (of.truth, of.decided, of.truth & of.decided)
    )  # each [classes, resamples]
    negatives = total - positives
    recall = hits / positives
    auroc, recall_at = torch.stack(
        [
            _by_threshold(score, truth, weights, specificity)
            for score, truth in zip(of.scores.T, of.truth.T, strict=True)
        ],
        dim=1,
    )
    error = (of.scores - of.truth.double()).square()
    per_class = (
        recall if of.exclusive else (recall + 1 - (predicted - hits) / negatives) / 2,
        auroc,
        2 * hits / (positives + predicted),
        recall_at,
        _calibration_error(*of.confidence, weights) / total,
        (error.sum(1, keepdim=True) if of.exclusive else error).T @ weights / total,
    )
    both = (positives > 0) & (negatives > 0)
    # Of exclusive classes calibration and Brier score have one row, which stands for every class.
    return torch.stack([torch.where(both, each, torch.nan).nanmean(0) for each in per_class], dim=1)


def _by_threshold(score: Tensor, truth: Tensor, weights: Tensor, specificity: float) -> Tensor:
    """float64 [2, resamples]: AUROC of one class against the rest, and the recall at a specificity.

    Sorted once: a positive beats the negatives below it, whatever they weigh. Were its own score the threshold, these
    would be the true negatives.
    """
    order = score.argsort()
    negative = order[~truth[order]]
    below = torch.cat([weights.new_zeros(1, weights.shape[1]), weights[negative].cumsum(0)])
    least, most = (below[torch.searchsorted(score[negative], score[truth], right=right)] for right in (False, True))
    positive = weights[truth]
    needed = specificity * below[-1] * (1 - 1e-12)  # 0.55 * 100 is more than 55
    wins = torch.stack([(positive * (least + most)).sum(0) / 2 / below[-1], (positive * (least >= needed)).sum(0)])
    return wins / positive.sum(0)


def _calibration_error(confidence: Tensor, outcome: Tensor, weights: Tensor) -> Tensor:
    """float64 [columns, resamples]: the sum over bins of |outcomes - confidences|, from [u, columns] each."""
    bins = ((confidence * _BINS).ceil().long() - 1).clamp(0, _BINS - 1)
    gaps = one_hot(bins, _BINS) * (outcome - confidence).unsqueeze(2)
    return (gaps.flatten(1).T @ weights).view(-1, _BINS, weights.shape[1]).abs().sum(1)


def _check(
    probabilities: Tensor, y: Tensor, patient: Tensor, labels: LabelKind, manufacturer: Sequence[str] | None
) -> None:
    """Raises: DataError, as `report`."""
    if not len(y):
        raise DataError("there is no patient to evaluate on", do="keep some labelled patients out of the support set")
    shapes = [tuple(each.shape) for each in (probabilities, y, patient)]
    if probabilities.dim() != 2 or shapes[1:] != [shapes[0][:1] if labels.exclusive else shapes[0], shapes[0][:1]]:
        raise DataError(
            f"probabilities, labels and patients have the shapes {', '.join(map(str, shapes))}",
            allowed="(n, classes), then (n,) or (n, classes), then (n,)",
        )
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise DataError("a probability is below 0, above 1 or not a number", allowed="0 to 1")
    if not labels.exclusive:
        if not ((y == 0) | (y == 1)).all():
            raise DataError("a finding is neither there nor not", allowed="labels 0 and 1, one column a finding")
    elif not ((y >= 0) & (y < shapes[0][1])).all():
        raise DataError("a label is no class of the probabilities", allowed=f"0 to {shapes[0][1] - 1}")
    elif (probabilities.double().sum(1) - 1).abs().max() > _SUM_TOLERANCE:
        raise DataError(
            "the probabilities of the classes do not sum to 1",
            allowed="a softmax over exclusive classes",
            do='take labels = "several" where an image may show several findings',
        )
    if patient.min() < 0:
        raise DataError("a patient has a negative number", allowed="0 .. patients - 1")
    if manufacturer is not None and len(manufacturer) != int(patient.max()) + 1:
        raise DataError(
            f"there are {len(manufacturer)} manufacturers for {int(patient.max()) + 1} patients",
            allowed="one a patient, in the order of their numbers",
        )
