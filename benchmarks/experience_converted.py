"""Rows of experience from the cells of the leaderboard, as far as they are known.

    python benchmarks/experience_converted.py --store DIR [--data DIR] [--encoders DIR] [--cache DIR] [--out DIR]

A cell is a method at a public rule's settings: it says what the method is worth on a data set, through other encoders
than the built-in one and on outlines too. Cells whose new hospital has other classes than the others are left out: a
row describes one task. All options but --store are those of leaderboard.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from rich.console import Console

from encoded import narrowed
from experience import CONVERTED, RESULTS, declared, settings_for
from hospitals import Study
from leaderboard import COLUMNS, SHOTS
from leaderboard_sets import SETS, DataSet, Sources
from public_rule import adds_up_classes, by_rule
from real_data import folder
from rows import NONE
from rows import Row as Method
from tables import Store, ending
from wardround.experience.row import Described, Row
from wardround.files import write_atomically

SOURCES = {
    "autism": "abide",
    "TCGA-BRCA": "breast",
    "lung genes": "lung",
    "METABRIC": "metabric",
    "glioma grade": "glioma",
    "chest, adults": "chest",
    "chest, children": "chest",
    "rosendahl": "skin",
    "vidir": "skin",
}
"""Data sets that experience.py runs too, by its names: they are left out together. Others have their own."""
METRICS = {"balanced_accuracy": "balanced accuracy", "dice": "Dice"}


def converted(dataset: DataSet, studies: Sequence[Study], store: Store) -> Iterator[Row]:
    """A row for each study, method and column that has a cell."""
    known = store.rows()
    for column in COLUMNS:
        for method in by_rule(dataset.features):
            cells = [
                dict(cell)
                for key, cell in known.items()
                if key.rpartition("/")[0] == f"{dataset.name}/{column}/{method.name}" and "scores" in cell
            ]
            if cells and method.kind == "federated" and (column == NONE or method.private):
                for study in studies:
                    yield from _row(dataset, study, method, column, cells)


def _row(dataset: DataSet, study: Study, method: Method, column: str, cells: Sequence[dict[str, Any]]) -> Iterator[Row]:
    epsilon = None if column == NONE else float(column)
    trial = (method.exact if epsilon is None else method.private)[0]
    problem = study.problem(0)
    names = [f"{study.name}: {each.name}" for each in problem.targets if each.classes == problem.classes]
    scores = [cell["scores"][name] for cell in cells for name in names if name in cell["scores"]]
    if not scores:
        return
    federation = study.federation(problem.classes, method.algorithm, trial, epsilon or 8.0)
    settings = settings_for(federation)
    if dataset.features.cut:
        settings["model.features"] = float(narrowed(study, epsilon, of_sums=adds_up_classes(method))[1])
    yield Row(
        task=Described.of(
            federation.task,
            declared(problem.cohorts),
            epsilon,
            encoder=federation.model.encoder_sha256 or "builtin",
        ),
        settings=settings,
        metric=METRICS[dataset.metric],
        scores={shots: fmean(each[place] for each in scores) for place, shots in enumerate(SHOTS)},
        runs=len(cells),
        source=SOURCES.get(dataset.name, dataset.name.lower().replace(",", "").replace(" ", "-")),
    )


def main(arguments: list[str] | None = None) -> None:
    """Convert what is there."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--store", type=Path, required=True, help="folder of the leaderboard's results.json")
    parser.add_argument("--data", type=Path, help="folder of the data; default: the variable WARDROUND_DATA")
    parser.add_argument("--encoders", type=Path, metavar="DIR", help="as of leaderboard.py")
    parser.add_argument("--cache", type=Path, help="of encoded images; default: features/ in --out")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, store, rows = Console(stderr=True), Store(options.store), list[Row]()
    with ending(console, stopped="Stopped."):
        known = {key.split("/")[0] for key in store.rows()}
        sources = Sources(folder(options.data), options.encoders, options.cache or options.out / "features", console)
        for dataset in SETS:
            if dataset.name in known:
                rows += converted(dataset, dataset.studies(sources), store)
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out / CONVERTED, "".join(row.line() + "\n" for row in rows).encode(), mode=0o644)
        console.print(f"{len(rows)} rows in {options.out / CONVERTED}")


if __name__ == "__main__":
    main()
