"""Makes the experience that `wardround recommend` learns from: many short runs over tasks of public data.

    python benchmarks/experience.py [--data DIR] [--cache DIR] [--out DIR] [--tasks NAME ...] [--draws 2] [--publish]

A task is a data set with some of its hospitals, classes or patients; one hospital takes no part, and is where the run
is judged: balanced accuracy with 0, 1 and 5 patients a class, the mean over three supports. Every task is run at
epsilon 8, 3 and 1 with wardround's own default, with one setting of six methods (at epsilon 8 of all that take less
than a second; with few patients of most others too), and with settings that are drawn about those: learning rate, clip
norm, rounds, features, and how far it adapts. Nothing is tuned, so nothing had to be paid for that.

A run is a row of `experience.jsonl` in --out as soon as it is done (`wardround.experience`); the same command goes on
where it was stopped. --publish writes the means over draws to the file that comes with wardround.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

import experience_tasks
from experience_tasks import Known
from federated import learned
from hospitals import Target, judged
from real_data import folder
from rows import STAND_INS, Trial, rows
from rows import Row as Method
from tables import ending, keep_freed_memory
from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.experience import file as experience_file
from wardround.experience.advice import DEFAULT
from wardround.experience.file import FILE, append
from wardround.experience.row import Described, Row, Settings, nested, settings_of
from wardround.files import write_atomically
from wardround_client.cohort.examples import Examples

CONVERTED = "converted.jsonl"
"""Rows of experience_converted.py, which are published too."""
RESULTS = Path(__file__).parent / "results" / "experience"
EPSILONS = (8.0, 1.0, 3.0)
ALL_METHODS_AT = 8.0
MOST_PATIENTS_OF_DEAR_ONES = 400
"""Of a task that is run with ways that take ten times as long too."""
CHEAP_WITH_STAND_INS = ("maml", "learned-optimizer")
DEAREST = tuple(f"{name}, {STAND_INS}" for name in ("anil", "matching", "relation", "ridge", "siamese", "svm"))
"""A hundred times as long: not run."""
SHOTS = (0, 1, 5)
DRAWN = {8.0: 6, 3.0: 4, 1.0: 5}
"""Settings that are drawn for each task, by epsilon."""
FEW = ("discriminant", "FedAvg + fine-tune", "reptile", "centroids", "generative", "maml, stand-ins")
"""Ways that are run with their middle setting at every epsilon."""
FACTORS = (0.1, 0.3, 1.0, 3.0)
CLIP_NORMS = (0.3, 0.6, 1.2, 2.4)
ASKED = (5, 10, 20, 40)
PULLS = (0.1, 1.0, 10.0)
# What a benchmark has and a consortium need not: nobody lies here.
APART = {"outer.rule": "mean"}
EMBEDDINGS = {"image": (16, 32), "table": (4, 8)}
RATES = {"image": 20.0, "table": 5.0}


def methods(known: Known) -> list[Method]:
    """Every way to learn together of the tables of hospitals, that can be private."""
    kind = "table" if known.task.kind == "table" else "image"
    found = rows(EMBEDDINGS[kind], rate=RATES[kind])
    return [row for row in found if row.kind == "federated" and row.private]


def plan(known: Known, epsilon: float) -> list[dict[str, Any]]:
    """The settings that a task is run with, the same whenever it is asked."""
    chosen = [dict(DEFAULT)]
    cheap = [row for row in methods(known) if _is_cheap(row)]
    small = sum(each.patients for each in known.cohorts(0).values()) <= MOST_PATIENTS_OF_DEAR_ONES
    core = [row for row in methods(known) if _is_cheap(row) or (small and row.name not in DEAREST)]
    if epsilon != ALL_METHODS_AT:
        core = [row for row in core if row.name in FEW]
    chosen += [_settings(row, row.private[len(row.private) // 2], known) for row in core]
    drawn = random.Random(hashlib.sha256(f"{known.name} {epsilon}".encode()).digest())
    for _ in range(DRAWN[epsilon]):
        row = drawn.choice(cheap)
        base = row.private[len(row.private) // 2]
        settings = _settings(row, base, known)
        settings["outer.learning_rate"] = base.learning_rate * drawn.choice(FACTORS)
        settings["privacy.clip_norm"] = drawn.choice(CLIP_NORMS)
        settings["rounds.rounds"] = max(2, drawn.choice(ASKED) * base.rounds // 20)
        pull = drawn.choice(PULLS)
        if "adapt_pull" in ALGORITHMS[row.algorithm].model_fields:
            settings["algorithm.adapt_pull"] = pull
        if known.features:
            settings["model.features"] = drawn.choice(known.features)
        chosen.append(settings)
    return [_fitting(each, known) for each in chosen]


def _is_cheap(row: Method) -> bool:
    """Whether a run takes less than a second: a task is a hospital, or a gradient goes through a support once."""
    stands_in = row.private[0].settings.get("tasks") == STAND_INS
    return row.algorithm in CHEAP_WITH_STAND_INS if stands_in else _has_hospitals(row)


def _has_hospitals(row: Method) -> bool:
    return row.private[0].patients_per_episode == Trial().patients_per_episode


def _settings(row: Method, trial: Trial, known: Known) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "algorithm.name": row.algorithm,
        **{f"algorithm.{key}": value for key, value in trial.settings.items()},
        "outer.learning_rate": trial.learning_rate,
        "privacy.clip_norm": trial.clip_norm,
        "privacy.patients_per_episode": trial.patients_per_episode,
        "rounds.rounds": trial.rounds,
    }
    if known.features:
        settings |= {"model.features": 32, "model.embedding": min(32, trial.embedding)}
    elif trial.embedding:
        settings |= {"model.family": "mlp", "model.width": trial.embedding}
    return settings


def _fitting(settings: Mapping[str, Any], known: Known) -> dict[str, Any]:
    """As far as the task can be run so: tables have columns and no features, encoders give only so many."""
    fitting = {key: value for key, value in settings.items() if known.features or key != "model.features"}
    if known.features:
        fitting["model.features"] = min(fitting.get("model.features", 32), max(known.features))
        if fitting.get("model.embedding"):
            fitting["model.embedding"] = min(fitting["model.embedding"], fitting["model.features"])
    elif "model.family" not in fitting:
        fitting["model.family"] = "logistic"
    return fitting


def agreement(known: Known, settings: Settings, epsilon: float) -> Federation:
    """What the hospitals of a task would agree on."""
    tables = nested({**settings, **APART})
    tables["privacy"]["epsilon"] = epsilon
    tables["rounds"]["quorum"] = 1
    model = tables.setdefault("model", {})
    model |= known.choice
    return Federation.model_validate({"name": "experience", "task": known.task, **tables})


def described(known: Known, epsilon: float | None) -> Described:
    """As a run's row says it."""
    encoder = known.choice.get("encoder_sha256", "builtin")
    return Described.of(known.task, declared(known.cohorts(0)), epsilon, encoder=encoder, balance=known.balance)


