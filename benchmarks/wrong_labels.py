"""Wrong labels, rare classes, a dominant scanner: is it worth learning how much a patient counts?

    python benchmarks/wrong_labels.py [--data DIR] [--encoder FILE --features N] [--stand-ins] [--study NAME ...]
                                      [--rows NAME ...] [--epsilon none 8] [--seeds 5] [--out DIR] [--json]

Skin: Fed-HAM's hospitals but one learn, which is new, as in fed_ham.py; each of the others is dealt into two by its
lesions' numbers. Chests: PneumoniaMNIST's children, dealt to four hospitals, through the built-in encoder; the
published test part is new. The new hospital adapts with no patient, or with 5 of each class. A hospital that learns has
at most 500 patients. SIMULATED, since nobody's labels are known to be wrong:

* 0, 20 or 40 % wrong: in every other hospital so many patients of each class have the label of another, any alike;
* 1:20: in every hospital each class keeps at most a twentieth of the patients of the largest;
* scanner: the largest hospital keeps all of its patients, and its images are brighter, flatter and of another tint; the
  others keep a tenth of that each.

Which labels are wrong, and who is kept, is drawn by the seed. What is judged, and its supports, are clean. Settings are
those of public_rule.py: nothing is tuned. With --stand-ins it is judged where methods may be looked at while they are
made: at vidir_molemax, and at a fifth of the children who learn.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from cross_modality import brought
from encoded import EncodedImages, cached
from fed_ham import CLASSES, LEAST_LESIONS, NEW_HOSPITALS
from hospitals import Problem, Study, Target, examples_of
from public_rule import IMAGES, by_rule
from real_data import CHEST, lesions, pneumonia
from rows import Row, Trial
from study import BASELINE, parser, run
from wardround_client.cohort.examples import Examples

SIZE_PX = 28
SHOTS = (0, 5)
SKIN, CHESTS = "skin", "chests"
STAND_IN = "vidir_molemax"
MOST_PATIENTS = 500
HOSPITALS_OF_CHILDREN = 4
WRONG = {"clean": 0.0, "20 % wrong": 0.2, "40 % wrong": 0.4}
IMBALANCED, SCANNER = "1 to 20", "scanner"
CONDITIONS = (*WRONG, IMBALANCED, SCANNER)
RARER, SMALLER = 20, 10
# What the dominant scanner does to grey values in [0, 1]: a power, then a range and a floor a channel.
_GAMMA, _RANGE, _FLOOR = 0.7, (0.75, 0.65, 0.6), (0.2, 0.15, 0.1)
WEIGHED, GENERALIZED = "meta-weight", "meta-weight, generalized"
ROWS = ("local only", BASELINE, WEIGHED, GENERALIZED)

Learning = Callable[[], "tuple[Part, list[Part]]"]
"""Who is new, and who learns."""
Place = tuple[str, str, tuple[str, ...], Learning]
"""Its name, what is seen there, its classes, who is there."""


@dataclass(frozen=True)
class Part:
    """A hospital that learns, or one that is new.

    images: uint8 [n, 3, S, S]. z: float32 [n, features]. label: [n] of str. patient: int64 [n].
    """

    name: str
    images: NDArray[np.uint8]
    z: Tensor
    label: NDArray[np.str_]
    patient: NDArray[np.int64]

    @property
    def patients(self) -> NDArray[np.int64]:
        """Their numbers."""
        return np.unique(self.patient)

    def of(self, patients: NDArray[np.int64], name: str = "") -> Part:
        """These patients alone."""
        chosen = np.isin(self.patient, patients)
        z = self.z[torch.from_numpy(chosen)]
        return Part(name or self.name, self.images[chosen], z, self.label[chosen], self.patient[chosen])

    def showing(self, name: str) -> NDArray[np.int64]:
        """The patients of a class."""
        return np.unique(self.patient[self.label == name])

    def examples(self, classes: tuple[str, ...]) -> Examples:
        """Those that show one of the classes."""
        return examples_of(self.z, self.label.tolist(), self.patient, classes, np.isin(self.label, classes))


def dealt(part: Part, hospitals: int) -> list[Part]:
    """To so many hospitals, in the order of the patients' numbers; the first of each."""
    hands = [part.patients[number::hospitals][:MOST_PATIENTS] for number in range(hospitals)]
    return [part.of(hand, f"{part.name}-{'abcdef'[number]}") for number, hand in enumerate(hands)]


def wrong(part: Part, share: float, classes: Sequence[str], rng: np.random.Generator) -> Part:
    """Of each class so large a share of the patients, with the label of another class."""
    label = part.label.copy()
    for name in classes:
        own, others = part.showing(name), [other for other in classes if other != name]
        for patient in rng.permutation(own)[: round(share * len(own))].tolist():
            label[part.patient == patient] = rng.choice(others)
    return replace(part, label=label)


