"""Whom to label next: what is a label worth that `hospital suggest` asked for, beside one of a patient drawn at random?

    python benchmarks/labelling.py [--data DIR] [--encoder FILE --features N] [--study NAME ...]
                                   [--epsilon none 8] [--seeds 5] [--out DIR] [--json]

A hospital that took no part has patients whom nobody labelled. It labels one of each class, then as many more as there
are classes, again and again, each time adapting the federation's model to all labels so far, until there are 20 a class
on average. Half of the patients, class by class, are never labelled: they judge. Who is labelled is chosen

* at random;
* by doubt: about whom the adapted model is least sure;
* by distance: the farthest from all who are labelled (greedy k-centre);
* by both, as `hospital suggest` does.

Hospitals: two of Fed-HAM, as in fed_ham.py; the four of Fed-Heart, with logistic regression; and PneumoniaMNIST
(children), after a federation of NIH's adults, who are dealt to three hospitals for that (SIMULATED), the published
test part judging. The way was chosen at vidir_molemax, Cleveland and the veterans' hospital. FedAvg, 60 rounds, 20 with
privacy, at its middle learning rate and a clip norm of 1.2, adapted with a pull of 1: nothing is tuned.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import fed_heart
from cross_modality import SIZE_PX, brought
from encoded import EncodedImages, encoded
from fed_ham import Ham
from hospitals import Measurement, Problem, Study, Target, examples_of, unchanging
from real_data import CHEST, folder, nih, pneumonia
from rows import NONE, Row, Trial
from study import parser
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.files import write_atomically
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner
from wardround_client.personal.metrics import report
from wardround_client.personal.suggestions import farthest, over_patients, uncertainty

WAYS = ("random", "doubt", "distance", "both")
A_CLASS = (1, 2, 3, 5, 10, 20)
"""Labels for each class, on average, at which the model is judged."""
JUDGED = 0.5
CHILDREN = "PneumoniaMNIST"
SKIN_RATE, CLIP_NORM, PULL = 20.0, 1.2, 1.0


@dataclass(frozen=True)
class Ward:
    """A hospital with a model that others learned. judging: bool [patients]; None: half of them, by the seed."""

    learner: Learner
    examples: Examples
    judging: Tensor | None = None

    def judges(self, generator: torch.Generator) -> Tensor:
        """Who is never labelled: bool [patients]."""
        if self.judging is not None:
            return self.judging
        chosen = torch.zeros(self.examples.patients, dtype=torch.bool)
        for members in self.by_class(torch.randperm(self.examples.patients, generator=generator)):
            chosen[members[: int(JUDGED * len(members))]] = True
        return chosen

    def by_class(self, patients: Tensor) -> Iterator[Tensor]:
        """The same patients, in their order, class by class."""
        label = torch.zeros(self.examples.patients, dtype=torch.int64)
        label[self.examples.patient] = self.examples.y
        for number in range(self.examples.classes):
            yield patients[label[patients] == number]


def grown(ward: Ward, way: str, seed: int) -> dict[str, float]:
    """Balanced accuracy by labels a class."""
    generator = torch.Generator().manual_seed(seed)
    examples, classes = ward.examples, ward.examples.classes
    judges = ward.judges(generator)
    free = torch.randperm(examples.patients, generator=generator)
    free = free[~judges[free]]
    labelled = torch.cat([members[:1] for members in ward.by_class(free)]).tolist()
    points = over_patients(ward.learner.embed(examples.z), examples)
    judged, found = _of(examples, judges), {}
    while True:
        support = torch.zeros(examples.patients, dtype=torch.bool)
        support[labelled] = True
        fitted = ward.learner.adapt(_of(examples, support))
        if len(labelled) % classes == 0 and len(labelled) // classes in A_CLASS:
            metrics = report(
                ward.learner.probabilities(fitted, judged.z), judged.y, judged.patient, resamples=1
            ).metrics
            accuracy = metrics["balanced_accuracy"]
            assert accuracy is not None
            found[str(len(labelled) // classes)] = accuracy.value
        left = free[~support[free]]
        if len(labelled) >= A_CLASS[-1] * classes or len(left) < classes:
            return found
        predicted = over_patients(ward.learner.probabilities(fitted, examples.z), examples)
        labelled += _chosen(way, points, labelled, left, uncertainty(predicted, examples.labels), classes)


def _chosen(way: str, points: Tensor, labelled: list[int], left: Tensor, doubt: Tensor, count: int) -> list[int]:
    """Of those left, in an order that is random."""
    if way == "random":
        return left[:count].tolist()
    if way == "doubt":
        return left[doubt[left].argsort(descending=True, stable=True)[:count]].tolist()
    unsure = doubt[left] if way == "both" else torch.ones(len(left))
    return [int(left[number]) for number, _ in islice(farthest(points[left], points[labelled], unsure), count)]


def _of(examples: Examples, patients: Tensor) -> Examples:
    return examples.subset(patients[examples.patient])


def wards(options: Namespace, data: Path, console: Console) -> Iterator[tuple[str, Callable[[str], Ward]]]:
    """Every hospital by name, and what makes it, by the column's name."""
    skin = Ham(options, data, console).studies()[1:]
    for study, rate in (*((each, SKIN_RATE) for each in skin), *((each, fed_heart.RATE) for each in hearts(data))):
        (target,) = study.problem(0).targets
        yield target.name, partial(_ward, study, target, rate, None)
    study, judging = _children(options, data, console)
    yield CHILDREN, partial(_ward, study, study.problem(0).targets[0], SKIN_RATE, judging)


