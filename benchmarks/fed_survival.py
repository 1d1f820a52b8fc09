"""Survival at real hospitals: breast cancer, lung tumours and glioblastomas, a new hospital.

    python benchmarks/fed_survival.py [--data DIR] [--study NAME ...] [--rows NAME ...|main|all]
                                      [--epsilon none 8 3 1] [--seeds 5] [--out DIR] [--json]

Discrete-time hazards, judged by Uno's concordance up to the last end and by the Brier score. A hospital in turn takes
no part, and adapts with 0, 5 or 20 patients, whoever they are. Settings are chosen at a source hospital while the
others learn; where there is one source alone, at one half of it. What comes before the logistic regression is public:

* breast: five regions of TCGA-BRCA (Liu et al., 2018), 39 columns; METABRIC (Curtis et al., 2012), five cohorts, 15
  columns of which one may miss, with a flag beside.
* lung: 3,171 genes of three laboratories (Parmigiani et al., 2004), of which two are new in turn; glioblastoma: 1,970
  genes and miRNA of two hospitals (TCGA). Ranks within a patient, and 48 random projections of them.

Beside our rows stand trees and regression that learned from all patients at one place (`one_place.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean

import numpy as np
import torch

import one_place
import survival_tables
from hospitals import DRAWS, Predictor, Problem, Study, Target, agreed, unchanging
from one_place import OUTSIDE
from rows import Trial, halved, rows
from study import parser, run
from survival_tables import Followed
from wardround.config import Federation, ModelChoice
from wardround.labels.survival import interval_times
from wardround.labels.survival import kind as survival
from wardround.models import build_model
from wardround.models.columns import Columns, Projected
from wardround.task import Task
from wardround_client.cohort.examples import Examples
from wardround_client.personal.kinds.survival import METRICS, Outcomes
from wardround_client.personal.learner import k_shot

PATIENTS = (0, 5, 20)
EMBEDDINGS, RATE = (8, 16), 5.0
NOISES = 2
PROJECTIONS = 48
TUMOUR_SIZE = 1  # of METABRIC's columns the one that may miss


@dataclass(frozen=True)
class Table:
    """One study. load: its hospitals. front: of so many columns, what comes before the model. ends: of the intervals,
    in the unit of its times. new: the hospitals that are new in turn.
    """

    load: Callable[[Path], list[Followed]]
    front: Callable[[int], Columns | Projected]
    ends: tuple[float, ...]
    new: tuple[str, ...]

    def sites(self, data: Path) -> dict[str, Examples]:
        """By hospital."""
        return {each.name: self._examples(each) for each in self.load(data)}

    def _examples(self, site: Followed) -> Examples:
        x = self.front(site.x.shape[1])(site.x)
        y = np.stack([interval_times(site.time, self.ends), site.event], 1).astype(np.float32)
        return Examples(x, torch.from_numpy(y), torch.arange(len(y)), x, len(self.ends), labels=survival)


def _projected(columns: int) -> Projected:
    return Projected(Columns(columns, ranks=True), PROJECTIONS)


def _flagged(columns: int) -> Columns:
    return Columns(columns, gaps=(TUMOUR_SIZE,))


TABLES = {
    "breast": Table(survival_tables.tcga_breast, Columns, (365, 730, 1826), ("Northeast", "West", "Europe")),
    "METABRIC": Table(survival_tables.metabric, _flagged, (24, 60, 120), ("1", "3", "5")),
    "lung": Table(survival_tables.lung, _projected, (12, 24, 60), ("Harvard", "Michigan")),
    "glioblastoma": Table(
        survival_tables.glioblastoma, _projected, (180, 365, 730), ("TSS02_MD_Anderson", "TSS06_Henry_Ford")
    ),
}


def judged(predictor: Predictor, target: Target, patients: int, seed: int) -> dict[str, float]:
    """Concordance and Brier score of patients who are not in the support, the mean over DRAWS supports."""
    generator = torch.Generator().manual_seed(seed * 1009 + patients)
    found = []
    for _ in range(DRAWS if patients else 1):
        split = k_shot(target.examples, patients, generator)
        outcomes = Outcomes.of(predictor(split.support)(split.query.z), split.query)
        found.append(outcomes.metrics(torch.ones(split.query.patients, 1, dtype=torch.float64))[0].tolist())
    return {name: fmean(values) for name, values in zip(METRICS[:2], zip(*found, strict=True), strict=False)}


def studies(data: Path) -> list[Study]:
    """Of all tables, every new hospital in turn."""
    return [study for name, table in TABLES.items() for study in _studies_of(f"{name} survival", table, data)]


def _studies_of(name: str, table: Table, data: Path) -> list[Study]:
    sites = table.sites(data)
    columns, classes = next(iter(sites.values())).z.shape[1], tuple(f"{end:g}" for end in table.ends)
    return [
        Study(
            f"{name}, new hospital {new}",
            PATIENTS,
            partial(unchanging, _problem(sites, new, classes, name)),
            (_pseudo(sites, new, classes, name),),
            partial(_federation, columns, table.ends),
            build_model,
            judge=judged,
            metric=METRICS[0],
            noises=NOISES,
            outside=one_place.LEARNERS,
        )
        for new in table.new
    ]


def _pseudo(sites: Mapping[str, Examples], new: str, classes: tuple[str, ...], name: str) -> Problem:
    """The first source stands in for the new hospital; where there is one source, its second half for the first."""
    sources = {each: examples for each, examples in sites.items() if each != new}
    if len(sources) == 1:
        ((only, examples),) = sources.items()
        sources = {f"{only}, {half}": examples.subset(examples.patient % 2 == half) for half in range(2)}
    return _problem(sources, next(iter(sources)), classes, name)


def _problem(sites: Mapping[str, Examples], new: str, classes: tuple[str, ...], name: str) -> Problem:
    cohorts = {each: examples for each, examples in sites.items() if each != new}
    target = Target(new, classes, sites[new], sites[new])
    return Problem(f"{name}: {'+'.join(cohorts)} for {new}", classes, cohorts, (target,))


def _federation(
    columns: int, ends: Sequence[float], classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float
) -> Federation:
    """What the hospitals would agree on."""
    task = Task(
        label_column="days",
        event_column="dead",
        labels="survival",
        classes=classes,
        ends=tuple(ends),
        kind="table",
        features=tuple(f"c{at}" for at in range(columns)),
    )
    width = trial.embedding
    model = ModelChoice(family="mlp", width=width) if width else ModelChoice(family="logistic")
    federation = Federation(name="fed-survival", task=task, model=model, **agreed(algorithm, trial, epsilon))
    return federation.model_copy(update={"rounds": federation.rounds.model_copy(update={"quorum": 1})})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("fed_survival", "Survival at real hospitals: a new hospital.", encoder=False)
    every = (*halved(rows(EMBEDDINGS, rate=RATE)), *OUTSIDE)
    run(known.parse_args(arguments), lambda data, console: studies(data), every)


if __name__ == "__main__":
    main()
