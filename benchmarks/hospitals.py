"""What learning together is worth to a hospital that took no part: the measurement that several tables share.

A row is a way to learn, a column what it may cost a patient (rows.py). Each row is tuned alike: of its trials it gets
the one that is best at pseudo-targets, hospitals or diseases that are taken out of the SOURCES for that; the target is
never used. At home every row chooses how far it adapts by cross-validation on the support (`Learner.tuned_on`), or with
less than five shots a class takes what was best at the pseudo-targets.

Every number is kept under its own key as soon as it is known (`tables.Store`), so a run that was stopped goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from federated import learned
from rows import NONE, Row, Trial
from tables import Store
from wardround.algorithms.fedavg import FedAvg
from wardround.config import Federation, Privacy, Rounds
from wardround.errors import ConfigError
from wardround.meta.embedded import class_means
from wardround.models import Model, Objective
from wardround.models.scaling import no_scaling
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import TRIED, Learner, k_shot, shots_of
from wardround_client.personal.metrics import report
from wardround_client.personal.own_task import shares

DRAWS = 3
"""Supports that are drawn for each seed; their mean is one value."""
NOISES = 6
"""Draws of noise on which a private trial is judged, over all pseudo-targets: a single one says more of its luck."""
METRICS = ("balanced_accuracy", "macro_auroc")
# With fewer shots a class there is nothing to hold out of the support.
LEAST_TO_TUNE_ON = 5
# Of the supports that trials are judged on; no seed of a measurement is as large.
_TUNING_SEED = 1_000_000

Predictor = Callable[[Examples], Callable[[Tensor], Tensor]]
"""A support, which may be empty -> z [n, ...] -> probabilities float32 [n, classes]."""


@dataclass(frozen=True)
class Target:
    """A task at a hospital that took no part in learning it.

    classes: names, in the order of examples.y. raw: the same examples, with their pixels or columns as z [n, ...].
    """

    name: str
    classes: tuple[str, ...]
    examples: Examples
    raw: Examples


@dataclass(frozen=True)
class Problem:
    """Who learns which classes together, and where it is judged. cohorts: by hospital."""

    name: str
    classes: tuple[str, ...]
    cohorts: Mapping[str, Examples]
    targets: tuple[Target, ...]


Outside = Callable[[Mapping[str, Any], Examples, Examples], Callable[[Tensor], Tensor]]
"""What another library makes of settings, all source patients, and a support -> as of `Predictor`."""
Judge = Callable[[Predictor, Target, int, int], dict[str, float]]
"""A predictor, a target, shots, a seed -> metrics in [0, 1]. The same seed means the same supports and queries."""


@dataclass(frozen=True)
class Study:
    """One question to all rows.

    shots: patients a class, 0 for none. problem: by seed. pseudo: what rows are tuned on. federation: the agreement,
    from (classes, algorithm, trial, epsilon). model: of an agreement, without what a method learns beside it. judge:
    what a prediction is worth; rows are tuned by its metric. noises: draws on which a private trial is judged, over
    all pseudo-targets. outside: of rows that others' libraries learn, by their names.
    """

    name: str
    shots: tuple[int, ...]
    problem: Callable[[int], Problem]
    pseudo: tuple[Problem, ...]
    federation: Callable[[tuple[str, ...], str, Trial, float], Federation]
    model: Callable[[Federation], Model]
    judge: Judge = field(default_factory=lambda: judged)
    metric: str = METRICS[0]
    noises: int = field(default_factory=lambda: NOISES)
    outside: Mapping[str, Outside] = field(default_factory=dict)


class PlainlyTuned(FedAvg):
    """FedAvg whose model is fine-tuned at home at a rate of its own, however far that leads."""

    adapts_by = "adapt_learning_rate"  # a small rate stops early


@dataclass(frozen=True)
class Measurement:
    """One row in one column of a study, kept in a store. by_rule: it has one trial, and adapts by its default."""

    study: Study
    row: Row
    column: str
    store: Store
    by_rule: bool = False

    def steps(self, seeds: int) -> Iterator[Callable[[], None]]:
        """What has to be computed, in order; what is known already takes no time."""
        if self.row.kind != "floor" and not self.by_rule:
            for problem in self.study.pseudo:
                for number in range(len(self._trials)):
                    yield partial(self._try, problem, number)
        for seed in range(seeds):
            yield partial(self._measure, seed)

    def key(self, seed: int) -> str:
        """Of a measured value in the store."""
        return f"{self.study.name}/{self.column}/{self.row.name}/{seed}"

    def chosen(self) -> dict[str, Any]:
        """The best trial at the pseudo-targets, how it adapts with so many shots, and its score there."""
        if self.row.kind == "floor":
            return {}
        if self.by_rule:
            return {"score": None, "adapting": {}, "trial": asdict(self._trials[0])}
        known: dict[str, Any] = dict(self.store.rows())
        choices = []
        for number, trial in enumerate(self._trials):
            found = [
                known[self._trial_key(problem, number)]["scores"][target.name]
                for problem in self.study.pseudo
                for target in problem.targets
            ]
            mean = _mean(found)
            adapting = {shots: _best(values) for shots, values in mean.items()}
            score = fmean(mean[shots][value] for shots, value in adapting.items())
            choices.append({"score": round(score, 4), "adapting": adapting, "trial": asdict(trial)})
        return max(choices, key=lambda choice: choice["score"])

    @property
    def _trials(self) -> tuple[Trial, ...]:
        return self.row.exact if self.column == NONE else self.row.private

    def _trial_key(self, problem: Problem, number: int) -> str:
        return f"trial/{problem.name}/{self.column}/{self.row.name}/{number}"

    def _try(self, problem: Problem, number: int) -> None:
        """A trial at pseudo-targets, with every value of the setting by which the method adapts."""
        trial, key = self._trials[number], self._trial_key(problem, number)
        runs = (
            1
            if self.column == NONE or self.row.kind == "local"
            else max(1, self.study.noises // len(self.study.pseudo))
        )
        known = self.store.rows().get(key, {})
        if (known.get("trial"), known.get("runs", 1)) == (asdict(trial), runs):
            return
        started_s = time.process_time()
        if self.row.kind == "outside":
            scores = {target.name: self._tried_outside(problem, trial, target) for target in problem.targets}
            self.store.put(key, {"trial": asdict(trial), "runs": runs, "scores": scores})
            return
        learners = [self._learner(problem, trial) for _ in range(runs)]
        scores = {
            target.name: _mean([self._tried(problem, trial, each, target) for each in learners])
            for target in problem.targets
        }
        cpu_s = round(time.process_time() - started_s, 1)
        self.store.put(key, {"trial": asdict(trial), "runs": runs, "scores": scores, "cpu_s": cpu_s})

    def _tried(self, problem: Problem, trial: Trial, learner: Learner, target: Target) -> dict[str, dict[str, float]]:
        """Balanced accuracy by shots and by the value of the setting; where nothing adapts, by the first of them."""
        here = self._moved(learner, problem, trial, target)
        values = TRIED[here.algorithm.adapts_by or "adapt_pull"]
        scores = {}
        for shots in self.study.shots:
            tried = values if shots and self.row.kind != "unadapted" else values[:1]
            scores[str(shots)] = {
                str(value): self.study.judge(self._predictor(here.adapting_by(value)), target, shots, _TUNING_SEED)[
                    self.study.metric
                ]
                for value in tried
            }
        return scores

    def _outside(self, problem: Problem, trial: Trial) -> Predictor:
        everybody = together(list(problem.cohorts.values()))
        return partial(self.study.outside[self.row.name], trial.settings, everybody)

    def _tried_outside(self, problem: Problem, trial: Trial, target: Target) -> dict[str, dict[str, float]]:
        predictor = self._outside(problem, trial)
        return {
            str(shots): {"0": self.study.judge(predictor, target, shots, _TUNING_SEED)[self.study.metric]}
            for shots in self.study.shots
        }

    def unable(self, trial: Trial) -> str:
        """Why the row's method cannot be agreed on for the study's tasks; empty, where it can."""
        problem = self.study.problem(0)
        try:
            for classes in {problem.classes, *(target.classes for target in problem.targets)}:
                self._agreed(classes, trial)
        except ValidationError as error:
            return "; ".join(each["msg"].removeprefix("Value error, ") for each in error.errors())
        except ConfigError as error:
            return str(error)
        return ""

    def scores(self, seed: int, trial: Trial, adapting: Mapping[str, str] | None) -> dict[str, Any]:
        """What the row is worth at the study's own targets: metrics by target and shots.

        adapting: the value of the setting by which it adapts, by shots; from five shots on it is chosen on the support.
        None: always the method's default.
        """
        problem = self.study.problem(seed)
        found: dict[str, Any] = {}
        if self.row.kind == "floor":
            for target in problem.targets:
                floor = partial(nearest_mean, target.raw.classes)
                found[target.name] = {
                    str(shots): self.study.judge(floor, replace(target, examples=target.raw), shots, seed)
                    for shots in self.study.shots
                    if shots
                }
            return found
        if self.row.kind == "outside":
            outside = self._outside(problem, trial)
            return {
                target.name: {str(shots): self.study.judge(outside, target, shots, seed) for shots in self.study.shots}
                for target in problem.targets
            }
        learner = self._learner(problem, trial)
        for target in problem.targets:
            here = self._moved(learner, problem, trial, target)
            found[target.name] = {}
            for shots in self.study.shots:
                tuned = adapting is not None and shots >= LEAST_TO_TUNE_ON
                chosen = here if adapting is None or tuned else here.adapting_by(float(adapting[str(shots)]))
                predictor = self._predictor(chosen, tuned=tuned)
                found[target.name][str(shots)] = self.study.judge(predictor, target, shots, seed)
        return found

    def _measure(self, seed: int) -> None:
        """One seed at the study's own targets, at the best trial."""
        chosen, key = self.chosen(), self.key(seed)
        if self.store.rows().get(key, {}).get("chosen") == chosen:
            return
        started_s = time.process_time()
        trial = Trial(**chosen["trial"]) if chosen else Trial()
        adapting = None if self.by_rule else chosen.get("adapting", {})
        self.store.put(
            key,
            {
                "study": self.study.name,
                "column": self.column,
                "row": self.row.name,
                "seed": seed,
                "chosen": chosen,
                "scores": self.scores(seed, trial, adapting),
                "cpu_s": round(time.process_time() - started_s, 1),
                "date": datetime.now(UTC).date().isoformat(),
            },
        )

    def _agreed(self, classes: tuple[str, ...], trial: Trial) -> tuple[Federation, Model]:
        # Without privacy epsilon says nothing, but an agreement has one.
        epsilon = 8.0 if self.column == NONE else float(self.column)
        federation = self.study.federation(classes, self.row.algorithm, trial, epsilon)
        return federation, federation.algorithm.extended(self.study.model(federation))

    def _learner(self, problem: Problem, trial: Trial) -> Learner:
        """What the row learns from the problem's hospitals; `local` learns nothing there."""
        federation, model = self._agreed(problem.classes, trial)
        if self.row.kind == "local":
            return Learner.of(federation, model, model.initial(), *no_scaling(model.scaling_size))
        cohorts = problem.cohorts
        if self.row.kind == "central":
            cohorts = {"everybody": together(list(cohorts.values()))}
            rounds = federation.rounds.model_copy(update={"quorum": 1})
            federation = federation.model_copy(update={"rounds": rounds})
        learner = learned(federation, model, cohorts, private=self.column != NONE)
        return (
            replace(learner, algorithm=PlainlyTuned(**dict(learner.algorithm))) if self.row.kind == "plain" else learner
        )

    def arrived(self, problem: Problem, trial: Trial, target: Target) -> Learner:
        """What the row learns from the problem's hospitals by a trial, as it comes to a target."""
        return self._moved(self._learner(problem, trial), problem, trial, target)

    def _moved(self, learner: Learner, problem: Problem, trial: Trial, target: Target) -> Learner:
        """The learner for the target's classes. A head keeps its place for those that the federation knew."""
        if target.classes == problem.classes:
            return learner
        _, model = self._agreed(target.classes, trial)
        loss = Objective(model, learner.loss.shift, learner.loss.scale)
        like = shares({name: (name,) if name in problem.classes else () for name in target.classes}, problem.classes)
        theta = learner.algorithm.for_classes(learner.theta, learner.loss, loss, model.initial(), like)
        return Learner(learner.algorithm, loss, theta)

    def _predictor(self, learner: Learner, *, tuned: bool = False) -> Predictor:
        """What the row does at home. tuned: how far its method adapts is chosen on the support."""

        def predictor(support: Examples) -> Callable[[Tensor], Tensor]:
            if self.row.kind == "unadapted" or not len(support.y):
                return partial(learner.probabilities, learner.unadapted())
            chosen = learner.tuned_on(support) if tuned else learner
            return partial(chosen.probabilities, chosen.adapt(support))

        return predictor


