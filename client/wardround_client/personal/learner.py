"""Adapt the federation's model to this hospital, and judge it here. Plain training: nothing of it leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from statistics import fmean, stdev
from typing import Literal

import torch
from torch import Tensor

from wardround.algorithms import AdaptsBy, Algorithm, Fitted
from wardround.augment import made_by
from wardround.config import Federation
from wardround.errors import DataError
from wardround.meta.fine_tuned import FineTuned
from wardround.models import Model, Objective
from wardround.questions import Shots
from wardround.task import Augmentation
from wardround_client.cohort.examples import Examples
from wardround_client.isolated import isolation
from wardround_client.personal.metrics import Report, report

# Among these `compare` chooses, for every start alike, for the setting by which its method adapts.
TRIED: Mapping[AdaptsBy, tuple[float, ...]] = {
    "adapt_pull": (0.1, 1.0, 10.0, 100.0),
    "adapt_prior": (0.0, 2.0, 8.0),
    "adapt_learning_rate": (0.01, 0.1, 1.0),
}
_LEAST_WEIGHT = 0.01  # of a way of adapting that is worth its time
_Z95 = 1.96
_AT_ONCE = 256  # images in one prediction
_FOLDS = 5


Start = Literal["shared", "untrained", "scores"]
Scores = tuple[Tensor, Tensor]
"""A federation's own head, which says how much an example looks like each of its classes: weight [theirs, e] and bias
[theirs].
"""

Parts = Sequence[tuple[Examples, Examples]]
"""What is learned from and what is judged, fold by fold."""


@dataclass(frozen=True)
class Way:
    """A way to adapt.

    value: of the setting by which the method adapts; None: not at all. start: the shared model; an untrained one, which
    is local training; or, for classes that the federation does not have, its class scores (`Learner.scores`). weight:
    of its model in the mean of all ways.
    """

    value: float | None
    start: Start = "shared"
    weight: float = 1.0


@dataclass(frozen=True)
class Learner:
    """A method at one start, as a hospital uses it at home.

    algorithm: of the federation. loss: its model at its feature scaling, without a prior. theta: float32 [P]. ways: how
    it adapts, all of them together; (): as the algorithm says, from theta; but from the scores, where there are some
    and theta knows no class. scores: where the task has classes that theta does not know, what the federation knows
    instead. augment: of the task, and so of the supports; of these variants it learns from those that `loss.augment`
    makes.
    """

    algorithm: Algorithm
    loss: Objective
    theta: Tensor
    ways: tuple[Way, ...] = ()
    scores: Scores | None = None
    augment: tuple[Augmentation, ...] = ()

    @classmethod
    def of(cls, federation: Federation, model: Model, theta: Tensor, shift: Tensor, scale: Tensor) -> Learner:
        """A federation's algorithm at theta float32 [P], with the feature scaling shift and scale, float32 [d], that
        goes with it. model: as `Algorithm.extended` makes it.
        """
        loss = Objective.of(federation, model, shift, scale)
        return cls(federation.algorithm, loss, theta, augment=federation.task.augment)

    def embed(self, z: Tensor) -> Tensor:
        """What the head is linear in, float32 [n, e], of encoded examples z [n, ...]; memory stays flat."""
        with torch.no_grad():
            return torch.cat([self.loss.embed(self.theta, part) for part in torch.split(z, _AT_ONCE)])

    def points(self, z: Tensor) -> Tensor:
        """Where encoded examples z [n, ...] lie among others, float32 [n, e + d]: embedding, then scaled summary."""
        summary = (self.loss.model.summary(z) - self.loss.shift) / self.loss.scale
        return torch.cat([self.embed(z), summary / self.loss.model.scaling_size**0.5], 1)

    def unadapted(self) -> Fitted:
        """What predicts without a shot."""
        return self.algorithm.unadapted(self.theta, self.loss)

    def adapt(self, support: Examples) -> Fitted:
        """What predicts after learning from the support. Raises: DataError, when it is empty."""
        if not len(support.y):
            raise DataError("there is no example to adapt to", do="label at least one patient")
        with self._alone():
            shots = shots_of(self._seen(support))
            if not self.ways:
                (start,) = self._from(self.usual_start, [shots])
                return self.algorithm.adapt(start, shots, self.loss)
            fits = [fitted for (fitted,) in self._along(self.ways, [shots])]
        if len(fits) == 1:
            return fits[0]
        # Of linear models the mean predicts the mean of their logits.
        return {"theta": torch.stack([way.weight * f["theta"] for way, f in zip(self.ways, fits, strict=True)]).sum(0)}

    def _seen(self, support: Examples) -> Examples:
        """With the variants that it learns from."""
        return support.varied(made_by(self.augment, self.loss.augment)) if self.augment else support

    def _along(self, ways: Sequence[Way], supports: Sequence[Shots]) -> list[list[Fitted]]:
        """What each way makes of each support."""
        theta = {start: self._from(start, supports) for start in {way.start for way in ways}}
        method, going = self.algorithm, [way for way in ways if way.value is not None]
        if not (going and self.linear and isinstance(method, FineTuned) and type(method).adapt is FineTuned.adapt):
            return [
                [self._fitted(way, shots, at) for shots, at in zip(supports, theta[way.start], strict=True)]
                for way in ways
            ]
        starts = torch.stack([torch.stack(theta[way.start]) for way in going], 1)
        pulls = self.theta.new_tensor([way.value for way in going])
        tuned = iter(method.heads_tuned(starts, supports, self.loss, pulls).unbind(1))
        return [
            [self.unadapted() for _ in supports] if way.value is None else [{"theta": each} for each in next(tuned)]
            for way in ways
        ]

    def _fitted(self, way: Way, shots: Shots, start: Tensor) -> Fitted:
        if way.value is None:
            return self.unadapted()
        return self.adapting_by(way.value).algorithm.adapt(start, shots, self.loss)

    def _alone(self) -> AbstractContextManager[None]:
        """Hundreds of steps on a few hundred numbers: more threads wait for each other thirty times as long."""
        return isolation() if self.loss.model.hidden != "deep" else nullcontext()

    @property
    def usual_start(self) -> Start:
        """Where adapting starts when nothing was chosen."""
        return "shared" if self.scores is None or bool(self.loss.head(self.theta)[0].any()) else "scores"

    def _from(self, start: Start, supports: Sequence[Shots]) -> list[Tensor]:
        """Theta float32 [P] for each support."""
        if start == "scores" and self.scores is not None:
            return self.algorithm.of_scores(self.theta, supports, self.loss, *self.scores)
        return [self._untrained if start == "untrained" else self.theta for _ in supports]

    @property
    def _untrained(self) -> Tensor:
        return self.loss.model.initial().detach().to(self.theta.device)

    def probabilities(self, fitted: Fitted, z: Tensor) -> Tensor:
        """Of encoded examples z [n, ...]: float32 [n, classes]; memory beyond the result stays flat."""
        with torch.no_grad():
            logits = torch.cat([self.algorithm.predict(fitted, part, self.loss) for part in torch.split(z, _AT_ONCE)])
        return self.loss.labels.probabilities(logits)

    def report(self, fitted: Fitted, examples: Examples, manufacturer: Sequence[str] | None = None) -> Report:
        """What this is worth to these patients, each metric with an interval; see `metrics.report`.

        manufacturer: [patients], of the scanner. Raises: DataError, when there is nobody.
        """
        probabilities, labels = self.probabilities(fitted, examples.z), self.loss.labels
        return report(probabilities, examples.y, examples.patient, labels=labels, manufacturer=manufacturer)

    def score(self, fitted: Fitted, examples: Examples) -> float:
        """In [0, 1]: see `LabelKind.score`. Raises: DataError: no examples."""
        if not len(examples.y):
            raise DataError("there is no example to evaluate on", do="keep some patients out of the support set")
        probabilities = self.probabilities(fitted, examples.z)
        return self.loss.labels.score(probabilities, examples.y, examples.classes)

    def adapting_by(self, value: float) -> Learner:
        """The same with another value of the setting by which its method adapts; the same, where it has none."""
        setting = self.algorithm.adapts_by
        if not setting:
            return self
        return replace(self, algorithm=self.algorithm.model_copy(update={setting: value}), ways=())

    def tuned_on(self, support: Examples) -> Learner:
        """The same, adapting as cross-validation on the support itself says.

        Ways to adapt are the values of TRIED; for methods that are held to their start also the start as it is, local
        training, from an untrained model, and, where there are scores, these. Of linear models all ways are taken,
        weighted by exp(-sqrt(n) x loss), n being the patients who were judged: by how many standard errors, more or
        less, they are behind the best. (The best alone is mostly luck with few patients, and weights of exp(-n x loss)
        are as good as the best alone.) Of others it is the best, and another start than the shared model only where it
        is ahead by one of these errors.

        Patients are dealt into five folds, class by class; judged is the mean over the folds of the cross entropy in
        which every class, or every finding and every absence of one, weighs the same. A class of one patient is always
        learned from and never judged. Where no class has two patients nothing can be judged, and nothing changes.
        """
        parts = _parts(support)
        return self.augmented_on(support)._going_so_far(parts) if parts else self

    def augmented_on(self, support: Examples) -> Learner:
        """The same, learning from the variants that are best in cross-validation on the support: those of everything
        that the task names, of nothing, or of one thing alone. Other than everything only where it is ahead by a
        standard error of the difference, patient by patient.
        """
        parts = _parts(support)
        if not self.augment or not parts:
            return self
        singly = [(each,) for each in self.augment] if len(self.augment) > 1 else []
        everything, best, most = self._errors(parts), self, 0.0
        for tried in map(self.learning_from, [(), *singly]):
            gain = everything - tried._errors(parts)
            ahead = float(gain.sum() - gain.std() * len(gain) ** 0.5)
            if ahead > most:
                best, most = tried, ahead
        return best

    def learning_from(self, augment: tuple[Augmentation, ...]) -> Learner:
        """The same, learning from the variants that these changes make, of those of the task."""
        return replace(self, loss=replace(self.loss, augment=augment))

    def _errors(self, parts: Parts) -> Tensor:
        """What each patient who was judged adds to the cross entropy, float64 [patients]: judged on the second of both
        parts, after learning from the first. Their sum is the mean over the parts.
        """
        found = [self._cross_entropies(self.adapt(rest), held) for rest, held in parts]
        return torch.cat(found) / len(parts)

    def _going_so_far(self, parts: Parts) -> Learner:
        """The same, adapting in the ways that are best."""
        setting = self.algorithm.adapts_by
        if setting is None:
            return self

        def errors_of(ways: Sequence[Way]) -> list[float]:
            held = [each for _, each in parts]
            with self._alone():
                fits = self._along(ways, [shots_of(self._seen(rest)) for rest, _ in parts])
                judged = ((self._cross_entropies(*each) for each in zip(own, held, strict=True)) for own in fits)
                return [fmean(float(each.sum()) for each in own) for own in judged]

        ways = [Way(value) for value in TRIED[setting]]
        if setting != "adapt_pull":
            found = dict(zip(TRIED[setting], errors_of(ways), strict=True))
            return self.adapting_by(min(found, key=found.__getitem__))
        ways.append(Way(None))
        if not torch.equal(self.theta, self._untrained):
            ways += [Way(value, "untrained") for value in TRIED[setting]]
        if self.scores is not None:
            ways += [Way(value, "scores") for value in TRIED[setting]]
        errors = torch.tensor(errors_of(ways), dtype=torch.float64)
        standard_error = 1 / sum(held.patients for _, held in parts) ** 0.5
        if not self.linear:
            errors += standard_error * torch.tensor([way.start != "shared" for way in ways])
            return replace(self, ways=(ways[int(errors.argmin())],))
        weights = (-(errors - errors.min()) / standard_error).exp()
        weights = torch.where(weights < _LEAST_WEIGHT * weights.sum(), 0, weights)
        weights = (weights / weights.sum()).tolist()
        kept = (replace(way, weight=weight) for way, weight in zip(ways, weights, strict=True) if weight)
        return replace(self, ways=tuple(kept))

    @property
    def locally(self) -> float | None:
        """How much of it is local training, in [0, 1]; None where nothing was chosen."""
        alike = ("untrained", "shared") if torch.equal(self.theta, self._untrained) else ("untrained",)
        return sum(way.weight for way in self.ways if way.start in alike) if self.ways else None

    @property
    def scored(self) -> float:
        """How much of it starts from the federation's class scores, in [0, 1]."""
        if not self.ways:
            return float(self.usual_start == "scores")
        return sum(way.weight for way in self.ways if way.start == "scores")

    @property
    def linear(self) -> bool:
        """Whether the mean of two fitted models predicts the mean of their logits."""
        return self.loss.model.hidden == "none" and type(self.algorithm).predict is Algorithm.predict

    def _cross_entropies(self, fitted: Fitted, examples: Examples) -> Tensor:
        """Of patients, each image as it is: float64 [patients], whose sum is the mean in which every class weighs the
        same.
        """
        shots = shots_of(examples.varied((0,))).balanced(examples.classes)
        with torch.no_grad():
            values = self.loss.of_logits(self.algorithm.predict(fitted, shots.x, self.loss), shots.y)
        shares = (shots.weight / shots.weight.sum().clamp_min(1e-6) * values).double()
        return shares.new_zeros(examples.patients).index_add_(0, shots.patient, shares)