def rarer(part: Part, classes: Sequence[str], rng: np.random.Generator) -> Part:
    """With at most a twentieth of the largest class's patients in each other class."""
    largest, *others = sorted((part.showing(name) for name in classes), key=len, reverse=True)
    few = max(1, len(largest) // RARER)
    return part.of(np.concatenate([largest, *(rng.permutation(each)[:few] for each in others)]))


def scanned(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """As the dominant scanner shows them."""
    spread, floor = (np.array(each, np.float32).reshape(1, 3, 1, 1) for each in (_RANGE, _FLOOR))
    shown: NDArray[np.uint8] = np.clip(255 * ((images / 255) ** _GAMMA * spread + floor), 0, 255).astype(np.uint8)
    return shown


class Clinics:
    """All images, encoded when they are asked for, and what is made of them."""

    def __init__(self, options: Namespace, data: Path, console: Console) -> None:
        self.options, self.data, self.console = options, data, console
        built_in = Namespace(**vars(options) | {"encoder": None, "features": 64})
        self.seen = {
            name: EncodedImages.of(each, "wrong-labels", "class", SIZE_PX)
            for name, each in ((SKIN, options), (CHESTS, built_in))
        }
        self._scanned: dict[str, Part] = {}

    def studies(self) -> list[Study]:
        """Every condition at every new hospital."""
        places: list[Place] = [
            *((f"{SKIN}, {name}", SKIN, CLASSES, partial(self._new_at, name)) for name in self._judged),
            (CHESTS, CHESTS, CHEST, self._new_children),
        ]
        return [
            Study(
                f"{name}, {condition}",
                SHOTS,
                partial(self._problem, name, what, classes, new, condition),
                (),
                self.seen[what].federation,
                self.seen[what].model,
            )
            for name, what, classes, new in places
            for condition in CONDITIONS
        ]

    @property
    def _judged(self) -> Sequence[str]:
        return (STAND_IN,) if self.options.stand_ins else tuple(NEW_HOSPITALS)

    def _new_at(self, name: str) -> tuple[Part, list[Part]]:
        """Who is new, and who learns."""
        others = (part for other, part in self._skin.items() if other != name)
        return self._skin[name], [half for part in others for half in dealt(part, 2)]

    def _new_children(self) -> tuple[Part, list[Part]]:
        children, test = self._children
        if self.options.stand_ins:
            test, *learn = dealt(children, HOSPITALS_OF_CHILDREN + 1)
            return test, learn
        return test, dealt(children, HOSPITALS_OF_CHILDREN)

    @cached_property
    def _skin(self) -> dict[str, Part]:
        found = lesions(self.data, SIZE_PX)
        everybody = Part(SKIN, found.images, self._encoded(SKIN, found.images), found.label, found.lesion)
        return {str(name): everybody.of(found.lesion[found.site == name], str(name)) for name in np.unique(found.site)}

    @cached_property
    def _children(self) -> tuple[Part, Part]:
        parts = []
        for site in pneumonia(self.data):
            images = (255 * brought(site.x).numpy()).round().astype(np.uint8)
            parts.append(Part(site.name, images, self._encoded(CHESTS, images), np.array(site.label), site.patient))
        return parts[0], parts[1]

    def _encoded(self, what: str, images: NDArray[np.uint8]) -> Tensor:
        cache = self.options.cache or self.options.out / "features"
        return cached(self.seen[what].encoder, images, cache, self.console)

    def _problem(
        self,
        name: str,
        what: str,
        classes: tuple[str, ...],
        new: Learning,
        condition: str,
        seed: int,
    ) -> Problem:
        here, parts = new()
        parts = self._under(condition, what, parts, classes, np.random.default_rng(7000 + seed))
        kept = tuple(each for each in classes if len(here.showing(each)) >= LEAST_LESIONS["new hospital"])
        examples = here.examples(kept)
        cohorts = {part.name: part.examples(classes) for part in parts}
        return Problem(name, classes, cohorts, (Target(here.name, kept, examples, examples),))

    def _under(
        self, condition: str, what: str, parts: list[Part], classes: tuple[str, ...], rng: np.random.Generator
    ) -> list[Part]:
        if condition == IMBALANCED:
            return [rarer(part, classes, rng) for part in parts]
        if condition == SCANNER:
            largest = max(parts, key=lambda part: len(part.patients))
            few = len(largest.patients) // SMALLER
            return [
                self._by_scanner(what, part) if part is largest else part.of(rng.permutation(part.patients)[:few])
                for part in parts
            ]
        share = WRONG[condition]
        return [wrong(part, share, classes, rng) if number % 2 else part for number, part in enumerate(parts)]

    def _by_scanner(self, what: str, part: Part) -> Part:
        if part.name not in self._scanned:
            images = scanned(part.images)
            self._scanned[part.name] = replace(part, images=images, z=self._encoded(what, images))
        return self._scanned[part.name]


def ruled() -> tuple[Row, ...]:
    """The rows, by the public rule."""
    found = {row.name: row for row in by_rule(IMAGES)}
    learned = found[WEIGHED]
    exact, private = (tuple(map(_generalized, trials)) for trials in (learned.exact, learned.private))
    found[GENERALIZED] = replace(learned, name=GENERALIZED, exact=exact, private=private)
    return tuple(found[name] for name in ROWS)


def _generalized(trial: Trial) -> Trial:
    return replace(trial, settings={**trial.settings, "table": "generalized"})


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("wrong_labels", "Wrong labels, rare classes, a dominant scanner.", encoder=True)
    known.add_argument("--stand-ins", action="store_true", help="judge at those who stand in for the new hospitals")
    known.set_defaults(by_rule=True, rows=list(ROWS), epsilon=["none", "8"])
    options = known.parse_args(arguments)
    run(options, lambda data, console: Clinics(options, data, console).studies(), ruled())


if __name__ == "__main__":
    main()
