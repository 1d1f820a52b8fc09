"""Adapt the federation's model to this hospital, and judge it here. Plain training: nothing of it leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from wardround.errors import DataError
from wardround.models import Model
from wardround_client.examples import Examples

MOMENTUM = 0.9
STEPS = 100
# Among these `compare` chooses the pull towards the start, for every start alike.
PULLS = (0.001, 0.03, 1.0)
_Z95 = 1.96


@dataclass(frozen=True)
class Split:
    """Support and query of one k-shot task; no patient is in both."""

    support: Examples
    query: Examples


@dataclass(frozen=True)
class Score:
    """Balanced accuracy of one start, in [0, 1]. mean +- half_width is a 95 % interval over `repeats` random splits.

    The splits share one hospital's patients: the interval tells how much the choice of the support set matters, not
    what another hospital would see. pull: the setting that was chosen for this start; 0 where nothing was adapted.
    """

    start: str
    shots: int
    mean: float
    half_width: float
    repeats: int
    pull: float


def adapt(
    model: Model,
    theta: Tensor,
    support: Examples,
    *,
    shift: Tensor,
    scale: Tensor,
    steps: int = STEPS,
    learning_rate: float = 1.0,
    pull: float = 0.01,
) -> Tensor:
    """Train on a hospital's own examples, starting at theta.

    Minimises, by `steps` full-batch steps of SGD with momentum, the cross entropy in which every class that occurs
    weighs the same (the aim is balanced accuracy) plus pull / 2 times the squared distance to theta: what the support
    cannot tell stays as it was (Li et al., "Explicit inductive bias for transfer learning", 2018, L2-SP).

    Args:
        model: of the federation.
        theta: float32 [P], the start.
        support: one or more examples.
        shift: float32 [d], of the public feature scaling that theta goes with.
        scale: float32 [d], likewise.
        steps: at least 0; with 0 theta is returned as it is.
        learning_rate: of SGD. Gradients are scaled down to a norm of at most 1, so that it suits every model.
        pull: strength of the pull towards the start, at least 0; pull x learning_rate must be below 1.

    Returns:
        float32 [P], a new vector.

    Raises:
        DataError: no examples.
    """
    if not len(support.y):
        raise DataError("there is no example to adapt to", do="label at least one patient")
    weights = _class_weights(support)
    start, theta = theta, theta.clone()
    velocity = torch.zeros_like(theta)

    def loss(at: Tensor) -> Tensor:
        logits = model.logits(at, support.z, shift, scale)
        return (cross_entropy(logits, support.y, reduction="none") * weights).sum()

    slope = torch.func.grad(loss)
    for _ in range(steps):
        gradient = slope(theta)
        gradient = gradient / gradient.norm().clamp(min=1)
        velocity = MOMENTUM * velocity + gradient + pull * (theta - start)
        theta = theta - learning_rate * velocity
    return theta.detach()


def predict(model: Model, theta: Tensor, z: Tensor, *, shift: Tensor, scale: Tensor) -> Tensor:
    """Class probabilities of encoded examples z [n, ...]: float32 [n, classes]."""
    with torch.no_grad():
        return model.logits(theta, z, shift, scale).softmax(1)


def evaluate(model: Model, theta: Tensor, examples: Examples, *, shift: Tensor, scale: Tensor) -> float:
    """Balanced accuracy in [0, 1]: the mean, over the classes that occur, of the share recognised.

    Raises: DataError: no examples.
    """
    if not len(examples.y):
        raise DataError("there is no example to evaluate on", do="keep some patients out of the support set")
    right = predict(model, theta, examples.z, shift=shift, scale=scale).argmax(1) == examples.y
    return float((right * _class_weights(examples)).sum())


def k_shot(examples: Examples, shots: int, generator: torch.Generator) -> Split:
    """Draw `shots` patients of each class, with all their images, as support; everybody else is the query.

    A patient counts for the class that most of the patient's images show. A class with few patients gives at most half
    of them, rounded down, so that something is left to judge: shots are ragged.
    """
    patients = examples.patients
    votes = torch.zeros(patients, examples.classes).index_add_(
        0, examples.patient.cpu(), one_hot(examples.y, examples.classes).float().cpu()
    )
    shown = votes.argmax(1)
    chosen = torch.zeros(patients, dtype=torch.bool)
    for label in range(examples.classes):
        members = torch.nonzero(shown == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen[members[: min(shots, len(members) // 2)]] = True
    inside = chosen.to(examples.patient.device)[examples.patient]
    return Split(examples.subset(inside), examples.subset(~inside))


def compare(
    model: Model,
    theta_meta: Tensor,
    theta_fresh: Tensor,
    examples: Examples,
    *,
    shift: Tensor,
    scale: Tensor,
    shots: Sequence[int] = (1, 5, 10),
    repeats: int = 20,
    tuning_repeats: int = 3,
    seed: int = 0,
) -> list[Score]:
    """k-shot balanced accuracy after adapting from each start, all starts on the same splits.

    Every start is tuned alike: of PULLS it gets the one that is best on `tuning_repeats` splits of its own
    number of shots; these splits are not among those that are reported. At 0 shots nothing is adapted.

    Args:
        model: of the federation.
        theta_meta: float32 [P], the meta-learned start.
        theta_fresh: float32 [P], what a hospital without the federation starts from: `model.initial()`.
        examples: of a hospital that took no part.
        shift: float32 [d], the federation's; the fresh start gets it too, which can only favour it.
        scale: float32 [d], likewise.
        shots: patients a class.
        repeats: reported splits, at least 2.
        tuning_repeats: splits to choose the setting on, at least 1.
        seed: of the splits.

    Returns:
        Scores named "meta-learned" and "fresh", in turn, for each number of shots.
    """
    starts = {"meta-learned": theta_meta, "fresh": theta_fresh}
    scores = []
    for k in shots:
        generator = torch.Generator().manual_seed(seed * 1009 + k)
        tuning = [k_shot(examples, k, generator) for _ in range(tuning_repeats if k else 0)]
        reported = [k_shot(examples, k, generator) for _ in range(repeats if k else 1)]
        for name, theta in starts.items():
            trial = _Trial(model, theta, shift, scale)
            pull = trial.best_pull(tuning)
            results = [trial.score(split, pull) for split in reported]
            half_width = _Z95 * stdev(results) / len(results) ** 0.5 if len(results) > 1 else 0.0
            scores.append(Score(name, k, fmean(results), half_width, len(results), pull))
    return scores


@dataclass(frozen=True)
class _Trial:
    """One start of a comparison."""

    model: Model
    theta: Tensor
    shift: Tensor
    scale: Tensor

    def score(self, split: Split, pull: float) -> float:
        """Balanced accuracy on the query after adapting to the support; without support, of the start itself."""
        model, theta, shift, scale = self.model, self.theta, self.shift, self.scale
        if len(split.support.y):
            theta = adapt(model, theta, split.support, shift=shift, scale=scale, pull=pull)
        return evaluate(model, theta, split.query, shift=shift, scale=scale)

    def best_pull(self, splits: Sequence[Split]) -> float:
        """The pull of the best mean over the splits; 0 without splits."""
        if not splits:
            return 0.0
        return max(PULLS, key=lambda pull: fmean(self.score(split, pull) for split in splits))


def _class_weights(examples: Examples) -> Tensor:
    """float32 [n] that sums to 1: every class that occurs weighs the same, so does every example of a class."""
    counts = torch.bincount(examples.y, minlength=examples.classes)
    return 1 / (counts[examples.y] * (counts > 0).sum()).float()
