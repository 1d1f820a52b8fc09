"""Mutants through the real worker pool, and what became of them, counted."""

from __future__ import annotations

import resource
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutants import mutant
from tests.fuzz.oracle import RECIPE, Whole, available, difference

from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Rejection
from wardround_client.intake.workers import CRASHED, NO_MEMORY, TOO_SLOW, outcomes

_AT_ONCE = 200


@dataclass
class Figures:
    """What became of the mutants. ended: the numbers of those that ended a process, or would not come to an end.
    different: by number, what an independent decoder shows instead. compared: shown by both.
    """

    mutants: int = 0
    used: int = 0
    compared: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    ended: dict[int, str] = field(default_factory=dict)
    different: dict[int, str] = field(default_factory=dict)
    seconds: float = 0.0
    slowest_s: float = 0.0
    greatest_mib: float = 0.0


def run(
    numbers: Sequence[int],
    seed: int,
    files: Sequence[Path],
    *,
    workers: int = 2,
    patience_s: float = 20,
    keep: Path | None = None,
) -> Figures:
    """Make the mutants of these numbers, take them in, and compare what was accepted."""
    figures = Figures()
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        for some in _portions(numbers):
            paths = {number: Path(name) / f"{number}.dcm" for number in some}
            for number, path in paths.items():
                path.write_bytes(mutant(number, seed, files))
            _take_in(paths, figures, workers, patience_s, keep)
            for path in paths.values():
                path.unlink()
    figures.seconds = time.monotonic() - started
    figures.greatest_mib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return figures


def _portions(numbers: Sequence[int]) -> Iterator[Sequence[int]]:
    for start in range(0, len(numbers), _AT_ONCE):
        yield numbers[start : start + _AT_ONCE]


def _take_in(paths: dict[int, Path], figures: Figures, workers: int, patience_s: float, keep: Path | None) -> None:
    items = {str(path): number for number, path in paths.items()}
    before = time.monotonic()
    for item, outcome in outcomes(
        (Whole(path) for path in paths.values()), RECIPE, Pseudonyms(bytes(32)), workers, patience_s=patience_s
    ):
        now = time.monotonic()
        figures.slowest_s, before = max(figures.slowest_s, now - before), now
        number = items[item.name]
        figures.mutants += 1
        if isinstance(outcome, Rejection):
            figures.refused[outcome.reason] += 1
            if outcome in (CRASHED, TOO_SLOW, NO_MEMORY):
                figures.ended[number] = outcome.reason
        else:
            figures.used += 1
            wrong = difference(item.path, outcome.rows[0]) if available() else ""
            before = time.monotonic()
            figures.compared += wrong is not None
            if wrong:
                figures.different[number] = wrong
        if keep is not None and (number in figures.ended or number in figures.different):
            keep.mkdir(parents=True, exist_ok=True)
            shutil.copy(item.path, keep / f"{number}.dcm")
