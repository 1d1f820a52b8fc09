"""What hospitals release about each class beside a gradient: sums of features, and how many patients they are of.

A patient's part in the sums is the gradient of a LINEAR loss, so that `cohort.gradient` is asked for a gradient and the
sums at once: one vector a patient, clipped to C as a whole, at the price of one gradient.

Rare classes have noisy means, and the mean of a rare class may be longer than all true ones for its noise alone. So
means are shrunk as an empirical Bayes estimate says (Efron and Morris, "Stein's estimation rule and its competitors",
1973): towards the centre of all patients, the more, the noisier they are. How noisy that is, nobody has to say: BLANKS
numbers of the vector are nobody's, and hold noise that went through all that the sums went through, averages over
hospitals, momentum, rules and rounds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from wardround.labels.one import kind as one_class
from wardround.models.base import Model
from wardround.models.extended import Extended
from wardround.models.objective import Objective
from wardround.questions import FewShotLoss

BLANKS = 64
# A class is known where its noisy count is so many deviations of its noise above 0.
_SURE = 2.0
# The squared length of a class's mean, of features of length 1, from which its own estimate starts.
_TYPICAL = 0.1
_LEAST_EIGENVALUE = 0.05  # of a covariance, in units of their mean


class Elementary(Protocol):
    """What `WithSums` needs of a loss with gradients by elementary operations; an `Objective` is one."""

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`."""
        ...

    def embedded(self, theta: Tensor, x: Tensor) -> Tensor:
        """The features that are added up, float64 [m, e]."""
        ...


def with_places(model: Model, size: int, names: Mapping[str, float]) -> Extended:
    """The model, and places for the sums of that many features, of those names, behind it."""
    shapes = {
        "scatter": (size, size),
        "sums": (model.classes, size),
        "counts": (model.classes,),
        "blanks": (BLANKS,),
    }
    return Extended.of(model, {name: torch.zeros(shapes[name]) for name in names})


@dataclass(frozen=True)
class WithSums:
    """A loss, less a linear term whose gradient is what an image adds to the sums.

    loss: of a vector that ends with the places of the sums. lengths: by name, in the order of the places, how long a
    patient's part is, for features of length 1. alone: nothing of the loss but the sums.
    """

    loss: FewShotLoss
    lengths: Mapping[str, float]
    alone: bool = False

    @property
    def elementary(self) -> bool:
        """Where the loss is."""
        return isinstance(self.loss, Objective) and self.loss.elementary

    def __call__(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """Theta float32 [P], x [m, ...], labels y [m, ...] -> float32 []."""
        beside = self.loss.extras(theta)
        added = linear_term(beside, self.loss.embed(theta, x).detach(), self.shown(y), self.lengths)
        return -added.mean() if self.alone else (self.loss.each(theta, x, y) - added).mean()

    def gradients(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """See `ElementaryLoss.gradients`: the loss's, and f f', f, 1 and 0 at the places of the sums."""
        assert isinstance(self.loss, Objective)
        f = self.loss.embedded(theta, x)
        added = parts(f, self.shown(y).double(), self.lengths)
        found = f.new_zeros(len(x), len(theta)) if self.alone else self.loss.gradients(theta, x, y)
        found[:, -added.shape[1] :] = -added
        return found

    def shown(self, y: Tensor) -> Tensor:
        """Which classes each image shows, float32 [m, classes]; of a cell, how much of each."""
        labels = self.loss.labels if isinstance(self.loss, Objective) else one_class
        return labels.targets(y, self.loss.classes)


def parts(f: Tensor, shown: Tensor, lengths: Mapping[str, float]) -> Tensor:
    """What images add to the sums, by products alone: f [m, e], shown [m, classes], of one dtype -> [m, size]."""
    of = {
        "scatter": lambda: (f.unsqueeze(2) * f.unsqueeze(1)).flatten(1),
        "sums": lambda: (shown.unsqueeze(2) * f.unsqueeze(1)).flatten(1),
        "counts": lambda: shown,
        "blanks": lambda: f.new_zeros(len(f), BLANKS),
    }
    return torch.cat([length * of[name]() for name, length in lengths.items()], 1)


def linear_term(beside: Mapping[str, Tensor], f: Tensor, shown: Tensor, lengths: Mapping[str, float]) -> Tensor:
    """A term [m] whose gradient in the places `beside` are `parts`; f [m, e], shown [m, classes]."""
    places = torch.cat([beside[name].flatten() for name in lengths])
    return parts(f, shown, lengths) @ places


@dataclass(frozen=True)
class ClassMeans:
    """What the sums tell. means: float64 [classes, e], shrunk; zero for what is unknown. known: bool [classes]."""

    means: Tensor
    known: Tensor

    @classmethod
    def of(cls, beside: Mapping[str, Tensor], lengths: Mapping[str, float]) -> ClassMeans:
        """From the places of "sums", "counts" and "blanks"."""
        sums, counts = (beside[name].double() / lengths[name] for name in ("sums", "counts"))
        noise = _noise(beside)
        known = counts > _SURE * noise.sqrt() / lengths["counts"]
        patients = torch.where(known, counts, 1.0)
        means = sums / patients.unsqueeze(1) * known.unsqueeze(1)
        variance = sums.shape[1] * noise / (lengths["sums"] * patients).square()  # of a mean, all numbers together
        weight = known / (variance + _TYPICAL).square()
        signal = (weight * (means.square().sum(1) - variance)).sum() / weight.sum().clamp_min(1e-300)
        signal = signal.clamp_min(_TYPICAL / 10)
        return cls(means * (signal / (signal + variance)).unsqueeze(1), known)


def covariance_within(beside: Mapping[str, Tensor], lengths: Mapping[str, float]) -> Tensor:
    """How features vary within a class, whichever it is: float64 [e, e], positive definite, from all places.

    Noise spreads eigenvalues that are alike, so they are drawn together as far as noise alone would have spread them
    (a linear shrinkage, as Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices",
    2004, with the noise's share known). Where nobody has been counted it is the identity over e.
    """
    counts = beside["counts"].double().clamp_min(0) / lengths["counts"]
    total, e = counts.sum(), len(beside["scatter"])
    eye = torch.eye(e).to(counts) / e
    if not total > 0:
        return eye
    means, q = ClassMeans.of(beside, lengths).means, beside["scatter"].double() / (lengths["scatter"] * total)
    within = (q + q.T) / 2 - (means.T * (counts / total)) @ means
    values, vectors = torch.linalg.eigh(torch.nan_to_num(within, nan=0.0, posinf=0.0, neginf=0.0))
    typical, spread = values.mean(), (values - values.mean()).square().mean()
    by_noise = e * _noise(beside) / (lengths["scatter"] * total).square()
    kept = ((spread - by_noise) / spread.clamp_min(1e-300)).clamp(0, 1)
    if not typical > 0:
        return eye
    values = (typical + kept * (values - typical)).clamp_min(_LEAST_EIGENVALUE * typical)
    found: Tensor = (vectors * values) @ vectors.T
    return found


def _noise(beside: Mapping[str, Tensor]) -> Tensor:
    """The variance of a number among the places, before it is divided by a length: float64 []."""
    return beside["blanks"].double().square().mean()
