"""Skin lesions at four real hospitals: what is a federation worth to a new hospital, or for a new disease?

    python benchmarks/fed_ham.py [--size 128 [--table]] [--data DIR] [--encoder FILE] [--study NAME ...]
                                 [--rows NAME ...|main|all] [--epsilon none 8 3 1] [--seeds 5] [--out DIR] [--json]

HAM10000 (Tschandl, Rosendahl and Kittler, 2018) by its four sources, each a hospital; a patient is a lesion.

New hospital: all hospitals but one learn the seven classes; that one adapts with 0, 1, 5 or 20 lesions of each class of
which it has ten, and is judged on its other lesions of these classes.

New disease: all four learn nevus, melanoma, keratosis and basal cell carcinoma, from 70 % of these lesions; then one of
them has 1, 5 or 20 lesions of each disease that nobody had seen: Bowen's disease, dermatofibroma, vascular lesions.
They are told apart (3-way), or from the old ones too, by lesions that nobody learned from (7-way).

Settings are chosen at pseudo-targets: a source hospital that the others have not seen; two of the four old classes that
nobody has seen, at another hospital than the target, told apart (2-way) and from the other two as well (4-way).

With --table a lesion is its image and what a referral says: age, sex and where it is, with a flag for each that is
missing. How the diagnosis was made is left out, because it hints at it.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from encoded import EncodedImages, cached
from hospitals import Problem, Study, Target, examples_of, unchanging
from real_data import SKIN_CENTRE, SKIN_SPREAD, lesions
from rows import halved, rows
from study import parser, run
from wardround.models.columns import BOUND, Columns
from wardround_client.cohort.examples import Examples

SIZES_PX = (28, 128)
CLASSES = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
OLD, NEW = ("bcc", "bkl", "mel", "nv"), ("akiec", "df", "vasc")
# A class takes part in a task where this many lesions show it: some have to be judged.
LEAST_LESIONS = {"new hospital": 10, "new disease": 6}
LEARNED_SHARE = 0.7  # of the lesions of old classes
# Each target, and who stands in for it while settings are chosen.
NEW_HOSPITALS = {"rosendahl": ("vidir_modern", "vidir_molemax"), "vidir_modern": ("rosendahl", "vidir_molemax")}
NEW_DISEASES_AT, PSEUDO_DISEASES_AT = "vidir_modern", "rosendahl"
PSEUDO_DISEASES = (("bcc", "bkl"), ("bkl", "mel"), ("bcc", "mel"))


class Ham:
    """All lesions, encoded.

    z: float32 [n, features]. raw: float32 [n, pixels]. label: str, n of them. site: [n] of str. lesion: int64 [n].
    table: as of `Lesions`.
    """

    def __init__(self, options: Namespace, data: Path, console: Console) -> None:
        found = lesions(data, options.size)
        self.images = EncodedImages.of(options, "fed-ham", "dx", options.size)
        self.raw = _small(found.images)
        cache = options.cache or options.out / "features"
        z = cached(self.images.encoder, found.images, cache, console)
        if options.table:
            assert found.table is not None, "the options were looked at"
            columns = Columns(len(SKIN_CENTRE), SKIN_CENTRE, SKIN_SPREAD, bound=BOUND)
            table = torch.from_numpy(found.table)
            there = [torch.ones(len(z), 1), (~table.isnan().all(1, keepdim=True)).float()]
            z = torch.cat([z, columns(table), *there], 1)  # as `Together` lays them out
            self.images = self.images.beside(columns)
        self.z, self.label, self.site, self.lesion = z, found.label.tolist(), found.site, found.lesion
        self.table = found.table

    def studies(self) -> list[Study]:
        """New disease, and new hospital, twice."""
        pseudo = [self._new_disease(_without(OLD, held), held, PSEUDO_DISEASES_AT, 0) for held in PSEUDO_DISEASES]
        new_disease = partial(self._new_disease, OLD, NEW, NEW_DISEASES_AT)
        studies = [self._study("new disease", (1, 5, 20), new_disease, pseudo)]
        for target, stand_ins in NEW_HOSPITALS.items():
            problem = self._new_hospital(target, left_out=(target,))
            pseudo = [self._new_hospital(each, left_out=(target, each)) for each in stand_ins]
            studies.append(self._study(f"new hospital {target}", (0, 1, 5, 20), partial(unchanging, problem), pseudo))
        return studies

    def _study(
        self, name: str, shots: tuple[int, ...], problem: Callable[[int], Problem], pseudo: list[Problem]
    ) -> Study:
        return Study(name, shots, problem, tuple(pseudo), self.images.federation, self.images.model)

    def _new_hospital(self, target: str, *, left_out: tuple[str, ...]) -> Problem:
        """All other hospitals learn, and this one is new. left_out: who takes no part, the target among them."""
        sources = [str(name) for name in np.unique(self.site) if name not in left_out]
        cohorts = {name: self._examples(CLASSES, self.site == name) for name in sources}
        here = self._target(target, CLASSES, self.site == target, LEAST_LESIONS["new hospital"])
        return Problem(f"{'+'.join(sources)} for {target}", CLASSES, cohorts, (here,))

    def _new_disease(self, old: tuple[str, ...], new: tuple[str, ...], target: str, seed: int) -> Problem:
        """All hospitals learn the old classes, from lesions that the seed chooses; one of them sees the new ones."""
        lesions = np.unique(self.lesion)
        shuffled = np.random.default_rng(4000 + seed).permutation(lesions)
        learned = np.isin(self.lesion, shuffled[: int(LEARNED_SHARE * len(lesions))]) & np.isin(self.label, old)
        cohorts = {str(name): self._examples(old, (self.site == name) & learned) for name in np.unique(self.site)}
        here = (self.site == target) & ~learned
        least = LEAST_LESIONS["new disease"]
        both = tuple(sorted(old + new))
        targets = tuple(self._target(f"{len(classes)}-way", classes, here, least) for classes in (new, both))
        return Problem(f"{'+'.join(new)} after {'+'.join(old)}", old, cohorts, targets)

    def _target(self, name: str, classes: tuple[str, ...], chosen: NDArray[np.bool_], least: int) -> Target:
        """Of those of the classes that at least so many lesions show."""
        label = np.array(self.label)
        kept = tuple(each for each in classes if len(np.unique(self.lesion[chosen & (label == each)])) >= least)
        chosen = chosen & np.isin(label, kept)
        raw = examples_of(self.raw, self.label, self.lesion, kept, chosen)
        return Target(name, kept, examples_of(self.z, self.label, self.lesion, kept, chosen), raw)

    def _examples(self, classes: tuple[str, ...], chosen: NDArray[np.bool_]) -> Examples:
        return examples_of(self.z, self.label, self.lesion, classes, chosen & np.isin(self.label, classes))


def _small(images: NDArray[np.uint8]) -> Tensor:
    """The floor's pixels: float32 [n, 3 * 28 * 28]."""
    parts = (torch.from_numpy(part).float() / 255 for part in np.array_split(images, 100))
    if images.shape[-1] == min(SIZES_PX):
        return torch.cat([part.flatten(1) for part in parts])
    return torch.cat([adaptive_avg_pool2d(part, min(SIZES_PX)).flatten(1) for part in parts])


def _without(classes: tuple[str, ...], held: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(each for each in classes if each not in held)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("fed_ham", "Skin lesions at four hospitals: a new hospital, a new disease.", encoder=True)
    known.add_argument("--size", type=int, choices=SIZES_PX, default=28, help="of the images, in pixels (28)")
    known.add_argument("--table", action="store_true", help="age, sex and place beside the image, with --size 128")
    options = known.parse_args(arguments)
    if options.table and options.size == min(SIZES_PX):
        known.error("--table needs --size 128, whose file has the table")
    every = rows((32, 96))
    run(
        options,
        lambda data, console: Ham(options, data, console).studies(),
        every if options.size == min(SIZES_PX) else halved(every),
    )


if __name__ == "__main__":
    main()