def shots_of(examples: Examples) -> Shots:
    """Examples, with their variants, as the support of an episode; every patient weighs the same."""
    x, y = examples.for_learning(torch.arange(len(examples.y), device=examples.device))
    patient = examples.patient.repeat_interleave(examples.variants)
    weight = (1 / (examples.images * examples.variants))[patient].float()
    return Shots(x, y, patient, weight, examples.labels)


@dataclass(frozen=True)
class Split:
    """Support and query of one k-shot task; no patient is in both."""

    support: Examples
    query: Examples


@dataclass(frozen=True)
class Score:
    """`Learner.score` of one start, in [0, 1]. mean +- half_width is a 95 % interval over `repeats` random splits.

    The splits share one hospital's patients: the interval tells how much the choice of the support set matters, not
    what another hospital would see. setting: the value that was chosen for this start; None where nothing was adapted.
    """

    start: str
    shots: int
    mean: float
    half_width: float
    repeats: int
    setting: float | None


def k_shot(examples: Examples, shots: int, generator: torch.Generator) -> Split:
    """Draw `shots` patients of each class, with all their images, as support; everybody else is the query."""
    inside = drawn(examples, shots, generator).to(examples.patient.device)[examples.patient]
    return Split(examples.subset(inside), examples.subset(~inside))


