"""The leaderboard: every method on every public data set, at settings that a public rule gives.

    python benchmarks/leaderboard.py [--data DIR] [--set NAME ...] [--algorithm NAME ...] [--epsilon none 8 3 1]
                                     [--seeds 3] [--minutes M] [--encoders DIR] [--cache DIR] [--out DIR] [--page DIR]

Rows are those of rows.py: every method that comes with wardround, found by its name, FedAvg with plain fine-tuning, its
model without adaptation, local training alone, all patients in one place, and the nearest mean of raw pixels. Columns
are the data sets of leaderboard_sets.py, at 1, 5 and 20 patients a class. Settings are those of public_rule.py: nothing
is tuned on a patient. A value is kept as soon as it is known, so that the same command goes on where it was stopped;
what a method cannot do is kept with the reason. It writes leaderboard.md and its pictures.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from encoded import narrowed
from hospitals import Measurement, Study
from leaderboard_page import write
from leaderboard_sets import SETS, DataSet, Sources
from public_rule import adds_up_classes, by_rule
from real_data import folder
from rows import MAIN, NONE, Row
from study import RESULTS
from tables import Store, ending, keep_freed_memory
from wardround.errors import ConfigError, WardroundError

SHOTS = (1, 5, 20)
COLUMNS = (NONE, "8", "3", "1")
PAGE = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Cell:
    """One method on one data set with one epsilon and one seed."""

    dataset: DataSet
    column: str
    row: Row
    seed: int

    @property
    def key(self) -> str:
        """In the store."""
        return f"{self.dataset.name}/{self.column}/{self.row.name}/{self.seed}"

    @property
    def rule(self) -> str:
        """Eight letters that change with the settings."""
        said = json.dumps([asdict(each) for each in (*self.row.exact, *self.row.private)], sort_keys=True)
        return hashlib.sha256(said.encode()).hexdigest()[:8]

    def measured(self, studies: Sequence[Study], store: Store) -> dict[str, Any]:
        """What is kept: scores by target, one for each of SHOTS, or the reason why there are none."""
        started_s = time.process_time()
        epsilon = None if self.column == NONE else float(self.column)
        trial = (self.row.exact if epsilon is None else self.row.private)[0]
        found: dict[str, Any] = {"rule": self.rule}
        every = [Measurement(self._seen(study, epsilon), self.row, self.column, store) for study in studies]
        if self.row.kind != "floor" and (reason := next(filter(None, (each.unable(trial) for each in every)), "")):
            found["reason"] = reason
        else:
            found["scores"] = {
                f"{each.study.name}: {name}": [round(by[str(shots)][self.dataset.metric], 4) for shots in SHOTS]
                for each in every
                for name, by in each.scores(self.seed, trial, None).items()
            }
        return found | {"cpu_s": round(time.process_time() - started_s, 1)}

    def _seen(self, study: Study, epsilon: float | None) -> Study:
        """At our shots, and through as many components as the rule says."""
        study = replace(study, shots=SHOTS)
        cut = self.dataset.features.cut and self.row.kind != "floor"
        return narrowed(study, epsilon, of_sums=adds_up_classes(self.row))[0] if cut else study


def cells(options: argparse.Namespace) -> list[list[Cell]]:
    """All that are wanted, in the order in which they are measured, in groups of one epsilon and data set: main rows
    of all sets first, so that there is soon a page of use. Raises: ConfigError.
    """
    chosen = _named(options.set, [each.name for each in SETS], "--set")
    wanted = _named(options.algorithm, [row.name for row in by_rule(SETS[0].features)], "--algorithm")
    return [
        [
            Cell(dataset, column, row, seed)
            for row in by_rule(dataset.features)
            if row.name in wanted and (row.name in MAIN) is first and (column == NONE or row.private)
            for seed in range(options.seeds)
        ]
        for first in (True, False)
        for column in options.epsilon
        for dataset in SETS
        if dataset.name in chosen
    ]


def _named(said: Sequence[str] | None, names: Sequence[str], option: str) -> list[str]:
    """Those of these names, or whose names hold one of these parts; all, where nothing is said."""
    found = {
        part: [name for name in names if name == part] or [name for name in names if part in name]
        for part in said or ()
    }
    for part, those in found.items():
        if not those:
            raise ConfigError(f"{option} {part!r} names nothing", allowed=", ".join(names), do="correct it")
    return [name for name in names if said is None or any(name in those for those in found.values())]


def missing(wanted: Sequence[Cell], store: Store) -> Iterator[Cell]:
    """Those that are not known with these settings."""
    known = store.rows()
    for cell in wanted:
        if known.get(cell.key, {}).get("rule") != cell.rule:
            yield cell


def fill(options: argparse.Namespace, store: Store, console: Console) -> None:
    """Measure what is missing, for as long as the options allow."""
    wanted = cells(options)
    sources = Sources(folder(options.data), options.encoders, options.cache or options.out / "features", console)
    ends = time.process_time() + 60 * options.minutes
    bar = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*bar, console=console, transient=True) as progress:
        task = progress.add_task("", total=sum(map(len, wanted)))
        for every in wanted:
            todo = list(missing(every, store))
            progress.advance(task, len(every) - len(todo))
            if not todo or time.process_time() >= ends:
                continue
            what = f"{todo[0].dataset.name}, epsilon {todo[0].column}"
            progress.update(task, description=f"{what}: reading")
            studies = todo[0].dataset.studies(sources)
            for cell in todo:
                if time.process_time() >= ends:
                    break
                progress.update(task, description=f"{what}, {cell.row.name}")
                _measure(cell, studies, store, console)
                progress.advance(task)
            write(store, options.page)
            if not console.is_terminal:
                left = sum(1 for _ in missing(every, store))
                console.print(f"{what}: {len(every) - left} of {len(every)} cells", highlight=False)


def _measure(cell: Cell, studies: Sequence[Study], store: Store, console: Console) -> None:
    """One cell. A method that breaks leaves its cell missing, and the others go on."""
    try:
        store.put(cell.key, cell.measured(studies, store))
    except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError, WardroundError) as error:
        console.print(f"{cell.key}: {type(error).__name__}: {error}", markup=False, highlight=False)


def main(arguments: list[str] | None = None) -> None:
    """Measure what is missing, and write the page."""
    parser = argparse.ArgumentParser(description="Every method on every public data set, at settings of a public rule.")
    parser.add_argument("--data", type=Path, help="folder of the data; default: the variable WARDROUND_DATA")
    parser.add_argument("--set", nargs="+", metavar="NAME", help="data sets, or parts of their names; default: all")
    parser.add_argument("--algorithm", nargs="+", metavar="NAME", help="rows, or parts of their names; default: all")
    parser.add_argument("--epsilon", nargs="+", default=COLUMNS, choices=COLUMNS, metavar="E", help='"none", 8, 3, 1')
    parser.add_argument("--seeds", type=int, default=3, help="at least 2 (3)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="of this processor; 0: the page alone")
    parser.add_argument("--encoders", type=Path, metavar="DIR", help="skin, chest, small, outlines .safetensors")
    parser.add_argument("--cache", type=Path, help="of encoded images; default: features/ in --out")
    parser.add_argument("--out", type=Path, default=RESULTS / "leaderboard")
    parser.add_argument("--page", type=Path, default=PAGE, help="folder of leaderboard.md and its pictures (docs)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_freed_memory()
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        if options.seeds < 2:
            raise ConfigError(f"--seeds {options.seeds}", allowed="at least 2: an interval is over seeds")
        if options.minutes > 0:
            fill(options, store, console)
        write(store, options.page)


if __name__ == "__main__":
    main()
