"""Tables of real hospitals: lung tumours of three laboratories, brains of 25 sites, breast cancer of four regions.

    python benchmarks/fed_tables.py [--data DIR] [--study NAME ...] [--rows NAME ...|main|all]
                                    [--epsilon none 8 3 1] [--seeds 5] [--out DIR] [--json]

A hospital in turn takes no part, and adapts with 0, 1, 5 or 20 patients of each class. Settings are chosen at one or
two source hospitals while the others learn. What comes before the logistic regression is public:

* lung: stage above I, from 3,171 genes (Parmigiani et al., 2004). Three platforms measure in three units, so a
  patient's genes become their ranks within that patient, as normal scores, and 48 random projections of them.
* abide: autism, from 207 measures of the brain (ABIDE I and II) in units of the nine sites with fewer than 20 people,
  which take no other part: these stand for what is published.
* breast: death within five years, from 39 columns of TCGA-BRCA (Liu et al., 2018). This is no survival analysis:
  nobody has a loss for censored times yet, so who was censored earlier is left out, which is most, and flatters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import real_data
from hospitals import Problem, Study, Target, agreed, examples_of, unchanging
from real_data import Site
from rows import Trial, rows
from study import parser, run
from wardround.config import Federation, ModelChoice
from wardround.models import build_model
from wardround.models.portable import uniform
from wardround.task import Task
from wardround_client.cohort.examples import Examples

SHOTS = (0, 1, 5, 20)
EMBEDDINGS, RATE = (8, 16), 5.0
NOISES = 2
PROJECTIONS = 48
LEAST_PEOPLE = 20  # of a site that takes part


@dataclass(frozen=True)
class Tables:
    """One study. sites: its hospitals, columns about mean 0 and spread 1. new: those that are new in turn. pseudo: how
    many sources stand in for it.
    """

    classes: tuple[str, str]
    sites: Mapping[str, Site]
    new: tuple[str, ...]
    pseudo: int = 2


def lung(data: Path) -> Tables:
    """Ranks within a patient, projected."""
    sites = real_data.lung(data)
    genes = sites[0].x.shape[1]
    weights = torch.from_numpy(
        stats.norm.ppf(uniform("wardround/benchmarks/lung", (genes, PROJECTIONS)).numpy())
    ).float()

    def projected(site: Site) -> Site:
        scores = stats.norm.ppf((stats.rankdata(site.x.numpy(), axis=1) - 0.5) / genes)
        return Site(site.name, torch.from_numpy(scores).float() @ weights / genes**0.5, site.label, site.patient)

    return Tables(real_data.LUNG, {each.name: projected(each) for each in sites}, tuple(each.name for each in sites))


def abide(data: Path) -> Tables:
    """In units of the small sites."""
    sites = real_data.abide(data)
    small = torch.cat([site.x for site in sites if len(site.label) < LEAST_PEOPLE])
    centre, spread = small.mean(0), small.std(0).clamp_min(1e-6)
    large = sorted((site for site in sites if len(site.label) >= LEAST_PEOPLE), key=lambda site: -len(site.label))
    inside = {
        site.name: Site(site.name, ((site.x - centre) / spread).clamp(-6, 6), site.label, site.patient)
        for site in large
    }
    return Tables(real_data.AUTISM, inside, tuple(inside)[:1])


def breast(data: Path) -> Tables:
    """Age in units of 13 years about 58, and columns of 0 and 1."""
    sites = real_data.breast(data)
    return Tables(real_data.FIVE_YEARS, {each.name: each for each in sites}, tuple(each.name for each in sites))


TABLES: dict[str, Callable[[Path], Tables]] = {"lung": lung, "abide": abide, "breast": breast}


def studies(data: Path) -> list[Study]:
    """Of all tables, every new hospital in turn."""
    return [study for name, load in TABLES.items() for study in studies_of(name, load(data))]


def studies_of(name: str, tables: Tables) -> list[Study]:
    """Every new hospital of one in turn."""
    found = []
    columns = len(next(iter(tables.sites.values())).x[0])
    for new in tables.new:
        sources = [each for each in tables.sites if each != new]
        pseudo = tuple(
            _problem(tables, [each for each in sources if each != held], held) for held in sources[: tables.pseudo]
        )
        problem = partial(unchanging, _problem(tables, sources, new))
        agreement = partial(_federation, columns)
        found.append(
            Study(f"{name}, new hospital {new}", SHOTS, problem, pseudo, agreement, build_model, noises=NOISES)
        )
    return found


def _problem(tables: Tables, sources: list[str], new: str) -> Problem:
    here = _examples(tables, new)
    cohorts = {name: _examples(tables, name) for name in sources}
    name = f"{'+'.join(sources)} for {new}"
    return Problem(name, tables.classes, cohorts, (Target(new, tables.classes, here, here),))


def _examples(tables: Tables, name: str) -> Examples:
    site = tables.sites[name]
    return examples_of(site.x, site.label, site.patient, tables.classes, np.ones(len(site.label), bool))


def _federation(columns: int, classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
    """What the hospitals would agree on."""
    task = Task(label_column="y", classes=classes, kind="table", features=tuple(f"c{at}" for at in range(columns)))
    width = trial.embedding
    model = ModelChoice(family="mlp", width=width) if width else ModelChoice(family="logistic")
    federation = Federation(name="fed-tables", task=task, model=model, **agreed(algorithm, trial, epsilon))
    return federation.model_copy(update={"rounds": federation.rounds.model_copy(update={"quorum": 1})})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("fed_tables", "Tables of real hospitals: a new hospital.", encoder=False)
    run(known.parse_args(arguments), lambda data, console: studies(data), rows(EMBEDDINGS, rate=RATE))


if __name__ == "__main__":
    main()
