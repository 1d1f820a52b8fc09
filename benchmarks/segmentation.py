"""Outlines at several real hospitals: what is a federation worth to a new hospital that outlines few patients?

    python benchmarks/segmentation.py [--data DIR] [--encoder FILE] [--study NAME ...] [--rows NAME ...|main|all]
                                      [--epsilon none 8 3 1] [--seeds 3] [--out DIR] [--json]

Glioma in MR at four institutions, polyps in colonoscopy at two, vessels of the retina at three. All hospitals but one
learn; that one adapts with 0, 1, 5 or 20 patients and is judged on its others, by the Dice coefficient of each patient
at the images' own resolution (`outlines.dice`).

Settings are chosen at the smallest source hospital while the others learn; where there is one source, at half of its
patients while the other half learns.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

import real_data
from encoded import EncodedImages, cached
from hospitals import Problem, Study, unchanging
from outlines import OutlinedTarget, cells_of, dice, shares
from real_data import Outlined
from rows import Row, Trial, halved, rows
from study import parser, run
from wardround.config import Federation
from wardround.models import Model
from wardround.models.composed import Cells
from wardround.models.head import EncoderHead

SHOTS = (0, 1, 5)
EMBEDDINGS = (16, 32)
RATE, APART = 10.0, 4.0  # features of cells are longer than 1
DRAWN = 32  # cells of an image in a step
NOISES = 2
CLIP_NORM, FASTER = 0.05, 2  # a patient's mean gradient is short: a longer clip adds noise alone
FRAMES, SLICES = 6, 12  # of a sequence of polyps, and of a patient of glioma


@dataclass(frozen=True)
class Organ:
    """One study. load: its hospitals. cell_px: side of a cell. images: that a step draws of a patient."""

    load: Callable[[Path], list[Outlined]]
    classes: tuple[str, str]
    size_px: int
    cell_px: int
    images: int


ORGANS = {
    "polyps": Organ(partial(real_data.polyps, most_frames=FRAMES), ("mucosa", "polyp"), 160, 4, 4),
    "glioma": Organ(partial(real_data.glioma, most_slices=SLICES), ("brain", "lesion"), 128, 4, 4),
    "vessels": Organ(partial(real_data.vessels, size_px=256), ("retina", "vessel"), 256, 2, 2),
}


class Outlines:
    """One organ's images at all hospitals, as cells seen through the encoder."""

    def __init__(self, name: str, options: Namespace, data: Path, console: Console) -> None:
        self.name, self.organ = name, ORGANS[name]
        size, self.side = self.organ.size_px, self.organ.size_px // self.organ.cell_px
        self.images = EncodedImages.of(options, name, "outline", size)
        self.encoder = Cells(self.images.map_encoder, self.side)
        cache = options.cache or options.out / "features"
        self.sites = {each.name: each for each in self.organ.load(data)}
        self.examples = {
            each.name: cells_of(
                cached(self.encoder, each.images, cache, console),
                shares(each, self.organ.cell_px),
                each.patient,
                self.side,
                DRAWN,
            )
            for each in self.sites.values()
        }

    def studies(self) -> list[Study]:
        """Every hospital in turn is new."""
        return [self._study(name) for name in self.sites]

    def _study(self, new: str) -> Study:
        sources = [name for name in self.sites if name != new]
        problem = self._problem(sources, new)
        return Study(
            f"{self.name}, new hospital {new}",
            SHOTS,
            partial(unchanging, problem),
            (self._pseudo(sources),),
            self._federation,
            self._model,
            dice,
            "dice",
            NOISES,
        )

    def _pseudo(self, sources: list[str]) -> Problem:
        """The smallest source hospital as a new one, or half of the only one."""
        if len(sources) == 1:
            return self._halves(sources[0])
        least = min(sources, key=lambda name: self.examples[name].patients)
        return self._problem([name for name in sources if name != least], least)

    def _problem(self, sources: list[str], new: str) -> Problem:
        cohorts = {name: self.examples[name] for name in sources}
        return Problem(f"{'+'.join(sources)} for {new}", self.organ.classes, cohorts, (self._target(new),))

    def _halves(self, name: str) -> Problem:
        """Every second patient learns, and the others are new."""
        odd = self.sites[name].patient % 2 == 1
        target = self._target(name)
        rows = torch.from_numpy(odd).repeat_interleave(self.side**2)
        cohorts = {name: self.examples[name].subset(~rows)}
        truth = self.sites[name].some(odd)
        half = OutlinedTarget(
            name, target.classes, target.examples.subset(rows), target.raw.subset(rows), truth, self.side
        )
        return Problem(f"half of {name} for the other", self.organ.classes, cohorts, (half,))

    def _target(self, name: str) -> OutlinedTarget:
        examples, site, cell = self.examples[name], self.sites[name], self.organ.cell_px
        grey = torch.from_numpy(site.images).float().unfold(2, cell, cell).unfold(3, cell, cell).mean((4, 5)) / 255
        z = grey.permute(0, 2, 3, 1).flatten(0, 2)
        return OutlinedTarget(
            name, self.organ.classes, examples, replace(examples, z=z, summary=z), self.sites[name], self.side
        )

    def _federation(self, classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
        federation = self.images.federation(classes, algorithm, trial, epsilon)
        task = federation.task.model_copy(
            update={"labels": "mask", "cell_px": self.organ.cell_px, "cells_per_image": DRAWN}
        )
        privacy = federation.privacy.model_copy(update={"images_per_patient": self.organ.images})
        quorum = federation.rounds.model_copy(update={"quorum": 1})
        return federation.model_copy(update={"task": task, "privacy": privacy, "rounds": quorum})

    def _model(self, federation: Federation) -> Model:
        return EncoderHead.of(self.encoder, len(federation.task.classes), federation.model.embedding)


def studies(options: Namespace, data: Path, console: Console) -> list[Study]:
    """Of the organs that --study names, or all."""
    named = [name for name in ORGANS if any(name in part for part in options.study or ())]
    return [study for name in named or ORGANS for study in Outlines(name, options, data, console).studies()]


def all_rows() -> tuple[Row, ...]:
    """The rows of the tables of hospitals, with half of the trials, and a smaller clip norm where there is noise."""
    every = halved(rows(EMBEDDINGS, rate=RATE, apart=APART))

    def shorter(trial: Trial) -> Trial:
        return replace(trial, learning_rate=trial.learning_rate * FASTER, clip_norm=CLIP_NORM)

    return tuple(replace(row, private=tuple(map(shorter, row.private))) for row in every)


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parser("segmentation", "Outlines at a new hospital.", encoder=True).parse_args(arguments)
    run(options, lambda data, console: studies(options, data, console), all_rows())


if __name__ == "__main__":
    main()