def drawn(examples: Examples, shots: int, generator: torch.Generator) -> Tensor:
    """Draw `shots` patients of each class: bool [patients], on the CPU.

    A class is that of `_shown`; patients without a finding are drawn as a class of their own. One with few patients
    gives at most half of them, rounded down, so that something is left to judge: shots are ragged.
    """
    shown = _shown(examples)
    chosen = torch.zeros(examples.patients, dtype=torch.bool)
    for label in range(examples.classes + 1):
        members = torch.nonzero(shown == label).flatten()
        members = members[torch.randperm(len(members), generator=generator)]
        chosen[members[: min(shots, len(members) // 2)]] = True
    return chosen


def compare(
    learners: Mapping[str, Learner],
    examples: Examples,
    *,
    shots: Sequence[int] = (1, 5, 10),
    repeats: int = 20,
    tuning_repeats: int = 3,
    seed: int = 0,
    step: Callable[[int, int], None] | None = None,
) -> list[Score]:
    """k-shot scores after adapting from each start, all starts on the same splits.

    Every start is tuned alike: of TRIED it gets the value that is best on `tuning_repeats` splits of its own
    number of shots; these splits are not among those that are reported. At 0 shots nothing is adapted.

    Args:
        learners: by the names of the starts, for instance "meta-learned" and "fresh".
        examples: of a hospital that took no part.
        shots: patients a class.
        repeats: reported splits, at least 2.
        tuning_repeats: splits to choose the setting on, at least 1.
        seed: of the splits.
        step: called before the first score and after each: how many there are, of how many.

    Returns:
        A score of each start in turn, for each number of shots.
    """
    scores: list[Score] = []
    step = step or (lambda done, total: None)
    step(0, len(shots) * len(learners))
    for k in shots:
        generator = torch.Generator().manual_seed(seed * 1009 + k)
        tuning = [k_shot(examples, k, generator) for _ in range(tuning_repeats if k else 0)]
        reported = [k_shot(examples, k, generator) for _ in range(repeats if k else 1)]
        for name, learner in learners.items():
            setting = _best_setting(learner, tuning)
            chosen = learner if setting is None else learner.adapting_by(setting)
            results = [_trial(chosen, split) for split in reported]
            half_width = _Z95 * stdev(results) / len(results) ** 0.5 if len(results) > 1 else 0.0
            scores.append(Score(name, k, fmean(results), half_width, len(results), setting))
            step(len(scores), len(shots) * len(learners))
    return scores


def _trial(learner: Learner, split: Split) -> float:
    """The score on the query after adapting to the support; without support, of the start itself."""
    fitted = learner.adapt(split.support) if len(split.support.y) else learner.unadapted()
    return learner.score(fitted, split.query)


def _best_setting(learner: Learner, splits: Sequence[Split]) -> float | None:
    """The value of the best mean over the splits; None without splits, or where nothing can be set."""
    setting = learner.algorithm.adapts_by
    if setting is None or not splits:
        return None
    return max(TRIED[setting], key=lambda value: fmean(_trial(learner.adapting_by(value), split) for split in splits))


def _shown(examples: Examples) -> Tensor:
    """The class that each patient counts for, int64 [patients], on the CPU: see `LabelKind.stratum`."""
    votes = torch.zeros(examples.patients, examples.classes)
    votes.index_add_(0, examples.patient.cpu(), examples.targets.cpu())
    return examples.labels.stratum(votes)


def _parts(support: Examples) -> Parts:
    """What cross-validation learns from and judges, fold by fold; nothing where no class has two patients."""
    fold = folds_of(support)
    held_out = [(fold[support.patient.cpu()] == number).to(support.device) for number in torch.unique(fold[fold >= 0])]
    return [(support.subset(~held), support.subset(held)) for held in held_out]


def folds_of(examples: Examples) -> Tensor:
    """Which of _FOLDS each patient is in, int64 [patients], on the CPU; -1 for the only patient of a class."""
    shown = _shown(examples)
    fold = torch.full_like(shown, -1)
    dealt = 0
    for label in torch.unique(shown):
        members = torch.nonzero(shown == label).flatten()
        if len(members) > 1:
            # Going on where the last class ended, so that small classes do not all miss the last folds.
            fold[members] = torch.arange(dealt, dealt + len(members)) % _FOLDS
            dealt += len(members)
    return fold
