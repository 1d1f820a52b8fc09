"""What a task can expect of settings: a Gaussian process over both (Rasmussen and Williams, 2006, algorithm 2.1).

A run's gain over chance, the mean over the numbers of shots that it was judged with, is a sum of what its task allows,
what its settings are worth anywhere, and what they are worth on tasks like it:

    k = a_o [same task] + a_t T(t, t') + a_s S(s, s') + a_b T(t, t') S(s, s') + [same run] noise / runs

T and S are exp(-d^2 / 2), d the distance of what is compared in units of its own length; S of two algorithms is rho of
what it would be of one. Numbers are compared by their logarithms. No iteration, no seed: the same rows give the same
answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import log, log2
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from wardround.experience.row import Described, Row, Settings
from wardround.experience.rule import NOT_PRIVATE

Array = NDArray[np.float64]
LEAST_SETTING = 0.01  # what is below, 0 among it, is compared as this


@dataclass(frozen=True)
class Lengths:
    """How far apart is far, in doublings, and how much each part of k varies (variances of a gain).

    people: of patients and hospitals. answers: of classes. inputs: of pixels and columns. epsilon: of itself.
    apart: between two kinds of input, of labels or of units. settings: of any number. rho: between two algorithms.
    """

    a_o: float = 0.03
    a_t: float = 0.03
    a_s: float = 0.01
    a_b: float = 0.01
    people: float = 3.0
    answers: float = 2.0
    inputs: float = 3.0
    epsilon: float = 2.0
    apart: float = 1.0
    rate: float = 2.0
    clip: float = 2.0
    settings: float = 3.0
    rho: float = 0.5
    noise: float = 0.003

    def moved(self, logarithms: Sequence[float]) -> Self:
        """Each number times e to that power; rho stays below 1."""
        names = list(asdict(self))
        found = {name: getattr(self, name) * float(np.exp(by)) for name, by in zip(names, logarithms, strict=True)}
        return replace(self, **(found | {"rho": min(found["rho"], 0.98)}))


def chance(task: Described, metric: str) -> float:
    """What a score is worth where nothing was learned."""
    return {"balanced accuracy": 1 / task.classes, "macro AUROC": 0.5}.get(metric, 0.0)


@dataclass(frozen=True)
class Points:
    """Tasks and settings as coordinates, a row each: float64 [n, ...]. same: a number for each different task."""

    task: Array
    settings: Array
    algorithm: NDArray[np.int64]
    same: NDArray[np.int64]

    def __getitem__(self, chosen: Any) -> Points:
        return Points(self.task[chosen], self.settings[chosen], self.algorithm[chosen], self.same[chosen])


@dataclass(frozen=True)
class Space:
    """Which settings are compared, and the numbers of algorithms and of tasks that are alike."""

    lengths: Lengths
    keys: tuple[str, ...]
    algorithms: dict[str, int]
    tasks: dict[str, int]

    @classmethod
    def of(cls, rows: Sequence[Row], lengths: Lengths) -> Self:
        """Of all settings that are numbers and not the same everywhere."""
        found: dict[str, set[float]] = {}
        for row in rows:
            for key, value in row.settings.items():
                if isinstance(value, float):
                    found.setdefault(key, set()).add(value)
        keys = tuple(sorted(key for key, values in found.items() if len(values) > 1))
        return cls(lengths, keys, {}, {})

    def points(self, pairs: Sequence[tuple[Described, Settings]]) -> Points:
        """Of tasks with settings."""
        tasks = [_same(task) for task, _ in pairs]
        return Points(
            np.array([self._task(task) for task, _ in pairs]).reshape(len(pairs), -1),
            np.array([self._settings(settings) for _, settings in pairs]).reshape(len(pairs), -1),
            np.array([_number(self.algorithms, method(settings)) for _, settings in pairs], int),
            np.array([_number(self.tasks, task) for task in tasks], int),
        )

    def _task(self, task: Described) -> list[float]:
        to = self.lengths
        kinds = [task.kind == each for each in ("image", "volume", "table", "inputs")]
        labels = [task.labels == each for each in ("one", "several", "mask", "points")]
        return [
            log2(sum(task.hospitals)) / to.people,
            log2(task.hospitals[0]) / to.people,
            log2(len(task.hospitals)) / to.people,
            log2(task.classes) / to.answers,
            log2(max(8, task.image_size_px)) / to.inputs,
            log2(max(1, task.depth)) / to.inputs,
            log2(max(1, task.columns)) / to.inputs,
            log2(min(task.epsilon or NOT_PRIVATE, NOT_PRIVATE)) / to.epsilon,
            *(float(each) / to.apart for each in (*kinds, *labels, task.units != "display")),
            float(len(task.encoder) == 64) / to.apart,
        ]

    def _settings(self, settings: Settings) -> list[float]:
        return [_coordinate(settings.get(key)) / self._length(key) for key in self.keys]

    def _length(self, key: str) -> float:
        if key == "privacy.clip_norm":
            return self.lengths.clip
        return self.lengths.rate if key == "outer.learning_rate" else self.lengths.settings

    def tasks_alike(self, a: Points, b: Points) -> Array:
        """T, float64 [n, m]."""
        return _near(a.task, b.task)

    def kernel(self, a: Points, b: Points) -> Array:
        """The k of each pair, without noise, float64 [n, m]."""
        to, alike = self.lengths, self.tasks_alike(a, b)
        worth = _near(a.settings, b.settings)
        worth *= np.where(a.algorithm[:, None] == b.algorithm[None], 1.0, to.rho)
        same = a.same[:, None] == b.same[None]
        return np.asarray(to.a_o * same + to.a_t * alike + (to.a_s + to.a_b * alike) * worth)


@dataclass(frozen=True)
class Process:
    """A Gaussian process that has seen rows. points: of them. mean, y: of their gains, and these less it.

    matrix: k of the rows, with noise.
    """

    space: Space
    points: Points
    mean: float
    y: Array
    matrix: Array

    @classmethod
    def of(cls, rows: Sequence[Row], lengths: Lengths) -> Self:
        """Of at least one row."""
        space = Space.of(rows, lengths)
        points = space.points([(row.task, row.settings) for row in rows])
        noise = np.array([lengths.noise / row.runs for row in rows])
        gains = np.array([gain(row) for row in rows])
        mean = float(gains.mean())
        return cls(space, points, mean, gains - mean, space.kernel(points, points) + np.diag(noise + 1e-8))

    def judging(self, rows: Sequence[Row], shots: int) -> Self:
        """The same, of the gains of the same rows with so many patients a class."""
        gains = np.array([gain(row, shots) for row in rows])
        mean = float(gains.mean())
        return replace(self, mean=mean, y=gains - mean)

    @property
    def evidence(self) -> float:
        """The logarithm of the likelihood of the gains."""
        root = np.linalg.cholesky(self.matrix)
        white = np.linalg.solve(root, self.y)
        return float(-white @ white / 2 - np.log(np.diag(root)).sum() - len(self.y) / 2 * log(2 * np.pi))

    @cached_property
    def weights(self) -> Array:
        """Of each row, in a mean."""
        return np.asarray(np.linalg.solve(self.matrix, self.y))

    def mean_at(self, points: Points) -> Array:
        """Mean float64 [n] of gains."""
        return self.mean + self.space.kernel(points, self.points) @ self.weights

    def expected(self, points: Points) -> tuple[Array, Array]:
        """Mean float64 [n] and covariance float64 [n, n] of gains."""
        across = self.space.kernel(points, self.points)
        solved = np.linalg.solve(self.matrix, np.column_stack([across.T, self.y]))
        covariance = self.space.kernel(points, points) - across @ solved[:, :-1]
        return self.mean + across @ solved[:, -1], covariance


def gain(row: Row, shots: int | None = None) -> float:
    """Of a row's mean score, or that with so many patients a class, or the nearest number that it has.

    0 for chance, 1 for what is always right.
    """
    floor = chance(row.task, row.metric)
    score = sum(row.scores.values()) / len(row.scores)
    if shots is not None:
        score = row.scores[min(row.scores, key=lambda each: (abs(each - shots), each))]
    return (score - floor) / (1 - floor)


def method(settings: Settings) -> str:
    """An algorithm's name, and the words among its settings: with other tasks it is another method."""
    words = {key: str(value) for key, value in settings.items() if key.startswith("algorithm.")}
    found = [words.pop("algorithm.name", "")]
    return " ".join(found + [words[key] for key in sorted(words) if isinstance(settings[key], str)]).removesuffix(
        " auto"
    )


def _near(a: Array, b: Array) -> Array:
    squares = (a * a).sum(1)[:, None] + (b * b).sum(1)[None] - 2 * a @ b.T
    return np.asarray(np.exp(-np.maximum(squares, 0) / 2))


def _coordinate(value: object) -> float:
    return log2(max(abs(value), LEAST_SETTING)) if isinstance(value, float | int) else 0.0


def _number(known: dict[str, int], name: str) -> int:
    return known.setdefault(name, len(known))


def _same(task: Described) -> str:
    """What two descriptions of one task have in common, whatever its epsilon."""
    return task.model_copy(update={"epsilon": None, "balance": ()}).model_dump_json()
