"""Which variants of an image to learn from: none, all that the task names, or what cross-validation chooses at home.

    python benchmarks/augmentation.py [--data DIR] [--encoder FILE --features N] [--study NAME ...] [--seeds 5]
                                      [--out DIR] [--json]

Local training on 2, 5 or 10 patients of each class: a start without a head, which a new disease has too. Of each class
30 patients may be in a support; all others judge, as they are. Studies, with what their tasks name: skin at rosendahl
and blood cells, which have no right way up (rotate-90, intensity: 12 variants); children's chests (shift, intensity:
15); and chests whose task names rotate-90 by mistake (rotate-90, shift: 20 are too many, so rotate-90 and intensity).
The encoder is the built-in one unless another is given: one that averages over flips itself leaves less to learn.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console

from cross_modality import SIZE_PX, brought
from encoded import EncodedImages, encoded
from hospitals import DRAWS, examples_of
from real_data import Site, bccd, folder, ham10000, pneumonia
from rows import Trial
from study import parser
from tables import TABLE, Store, ending, estimate, hardware, keep_freed_memory, markdown
from wardround.augment import variants
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
CHOSEN = "chosen at home"


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


def rows(augment: tuple[Augmentation, ...]) -> dict[str, tuple[Augmentation, ...]]:
    """What each row learns from; the last, before it chooses."""
    return {"none": (), **{f"{each} alone": (each,) for each in augment}, "all": augment, CHOSEN: augment}


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
    parts = [f"{hardware()}. Balanced accuracy in %, with the half width of the 95 % interval over seeds.\n"]
    for study in dict.fromkeys(cell["study"] for cell in cells):
        own = [cell for cell in cells if cell["study"] == study]
        by_shots = {shots: [cell for cell in own if cell["shots"] == shots] for shots in SHOTS}
        lines = []
        for name in own[0]["found"]:
            values = {k: [cell["found"][name] for cell in seeds] for k, seeds in by_shots.items() if len(seeds) > 1}
            lines.append({"row": name, **{str(shots): str(estimate(each)) for shots, each in values.items()}})
        chosen = [each for cell in own for each in cell["chosen"]]
        said = ", ".join(f"{name} {chosen.count(name)}" for name in sorted(set(chosen)))
        headings = {"row": "patients a class", **{str(shots): str(shots) for shots in SHOTS}}
        parts.append(f"\n## {study}\n\n{markdown(lines, headings)}\nChosen, of {len(chosen)} supports: {said}.\n")
    write_atomically(store.folder / TABLE, "".join(parts).encode())


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    options = parser("augmentation", "Which variants to learn from.", encoder=True).parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        for name, at in hospitals(options, folder(options.data), console):
            for shots in SHOTS:
                for seed in range(options.seeds):
                    key = f"{name}/{shots}/{seed}"
                    if key not in store.rows():
                        store.put(key, {"study": name, "shots": shots, "seed": seed, **measured(at, shots, seed)})
            console.print(f"{name}: done", highlight=False)
            publish(store)
    print((options.out / TABLE).read_text(), end="")


if __name__ == "__main__":
    main()
