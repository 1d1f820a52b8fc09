"""Blood cells, chests, body parts, skin: what do hospitals of one modality teach one of another?

    python benchmarks/cross_modality.py [--data DIR] [--encoder FILE --features N] [--study NAME ...]
                                        [--rows NAME ...|main|all] [--epsilon none 8 3 1] [--seeds 5]
                                        [--out DIR] [--json]

SIMULATED: each public data set plays a hospital. They have tasks of different classes, of which the federation's are
the union; a hospital has patients of its own classes only. Whole modalities take no part, and come as a new task:

* blood: cells of BCCD, from hospitals with X-rays, tomography and skin;
* chest: pneumonia in children (PneumoniaMNIST) and in adults (NIH), from hospitals that have no chest X-ray;
* radiology: the six parts of MedNIST, from hospitals with chests, skin and blood.

Images are brought to 28 x 28 pixels, greater ones by averaging over those that a smaller one covers, and to three
channels: a grey one is repeated. The floor sees them as they come. Of each data set at most 1,000 patients learn, so
that none is most of the federation. Settings are chosen at sources that the others have not seen.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import interpolate

from encoded import EncodedImages, encoded
from hospitals import Problem, Study, Target, examples_of, unchanging
from real_data import Site, bccd, ham10000, mednist, nih, pneumonia
from rows import rows
from study import parser, run
from wardround_client.cohort.examples import Examples

SIZE_PX = 28
SHOTS = (1, 5, 20)
MOST_PATIENTS = 1000
EMBEDDINGS = (32, 64)
CT, X_RAY = ("AbdomenCT", "ChestCT", "HeadCT"), ("CXR", "Hand")


@dataclass(frozen=True)
class Plan:
    """Which hospitals learn, where it is judged, and which of the first stand in for that in turn."""

    learn: tuple[str, ...]
    judged: tuple[str, ...]
    stand_ins: tuple[str, ...]


PLANS = {
    "blood": Plan(("ct", "x-ray", "children", "adults", "skin"), ("blood",), ("ct", "skin")),
    "chest": Plan(("ct", "blood", "skin"), ("children-test", "adults"), ("blood", "skin")),
    "radiology": Plan(("children", "adults", "blood", "skin"), ("mednist",), ("blood", "skin")),
}


class Modalities:
    """All hospitals, encoded."""

    def __init__(self, options: Namespace, data: Path, console: Console) -> None:
        self.images = EncodedImages.of(options, "cross-modality", "class", SIZE_PX)
        self.sites = {site.name: site for site in hospitals(data)}
        cache = options.cache or options.out / "features"
        self.z = {
            name: encoded(self.images.encoder, brought(site.x), cache, console) for name, site in self.sites.items()
        }

    def studies(self) -> list[Study]:
        """Each modality that is held out."""
        studies = []
        for name, plan in PLANS.items():
            problem = self._problem(plan.learn, plan.judged)
            pseudo = [
                self._problem(tuple(each for each in plan.learn if each != stand_in), (stand_in,))
                for stand_in in plan.stand_ins
            ]
            studies.append(
                Study(
                    name, SHOTS, partial(unchanging, problem), tuple(pseudo), self.images.federation, self.images.model
                )
            )
        return studies

    def _problem(self, learn: tuple[str, ...], judged: tuple[str, ...]) -> Problem:
        classes = tuple(sorted({label for name in learn for label in self.sites[name].label}))
        cohorts = {name: self._examples(name, classes, most=MOST_PATIENTS) for name in learn}
        targets = []
        for name in judged:
            site = self.sites[name]
            own = tuple(sorted(set(site.label)))
            raw = examples_of(site.x, site.label, site.patient, own, np.ones(len(site.label), dtype=bool))
            targets.append(Target(name, own, self._examples(name, own), raw))
        return Problem(f"{'+'.join(learn)} for {'+'.join(judged)}", classes, cohorts, tuple(targets))

    def _examples(self, name: str, classes: tuple[str, ...], most: int | None = None) -> Examples:
        site = self.sites[name]
        patients = np.random.default_rng(0).permutation(np.unique(site.patient))[:most]
        return examples_of(self.z[name], site.label, site.patient, classes, np.isin(site.patient, patients))


def hospitals(data: Path) -> list[Site]:
    """Every data set, as the hospitals that it plays."""
    parts = mednist(data)
    children, test = pneumonia(data)
    skin = ham10000(data)
    return [
        parts,
        part(parts, "ct", CT),
        part(parts, "x-ray", X_RAY),
        replace(children, name="children"),
        test,
        nih(data),
        replace(bccd(data), name="blood"),
        Site(
            "skin",
            torch.cat([site.x for site in skin]),
            tuple(label for site in skin for label in site.label),
            np.concatenate([site.patient for site in skin]),
        ),
    ]


def part(site: Site, name: str, classes: tuple[str, ...]) -> Site:
    """A hospital with some of a data set's classes."""
    rows = np.flatnonzero(np.isin(site.label, classes))
    return Site(name, site.x[torch.from_numpy(rows)], tuple(site.label[row] for row in rows), site.patient[rows])


def brought(x: Tensor) -> Tensor:
    """[n, 1 or 3, h, w] -> float32 [n, 3, SIZE_PX, SIZE_PX] in [0, 1]."""
    if x.shape[-1] != SIZE_PX:
        x = interpolate(x, (SIZE_PX, SIZE_PX), mode="bilinear", antialias=True)
    return x.clamp(0, 1).expand(-1, 3, -1, -1).contiguous()


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("cross_modality", "Whole modalities that a federation has not seen (simulated).", encoder=True)
    options = known.parse_args(arguments)
    run(options, lambda data, console: Modalities(options, data, console).studies(), rows(EMBEDDINGS))


if __name__ == "__main__":
    main()
