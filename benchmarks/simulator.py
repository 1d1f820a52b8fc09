"""Overhead of the simulator a round, beyond the training itself.

Real hospitals answer over the in-process Grid: wire, policy, ledger in memory, aggregation, checkpoint on the disk.
Only the cohort's answer is an identity workload (zeros), so what is left is overhead. Prints JSON and a table.

    python benchmarks/simulator.py [--hospitals 10 50] [--rounds 20]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from wardround.questions import Loss, Statistics
from wardround.schedule import TRAINING
from wardround_client.examples import Examples
from wardround_simulation.exact import ExactCohort
from wardround_simulation.federation import changed, embedded
from wardround_simulation.simulate import Ready, Settings, local_rounds, open_hospitals, plan_sites
from wardround_simulation.watch import PlainWatch


class IdleCohort(ExactCohort):
    """Prepares nothing, and answers a gradient at once with zeros."""

    def __init__(self, examples: Examples, **rest: object) -> None:
        self._examples = examples

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """Float32 [P], zeros."""
        return torch.zeros_like(theta)

    def statistics(self) -> Statistics:
        """Zeros."""
        d = self._examples.summary.shape[1]
        return Statistics(torch.zeros(self._examples.classes), torch.zeros(d), torch.zeros(d))


def measure(hospitals: int, rounds: int) -> dict[str, float | int]:
    """Milliseconds a round and the process's greatest memory so far."""
    quiet = PlainWatch(Console(quiet=True))
    federation = changed(embedded(), rounds={"rounds": rounds}, task={"image_size_px": 32}, model={"features": 16})
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(federation, Path(), Path(folder) / "out", hospitals=hospitals, patients=(8, 8))
        ready: Ready = open_hospitals(settings, plan_sites(settings), quiet)
        times, started = [], time.perf_counter()
        for event, _ in local_rounds(dataclasses.replace(ready, open_cohort=IdleCohort)):
            if event["question"] in TRAINING:
                times.append(1000 * (time.perf_counter() - started))
            started = time.perf_counter()
    return {
        "hospitals": hospitals,
        "rounds": len(times),
        "median_ms": round(statistics.median(times), 2),
        "p95_ms": round(sorted(times)[int(0.95 * (len(times) - 1))], 2),
        "greatest_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hospitals", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    rows = [measure(hospitals, options.rounds) for hospitals in options.hospitals]
    print(json.dumps({"benchmark": "simulator", "threads": torch.get_num_threads(), "rows": rows}))
    table = Table(*rows[0], title="Simulator: overhead a round, identity workload")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(file=sys.stderr).print(table)


if __name__ == "__main__":
    main()