def hearts(data: Path) -> list[Study]:
    """With logistic regression."""
    return [study for study in fed_heart.studies(data) if "logistic" in study.name]


def _ward(study: Study, target: Target, rate: float, judging: Tensor | None, column: str) -> Ward:
    trial = Trial(60 if column == NONE else 20, rate, CLIP_NORM)
    row = Row("fedavg", "fedavg", "unadapted", (), ())
    learner = Measurement(study, row, column, Store(Path())).arrived(study.problem(0), trial, target)
    return Ward(learner.adapting_by(PULL), target.examples, judging)


def _children(options: Namespace, data: Path, console: Console) -> tuple[Study, Tensor]:
    """NIH's adults, dealt to three hospitals, learn; the children's published test part judges."""
    built_in = Namespace(**vars(options) | {"encoder": None, "features": 64})
    images, cache = EncodedImages.of(built_in, "chests", "finding", SIZE_PX), options.cache or options.out / "features"
    adults, (pool, test) = nih(data), pneumonia(data)
    of_adults, *of_children = (
        encoded(images.encoder, brought(site.x), cache, console) for site in (adults, pool, test)
    )
    label = [*pool.label, *test.label]
    everybody = np.ones(len(label), bool)
    children = examples_of(torch.cat(of_children), label, np.arange(len(label)), CHEST, everybody)
    cohorts = {
        f"adults {part}": examples_of(of_adults, adults.label, adults.patient, CHEST, adults.patient % 3 == part)
        for part in range(3)
    }
    problem = Problem("adults for children", CHEST, cohorts, (Target(CHILDREN, CHEST, children, children),))
    study = Study(CHILDREN, (), partial(unchanging, problem), (), images.federation, images.model)
    return study, torch.arange(len(label)) >= len(pool.label)


def publish(store: Store) -> None:
    """Write the table. Raises: StorageError."""
    cells: list[dict[str, Any]] = [dict(cell) for cell in store.rows().values()]
    parts = [f"{hardware()}. Balanced accuracy in %, with the half width of the 95 % interval over seeds.\n"]
    for name, column in dict.fromkeys((str(cell["hospital"]), str(cell["column"])) for cell in cells):
        found = {
            way: [
                cell["found"]
                for cell in cells
                if (cell["hospital"], cell["column"], cell["way"]) == (name, column, way)
            ]
            for way in WAYS
        }
        parts.append(f"\n## {name}, {'not private' if column == NONE else f'epsilon {column}'}\n\n")
        parts.append(
            markdown(_lines(found), {"way": "labels a class"} | {str(k): str(k) for k in A_CLASS} | {"ahead": "ahead"})
        )
    write_atomically(store.folder / TABLE, "".join(parts).encode())


def _lines(found: dict[str, list[dict[str, float]]]) -> Iterator[dict[str, str]]:
    """A row a way; ahead: of random, seed by seed, the mean over all numbers of labels but the first."""
    for way, seeds in found.items():
        if len(seeds) > 1:
            line = {"way": way} | {k: str(estimate([each[k] for each in seeds])) for k in seeds[0]}
            pairs = zip(seeds, found["random"], strict=True)
            gains = [fmean(one[k] - other[k] for k in one if k != "1") for one, other in pairs]
            yield line | ({"ahead": str(estimate(gains))} if way != "random" else {})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("labelling", "Whom to label next.", encoder=True)
    known.set_defaults(size=28, table=False, epsilon=[NONE, "8"])
    options = known.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        for name, ward in wards(options, folder(options.data), console):
            if options.study and not any(part in name for part in options.study):
                continue
            for column in options.epsilon:
                _measured(store, name, column, ward, options.seeds)
                console.print(f"{name}, {column}: done", highlight=False)
            publish(store)
    print((options.out / TABLE).read_text(), end="")


def _measured(store: Store, name: str, column: str, ward: Callable[[str], Ward], seeds: int) -> None:
    """What is missing of a hospital in a column. Each seed learns anew, and all ways from the same."""
    for seed in range(seeds):
        missing = [way for way in WAYS if f"{name}/{column}/{way}/{seed}" not in store.rows()]
        if not missing:
            continue
        here = ward(column)
        for way in WAYS:  # all of them: the noise of a run that was stopped is gone
            found = grown(here, way, seed)
            cell = {"hospital": name, "column": column, "way": way, "seed": seed, "found": found}
            store.put(f"{name}/{column}/{way}/{seed}", {**cell, "date": datetime.now(UTC).date().isoformat()})


if __name__ == "__main__":
    main()