def declared(cohorts: Mapping[str, Examples]) -> list[int]:
    """What `ArrayHospital` declares for each."""
    return [max(1, each.patients if each.patients < 20 else each.patients // 10 * 10) for each in cohorts.values()]


def settings_for(federation: Federation) -> dict[str, Any]:
    """All that was agreed but what a benchmark has and a consortium need not."""
    return {key: value for key, value in settings_of(federation).items() if key not in APART}


def measured(known: Known, settings: Settings, epsilon: float, draw: int) -> Row:
    """Run it, and judge it at the hospital that took no part."""
    federation = agreement(known, settings, epsilon)
    features = federation.model.features if known.features else 0
    model = federation.algorithm.extended(known.model(federation))
    learner = learned(federation, model, known.cohorts(features), private=True)

    def predictor(support: Any) -> Any:
        return partial(learner.probabilities, learner.adapt(support) if len(support.y) else learner.unadapted())

    new = known.new(features)
    target = Target("new", known.task.classes, new, new)
    scores = {shots: judged(predictor, target, shots, draw)["balanced_accuracy"] for shots in SHOTS}
    return Row(task=described(known, epsilon), settings=settings_for(federation), scores=scores, source=known.source)


@dataclass
class Done:
    """The runs that are known, by task, epsilon and settings. first: number of the first draw."""

    path: Path
    first: int = 0
    found: dict[str, list[Row]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.path.exists():
            for row in experience_file.read(self.path).rows:
                self.found.setdefault(_key(row), []).append(row)

    def run(self, known: Known, settings: Settings, epsilon: float, draws: int) -> Iterator[Row]:
        """As many draws as wanted, those that are known first."""
        kept = settings_for(agreement(known, settings, epsilon))
        wanted = Row(task=described(known, epsilon), settings=kept, source=known.source)
        alike = self.found.setdefault(_key(wanted), [])
        rows = [row for row in alike if _agree(row.settings, kept)]
        for draw in range(len(rows), draws):
            row = measured(known, settings, epsilon, self.first + draw)
            append(self.path, row)
            alike.append(row)
            rows.append(row)
        yield from rows[:draws]


def _key(row: Row) -> str:
    return f"{row.source} {row.task.model_dump_json()} {row.algorithm}"


def _agree(one: Settings, other: Settings) -> bool:
    """Whether they are the same but for settings that a version of wardround did not have."""
    return all(one[key] == other[key] for key in one.keys() & other.keys())


def means(rows: Sequence[Row]) -> list[Row]:
    """A row for each task and its settings: the mean of its runs, of what differs between any two settings."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(f"{_key(row)} {sorted(row.settings.items())}", []).append(row)
    values: dict[str, set[Any]] = {}
    for row in rows:
        for key, value in row.settings.items():
            values.setdefault(key, set()).add(value)
    telling = {key for key, found in values.items() if len(found) > 1}
    return [
        first.model_copy(
            update={
                "settings": {key: value for key, value in first.settings.items() if key in telling},
                "scores": {
                    shots: round(fmean(row.scores[shots] for row in group), 4) for shots in sorted(first.scores)
                },
                "runs": sum(row.runs for row in group),
            }
        )
        for group in groups.values()
        for first in group[:1]
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run what is missing."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, begun_s = Console(stderr=True), time.process_time()
    done = Done(options.out / FILE)
    with ending(console, stopped="Stopped. The same command goes on."):
        tasks = experience_tasks.every(folder(options.data), options.cache or options.out / "features", console)
        chosen = [each for each in tasks if not options.tasks or any(part in each.name for part in options.tasks)]
        steps = [(known, epsilon, each) for epsilon in EPSILONS for known in chosen for each in plan(known, epsilon)]
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            bar, last = progress.add_task("", total=len(steps)), ""
            for known, epsilon, settings in steps:
                progress.update(bar, description=f"{known.name}, epsilon {epsilon:g}")
                list(done.run(known, settings, epsilon, options.draws))
                progress.advance(bar)
                if not console.is_terminal and last != (last := f"{known.name}, epsilon {epsilon:g}"):
                    console.print(f"{last}: {time.process_time() - begun_s:.0f} s", highlight=False)
        if options.publish:
            beside = options.out / CONVERTED
            more = experience_file.read(beside).rows if beside.exists() else []
            ours = means([*(row for rows in done.found.values() for row in rows), *more])
            path = Path(experience_file.__file__).with_name(experience_file.OURS)
            text = "".join(row.line() + "\n" for row in ours)
            write_atomically(path, gzip.compress(text.encode(), mtime=0), mode=0o644)
            console.print(f"{len(ours)} rows in {path}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    options.add_argument("--data", type=Path, help="folder of the data; default: the variable WARDROUND_DATA")
    options.add_argument("--cache", type=Path, help="of encoded images; default: features/ in --out")
    options.add_argument("--out", type=Path, default=RESULTS)
    options.add_argument("--tasks", nargs="+", metavar="NAME", help="parts of the names of those to run; default: all")
    options.add_argument("--draws", type=int, default=2, help="runs of the same settings (2)")
    options.add_argument("--publish", action="store_true", help="write the rows that come with wardround")
    return options


if __name__ == "__main__":
    main()