def _mean(scores: Sequence[dict[str, dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Value by value."""
    return {
        shots: {value: fmean(each[shots][value] for each in scores) for value in values}
        for shots, values in scores[0].items()
    }


def _best(values: Mapping[str, float]) -> str:
    """The best value of a setting; where several are, which tells nothing, the middle one that was tried."""
    most = max(values.values())
    best = [value for value in values if values[value] == most]
    return sorted(best, key=float)[len(best) // 2]


def agreed(algorithm: str, trial: Trial, epsilon: float) -> dict[str, Any]:
    """The sections of an agreement that a trial decides."""
    return {
        "algorithm": {"name": algorithm, **trial.settings},
        "outer": {"rule": "mean", "learning_rate": trial.learning_rate},  # nobody lies there
        "privacy": Privacy(epsilon=epsilon, clip_norm=trial.clip_norm, patients_per_episode=trial.patients_per_episode),
        "rounds": Rounds(rounds=trial.rounds),
    }


def judged(predictor: Predictor, target: Target, shots: int, seed: int, *, draws: int = 0) -> dict[str, float]:
    """METRICS of patients (all images of one together) who are in no support, the mean over so many supports, or DRAWS.

    Whoever asks with the same target, shots and seed is judged on the same supports and queries.
    """
    generator = torch.Generator().manual_seed(seed * 1009 + shots)
    found: dict[str, list[float]] = {name: [] for name in METRICS}
    for _ in range((draws or DRAWS) if shots else 1):
        split = k_shot(target.examples, shots, generator)
        probabilities = predictor(split.support)(split.query.z)
        metrics = report(probabilities, split.query.y, split.query.patient, resamples=1).metrics
        for name in METRICS:
            estimate = metrics[name]
            assert estimate is not None, "a task has two classes at least"
            found[name].append(estimate.value)
    return {name: fmean(values) for name, values in found.items()}


def nearest_mean(classes: int, support: Examples) -> Callable[[Tensor], Tensor]:
    """The floor: the class whose mean support, pixel by pixel, is nearest."""
    means = class_means(support.z.flatten(1), shots_of(support).shares(classes))
    return lambda z: (-torch.cdist(z.flatten(1), means).square()).softmax(1)


def unchanging(problem: Problem, seed: int) -> Problem:
    """For a study whose problem is the same whatever the seed: noise and supports differ."""
    return problem


def examples_of(
    z: Tensor, label: Sequence[str], patient: NDArray[np.int64], classes: tuple[str, ...], chosen: NDArray[np.bool_]
) -> Examples:
    """Some examples of z [n, ...]: those chosen, bool [n], of which each has one of the classes."""
    rows = np.flatnonzero(chosen)
    x = z[torch.from_numpy(rows)]
    y = torch.tensor([classes.index(label[row]) for row in rows.tolist()], dtype=torch.int64)
    numbered = torch.from_numpy(np.unique(patient[rows], return_inverse=True)[1].astype(np.int64))
    return Examples(z=x, y=y, patient=numbered, summary=x, classes=len(classes))


def together(cohorts: Sequence[Examples]) -> Examples:
    """All patients as one hospital's; the same number at two hospitals means two patients."""
    first = np.cumsum([0, *(each.patients for each in cohorts)])[:-1].tolist()
    z = torch.cat([each.z for each in cohorts])
    return Examples(
        z=z,
        y=torch.cat([each.y for each in cohorts]),
        patient=torch.cat([each.patient + start for each, start in zip(cohorts, first, strict=True)]),
        summary=z,
        classes=cohorts[0].classes,
        labels=cohorts[0].labels,
    )
