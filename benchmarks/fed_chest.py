"""Pneumonia in chest radiographs of children and of adults: what does one hospital's model bring to the other?

    python benchmarks/fed_chest.py [--data DIR] [--encoder FILE] [--study NAME ...] [--rows NAME ...|main|all]
                                   [--epsilon none 8 3 1] [--seeds 5] [--out DIR] [--json]

Guangzhou (Kermany et al., 2018; children) and the NIH Clinical Center (Wang et al., 2017; adults), at 128 px. One
learns, alone, which is all that two hospitals leave; the other is new and adapts with 0, 1, 5 or 20 patients of each
class. Of the children the published training and validation parts are learned from, and the test part is adapted to and
judged. Settings are chosen at half of the source's patients while the other half learns.
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch.nn.functional import adaptive_avg_pool2d

from encoded import EncodedImages, cached
from hospitals import Problem, Study, Target, examples_of, unchanging
from real_data import CHEST, chests
from rows import Trial, rows
from study import parser, run
from wardround.config import Federation
from wardround_client.cohort.examples import Examples

SIZE_PX = 128
SHOTS = (0, 1, 5, 20)


class Chests:
    """All radiographs, encoded."""

    def __init__(self, options: Namespace, data: Path, console: Console) -> None:
        self.parts = chests(data)
        self.images = EncodedImages.of(options, "fed-chest", "finding", SIZE_PX)
        cache = options.cache or options.out / "features"
        grey = {name: np.repeat(part.images, 3, 1) for name, part in self.parts.items()}
        self.z = {name: cached(self.images.encoder, each, cache, console) for name, each in grey.items()}

    def studies(self) -> list[Study]:
        """Each hospital in turn is new."""
        return [self._study("children", "adults", "adults"), self._study("adults", "children", "children, test")]

    def _study(self, source: str, new: str, judged: str) -> Study:
        every = np.ones(len(self.parts[source].label), bool)
        odd = self.parts[source].patient % 2 == 1
        problem = self._problem(
            f"{source} for {new}", source, every, judged, np.ones(len(self.parts[judged].label), bool)
        )
        pseudo = self._problem(f"half of {source} for the other", source, ~odd, source, odd)
        return Study(
            f"new hospital {new}", SHOTS, partial(unchanging, problem), (pseudo,), self._federation, self.images.model
        )

    def _problem(
        self, name: str, source: str, learned: NDArray[np.bool_], new: str, judged: NDArray[np.bool_]
    ) -> Problem:
        part = self.parts[new]
        pixels = adaptive_avg_pool2d(torch.from_numpy(part.images).float() / 255, 28).flatten(1)
        raw = examples_of(pixels, part.label, part.patient, CHEST, judged)
        target = Target(new, CHEST, self._examples(new, judged), raw)
        return Problem(name, CHEST, {source: self._examples(source, learned)}, (target,))

    def _examples(self, name: str, chosen: NDArray[np.bool_]) -> Examples:
        part = self.parts[name]
        return examples_of(self.z[name], part.label, part.patient, CHEST, chosen)

    def _federation(self, classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
        federation = self.images.federation(classes, algorithm, trial, epsilon)
        return federation.model_copy(update={"rounds": federation.rounds.model_copy(update={"quorum": 1})})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parser("fed_chest", "Pneumonia of children and of adults.", encoder=True).parse_args(arguments)
    run(options, lambda data, console: Chests(options, data, console).studies(), rows((32, 64)))


if __name__ == "__main__":
    main()
