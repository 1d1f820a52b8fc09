"""Which variants of an image to learn from: none, all that the task names, or what cross-validation chooses at home.

    python benchmarks/augmentation.py [--data DIR] [--encoder FILE --features N] [--study NAME ...] [--seeds 5]
                                      [--epsilon none 8] [--out DIR]

At home: local training on 2, 5 or 10 patients of each class: a start without a head, which a new disease has too. Of
each class 30 patients may be in a support; all others judge, as they are. Studies, with what their tasks name: skin at
rosendahl and blood cells, which have no right way up (rotate-90, intensity: 12 variants); children's chests (shift,
intensity: 15); and chests whose task names rotate-90 by mistake (rotate-90, intensity). The encoder is the built-in one
unless another is given: one that averages over flips itself leaves less to learn.

In a federation: the same mistake, at four hospitals of 100 children each, drawn by the seed; FedAvg on images as they
are, FedAvg on all variants, and meta-augment, which learns their weights, by public_rule.py's settings (SIMULATED: one
hospital's children are dealt to four). The published test part is new; it adapts with no patient, or with 5 of each
class and the variants that its row learned from.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cross_modality import SIZE_PX, brought
from encoded import EncodedImages, encoded
from federated import learned
from hospitals import DRAWS, examples_of
from public_rule import IMAGES, by_rule
from real_data import CHEST, Site, bccd, folder, ham10000, pneumonia
from rows import NONE, Trial
from study import BASELINE, parser
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.augment import made_by, variants
from wardround.files import write_atomically
from wardround.models.scaling import no_scaling
from wardround.task import Augmentation
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner, drawn

SHOTS = (2, 5, 10)
POOL = 30
ROTATED: tuple[Augmentation, ...] = ("rotate-90", "intensity")
SHIFTED: tuple[Augmentation, ...] = ("shift", "intensity")
STUDIES: dict[str, tuple[Augmentation, ...]] = {
    "skin": ROTATED,
    "blood": ROTATED,
    "chests": SHIFTED,
    "chests, by mistake": ROTATED,
}
TOGETHER = "in a federation"
HOSPITALS, PATIENTS, POOLED = 4, 100, 500
TOGETHER_SHOTS = (0, 5)
NOTHING, ALL, CHOSEN, WEIGHED = "none", "all", "chosen at home", "meta-augment"


@dataclass(frozen=True)
class Hospital:
    """pool: examples with their variants, of whom supports are drawn. judges: everybody else."""

    learner: Learner
    pool: Examples
    judges: Examples


def hospital(name: str, images: EncodedImages, site: Site, options: Namespace, console: Console) -> Hospital:
    """A study's hospital. site: its images, brought to the size."""
    classes, augment = tuple(sorted(set(site.label))), STUDIES[name]
    label, inside = np.array(site.label), np.zeros(len(site.label), bool)
    generator = np.random.default_rng(5)
    for each in classes:
        own = np.unique(site.patient[label == each])
        inside |= np.isin(site.patient, generator.permutation(own)[: min(POOL, len(own) // 2)])
    cache = options.cache or options.out / "features"
    z = encoded(images.encoder, site.x, cache, console)
    x = site.x[torch.from_numpy(inside)]
    others = [encoded(images.encoder, each, cache, console) for each in list(variants(x, augment))[1:]]
    pool, judges = (examples_of(z, site.label, site.patient, classes, part) for part in (inside, ~inside))
    federation = images.federation(classes, "fedavg", Trial(), 8.0)
    model = images.model(federation)
    learner = Learner.of(federation, model, model.initial().detach(), *no_scaling(model.scaling_size))
    learner = replace(learner, augment=augment).learning_from(augment)
    return Hospital(learner, replace(pool, augmented=torch.stack(others, 1)), judges)


def hospitals(options: Namespace, data: Path, console: Console) -> Iterator[tuple[str, Hospital]]:
    """Every study that is wanted."""
    images = EncodedImages.of(options, "augmentation", "class", SIZE_PX)
    for name in STUDIES:
        if options.study and not any(part in name for part in options.study):
            continue
        if name == "skin":
            (site,) = (each for each in ham10000(data) if each.name == "rosendahl")
        else:
            site = bccd(data) if name == "blood" else pneumonia(data)[1]
        yield name, hospital(name, images, replace(site, x=brought(site.x)), options, console)


def several(options: Namespace, data: Path, console: Console) -> Several:
    """The federation's children, and whoever is new."""
    images = EncodedImages.of(options, "augmentation", "class", SIZE_PX)
    children, test = (replace(site, x=brought(site.x)) for site in pneumonia(data))
    chosen = np.random.default_rng(6).permutation(len(children.label))[:POOLED]
    inside = np.isin(np.arange(len(children.label)), chosen)
    x, cache = children.x[torch.from_numpy(inside)], options.cache or options.out / "features"
    z = [encoded(images.encoder, each, cache, console) for each in variants(x, ROTATED)]
    label = [each for each, there in zip(children.label, inside, strict=True) if there]
    plain = examples_of(z[0], label, np.arange(len(label)), CHEST, np.ones(len(label), bool))
    new = hospital("chests, by mistake", images, test, options, console)
    return Several(images, replace(plain, augmented=torch.stack(z[1:], 1)), new)


@dataclass(frozen=True)
class Several:
    """children: whom the seed deals to the hospitals, with their variants. new: who takes no part."""

    images: EncodedImages
    children: Examples
    new: Hospital

    def measured(self, column: str, seed: int) -> dict[int, dict[str, float]]:
        """Balanced accuracy by shots and row."""
        dealt = np.random.default_rng(8000 + seed).permutation(self.children.patients)
        hands = [torch.from_numpy(dealt[number::HOSPITALS][:PATIENTS]) for number in range(HOSPITALS)]
        found: dict[int, dict[str, float]] = {shots: {} for shots in TOGETHER_SHOTS}
        for name, algorithm, augment in (
            (NOTHING, "fedavg", ()),
            (ALL, "fedavg", ROTATED),
            (WEIGHED, WEIGHED, ROTATED),
        ):
            row = next(
                each for each in by_rule(IMAGES) if each.name == ("meta-augment" if name == WEIGHED else BASELINE)
            )
            trial = (row.exact if column == NONE else row.private)[0]
            agreed = self.images.federation(CHEST, algorithm, trial, 8.0 if column == NONE else float(column))
            task = agreed.task.model_copy(update={"augment": augment})
            federation = agreed.model_copy(update={"task": task})
            model = federation.algorithm.extended(self.images.model(federation))
            kept = made_by(ROTATED, augment)
            cohorts = {
                f"hospital-{number}": self.children.subset(torch.isin(self.children.patient, hand)).varied(kept)
                for number, hand in enumerate(hands)
            }
            learner = learned(federation, model, cohorts, private=column != NONE)
            for shots in TOGETHER_SHOTS:
                found[shots][name] = self._judged(learner, kept, shots, seed)
        return found

    def _judged(self, learner: Learner, kept: tuple[int, ...], shots: int, seed: int) -> float:
        if not shots:
            return learner.score(learner.unadapted(), self.new.judges)
        generator = torch.Generator().manual_seed(seed * 1009 + shots)
        values = []
        for _ in range(DRAWS):
            support = self.new.pool.subset(drawn(self.new.pool, shots, generator)[self.new.pool.patient]).varied(kept)
            values.append(learner.score(learner.adapt(support), self.new.judges))
        return fmean(values)


def rows(augment: tuple[Augmentation, ...]) -> dict[str, tuple[Augmentation, ...]]:
    """What each row learns from; the last, before it chooses."""
    return {NOTHING: (), **{f"{each} alone": (each,) for each in augment}, ALL: augment, CHOSEN: augment}


def measured(at: Hospital, shots: int, seed: int) -> dict[str, Any]:
    """Balanced accuracy by row, the mean over supports; and what was chosen."""
    generator = torch.Generator().manual_seed(seed * 1009 + shots)
    found: dict[str, list[float]] = {name: [] for name in rows(at.learner.augment)}
    chosen = []
    for _ in range(DRAWS):
        support = at.pool.subset(drawn(at.pool, shots, generator)[at.pool.patient])
        for name, allowed in rows(at.learner.augment).items():
            learner = at.learner.learning_from(allowed)
            if name == CHOSEN:
                learner = learner.augmented_on(support)
                chosen.append("all" if learner.loss.augment == allowed else "+".join(learner.loss.augment) or "none")
            found[name].append(learner.score(learner.adapt(support), at.judges))
    return {"found": {name: fmean(values) for name, values in found.items()}, "chosen": chosen}


def publish(store: Store) -> None:
    """Write the table. Raises: StorageError."""
    cells: list[dict[str, Any]] = [dict(cell) for cell in store.rows().values()]
    said = f"Balanced accuracy in %, with the half width of the 95 % interval over seeds (ahead of {ALL!r})"
    parts = [f"{hardware()}. {said}.\n"]
    for study in dict.fromkeys(cell["study"] for cell in cells):
        own = [cell for cell in cells if cell["study"] == study]
        by_shots: dict[int, list[dict[str, Any]]] = {}
        for cell in own:
            by_shots.setdefault(cell["shots"], []).append(cell)
        lines = []
        for name in own[0]["found"]:
            values = {k: [cell["found"][name] for cell in seeds] for k, seeds in by_shots.items() if len(seeds) > 1}
            ahead = {k: [cell["found"][name] - cell["found"][ALL] for cell in by_shots[k]] for k in values}
            line = {str(k): f"{estimate(each)} ({estimate(ahead[k])})" for k, each in values.items()}
            lines.append({"row": name, **line})
        chosen = [each for cell in own for each in cell.get("chosen", [])]
        how_often = ", ".join(f"{name} {chosen.count(name)}" for name in sorted(set(chosen)))
        headings = {"row": "patients a class", **{str(shots): str(shots) for shots in sorted(by_shots)}}
        parts.append(f"\n## {study}\n\n{markdown(lines, headings)}\n")
        parts.append(f"Chosen, of {len(chosen)} supports: {how_often}.\n" if chosen else "")
    write_atomically(store.folder / TABLE, "".join(parts).encode())


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    known = parser("augmentation", "Which variants to learn from.", encoder=True)
    known.set_defaults(epsilon=[NONE, "8"])
    options = known.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        data = folder(options.data)
        for name, at in hospitals(options, data, console):
            for shots, seed in product(SHOTS, range(options.seeds)):
                key = f"{name}/{shots}/{seed}"
                if key not in store.rows():
                    store.put(key, {"study": name, "shots": shots, "seed": seed, **measured(at, shots, seed)})
            console.print(f"{name}: done", highlight=False)
            publish(store)
        if not options.study or any(part in TOGETHER for part in options.study):
            together(options, several(options, data, console), store, console)
    print((options.out / TABLE).read_text(), end="")


def together(options: Namespace, at: Several, store: Store, console: Console) -> None:
    """Fill in what the federation is missing."""
    for column in options.epsilon:
        study = f"{TOGETHER}, {'not private' if column == NONE else f'epsilon {column}'}"
        for seed in range(options.seeds):
            if f"{study}/{TOGETHER_SHOTS[-1]}/{seed}" in store.rows():
                continue
            for shots, found in at.measured(column, seed).items():
                store.put(f"{study}/{shots}/{seed}", {"study": study, "shots": shots, "seed": seed, "found": found})
        console.print(f"{study}: done", highlight=False)
        publish(store)


if __name__ == "__main__":
    main()
