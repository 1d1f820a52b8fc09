"""What to agree on for a new task, as far as anybody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Self

import numpy as np

from wardround.algorithms import ALGORITHMS
from wardround.experience.regression import Lengths, Process, chance
from wardround.experience.row import Described, Row, Settings
from wardround.experience.rule import by_rule
from wardround.text import counted

LEARNED = "learned.json"
SHOTS = 5
NEAREST = 3
SWEEPS = 2
MOST_LEARNED_FROM = 1500  # rows: more take longer than a second
DEFAULT: Settings = {
    "algorithm.name": "reptile",
    "algorithm.local_steps": 1.0,
    "algorithm.local_learning_rate": 1.0,
    "outer.learning_rate": 10.0,
    "privacy.clip_norm": 1.0,
    "rounds.rounds": 40.0,
}
"""What `wardround coordinator init` writes where nobody asked for anything else."""
# What is chosen for a task, beside the algorithm's own settings.
CHOSEN = (
    "model.family",
    "model.features",
    "model.embedding",
    "model.width",
    "outer.learning_rate",
    "privacy.clip_norm",
    "privacy.patients_per_episode",
    "rounds.rounds",
)
_SWEPT = ("outer.learning_rate", "privacy.clip_norm", "rounds.rounds", "model.features", "algorithm.adapt_pull")
_Z95 = 1.96


@dataclass(frozen=True)
class Learned:
    """What was learned of the rows that come with wardround: by likelihood, and by leaving out data sets.

    least_alike: how like the most alike known task has to be, from 0 to 1; see benchmarks/experience_judged.py.
    """

    lengths: Lengths = field(default_factory=Lengths)
    least_alike: float = 0.0

    @classmethod
    def ours(cls) -> Self:
        """As it comes with wardround."""
        found = json.loads(files("wardround.experience").joinpath(LEARNED).read_bytes())
        return cls(Lengths(**found["lengths"]), found["least_alike"])


@dataclass(frozen=True)
class Near:
    """A known task. alike: from 0 to 1. best: its best score, and whose it is."""

    source: str
    task: Described
    alike: float
    best: float
    algorithm: str


@dataclass(frozen=True)
class Advice:
    """What to agree on. known: False far from everything known; settings are then those of `by_rule`.

    score, spread: what is expected, and half of its 95 % interval, in [0, 1]; default, ahead, ahead_spread: of the
    default, and of the difference. runs, tasks: what it was learned from; without any nothing is expected.
    """

    known: bool
    settings: Settings
    shots: int
    score: float = 0.0
    spread: float = 1.0
    default: float = 0.0
    ahead: float = 0.0
    ahead_spread: float = 1.0
    nearest: Sequence[Near] = ()
    runs: int = 0
    tasks: int = 0
    metric: str = ""

    @property
    def why_not(self) -> str:
        """Why it is not known."""
        return f"this task is far from all {self.tasks} known ones" if self.tasks else "no run of such labels is known"


def advise(task: Described, rows: Sequence[Row], learned: Learned, *, shots: int = SHOTS) -> Advice:
    """The settings of the greatest expected score, and what to expect with so many patients a class.

    They are those of a run, fitted to the task, with each of a few numbers exchanged for others that were tried. They
    are chosen by the mean over all numbers of shots, which has less noise than any of them.
    """
    usable = [row for row in rows if row.scores and row.task.labels == task.labels and row.algorithm]
    default = fitted(DEFAULT, task)
    if not usable:
        return Advice(False, by_rule(task), shots)
    usable = _nearest_rows(usable, task, learned)
    process = Process.of(usable, learned.lengths)
    tried = candidates(usable, task)
    best = _best(process, task, [default, *tried]) if tried else default
    for _ in range(SWEEPS):
        best = _best(process, task, [best, *_varied(best, tried)])
    nearest = _nearest(process, usable, task)
    known = bool(tried) and nearest[0].alike >= learned.least_alike
    settings = best if known else by_rule(task)
    mean, covariance = process.judging(usable, shots).expected(
        process.space.points([(task, settings), (task, default)])
    )
    metric = usable[0].metric
    width = 1 - chance(task, metric)
    score, base = (float(np.clip(1 - width + width * each, 0, 1)) for each in mean)
    apart = max(0.0, float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]))
    return Advice(
        known=known,
        settings=settings,
        score=score,
        spread=_Z95 * width * float(covariance[0, 0] + learned.lengths.noise) ** 0.5,
        default=base,
        ahead=width * float(mean[0] - mean[1]),
        ahead_spread=_Z95 * width * apart**0.5,
        nearest=nearest[:NEAREST],
        runs=sum(row.runs for row in usable),
        tasks=len(nearest),
        shots=shots,
        metric=metric,
    )


def candidates(rows: Iterable[Row], task: Described) -> list[Settings]:
    """What was tried on tasks of the same kind of model, or on any where there is none; each once."""
    tabular = task.kind == "table"
    found: dict[str, Settings] = {}
    for alike in (True, False):
        for row in rows:
            if row.algorithm in ALGORITHMS and ((row.task.kind == "table") == tabular) is alike:
                settings = fitted(row.settings, task)
                found[json.dumps(settings, sort_keys=True)] = settings
        if found:
            break
    return list(found.values())


def fitted(settings: Settings, task: Described) -> Settings:
    """The settings that are chosen for a task, as far as the task can have them."""
    found = {key: value for key, value in settings.items() if key in CHOSEN or key.startswith("algorithm.")}
    if task.kind == "table":
        width = found.get("model.width") if found.get("model.family") == "mlp" else None
        found = {key: value for key, value in found.items() if not key.startswith("model.")}
        found["model.family"] = "mlp" if width else "logistic"
        return found | ({"model.width": width} if width else {})
    begin: dict[str, bool | float | str] = {"model.family": "encoder-head", "model.features": 32.0}
    begin["model.embedding"] = 0.0
    return begin | {key: value for key, value in found.items() if key not in ("model.family", "model.width")}


def in_words(task: Described) -> str:
    """A task in a line."""
    low, high = task.hospitals[0], task.hospitals[-1]
    what = {
        "image": f"images of {task.image_size_px} px",
        "volume": f"volumes of {task.depth} x {task.image_size_px} px",
        "table": counted(task.columns, "column"),
        "inputs": f"{task.inputs} inputs",
    }[task.kind]
    patients = f"{low:,}" if low == high else f"{low:,} to {high:,}"
    epsilon = "not private" if task.epsilon is None else f"epsilon {task.epsilon:g}"
    each = f"{counted(len(task.hospitals), 'hospital')} of {patients} patients"
    labels = "" if task.labels == "one" else f"labels {task.labels}, "
    return f"{what}, {labels}{task.classes} classes, {each}, {epsilon}"


def _best(process: Process, task: Described, tried: Sequence[Settings]) -> Settings:
    mean = process.mean_at(process.space.points([(task, each) for each in tried]))
    return tried[int(mean.argmax())]


def _varied(settings: Settings, tried: Iterable[Settings]) -> list[Settings]:
    """The same with one of the swept numbers as others have it."""
    values: dict[str, set[Any]] = {}
    for each in tried:
        for key in _SWEPT:
            if key in each and key in settings:
                values.setdefault(key, set()).add(each[key])
    return [
        {**settings, key: value}
        for key in sorted(values)
        for value in sorted(values[key])
        if value != settings[key] and not (key == "model.features" and value < float(settings["model.embedding"]))
    ]


def _nearest_rows(rows: list[Row], task: Described, learned: Learned) -> list[Row]:
    if len(rows) <= MOST_LEARNED_FROM:
        return rows
    process = Process.of(rows[:1], learned.lengths)
    points = process.space.points([(row.task, {}) for row in rows])
    alike = process.space.tasks_alike(process.space.points([(task, {})]), points)[0]
    return [rows[at] for at in np.sort(np.argsort(-alike, kind="stable")[:MOST_LEARNED_FROM])]


def _nearest(process: Process, rows: Sequence[Row], task: Described) -> list[Near]:
    """Every known task, whatever its epsilon, the most alike first."""
    alike = process.space.tasks_alike(process.space.points([(task, {})]), process.points)[0]
    best: dict[int, int] = {}
    for at, same in enumerate(process.points.same.tolist()):
        known = best.setdefault(same, at)
        if (alike[at], _top(rows[at])) > (alike[known], _top(rows[known])):
            best[same] = at
    near = [
        Near(rows[at].source, rows[at].task, float(alike[at]), _top(rows[at]), rows[at].algorithm)
        for at in best.values()
    ]
    return sorted(near, key=lambda each: -each.alike)


def _top(row: Row) -> float:
    return max(row.scores.values())


def as_json(advice: Advice) -> Mapping[str, Any]:
    """Plain values."""
    plain = {key: value for key, value in vars(advice).items() if key != "nearest"}
    near = [{**vars(each), "task": each.task.model_dump(mode="json")} for each in advice.nearest]
    return plain | {"settings": dict(advice.settings), "nearest": near}
