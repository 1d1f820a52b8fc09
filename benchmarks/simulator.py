"""The simulator beside `flwr run`: rounds a second, whole runs, memory; and how its memory grows with hospitals.

    python benchmarks/simulator.py [--hospitals 10 50] [--rounds 20] [--repeats 3] [--json]
    python benchmarks/simulator.py --memory 10 100 1000 [--rounds 20] [--json]

Each run has a process of its own and hospitals made anew, with privacy on. The contenders are interleaved:

    flwr run                    `wardround simulate --engine ray`: the same two apps under Flower's own simulation
    simulator, ledgers on disk  the same work in one process: under `flwr run` ledgers must lie in the hospitals' homes
    simulator                   `wardround simulate` as it is: ledgers in memory
    simulator, idle             the same with a cohort that answers zeros at once: what is left is not training

Rounds a second are of the later half of the rounds, when all processes are warm, by the coordinator's own clock. Whole
runs are without the making of the synthetic hospitals, which is the same for all. Memory is that of all processes of a
run, a shared page counted once, without the mapped files of Python and torch (Pss_Anon + Pss_Shmem), which the
machine holds once for everybody. It is read from Linux' /proc.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from processes import cpu_seconds, memory_kb
from tables import Row, hardware, markdown
from wardround.questions import Blocks, Loss, OfImages, Summand
from wardround_client.cohort.examples import Examples
from wardround_server.events import RoundEnded
from wardround_simulation.exact import ExactCohort
from wardround_simulation.federation import changed, embedded
from wardround_simulation.local import local_rounds
from wardround_simulation.opening import open_hospitals, plan_sites
from wardround_simulation.ray_engine import ray_rounds
from wardround_simulation.settings import Settings
from wardround_simulation.simulate import Rounds
from wardround_simulation.sites import READING
from wardround_simulation.watch import PlainWatch

POLL_S = 0.5
FLWR_RUN, SAME_WORK, SIMULATOR, IDLE = "flwr run", "simulator, ledgers on disk", "simulator", "simulator, idle"


class IdleCohort(ExactCohort):
    """Prepares nothing, and answers a gradient at once with zeros."""

    def __init__(self, examples: Examples, **rest: object) -> None:
        self._examples = examples

    def gradient(self, loss: Loss, theta: Tensor) -> Tensor:
        """Float32 [P], zeros."""
        return torch.zeros_like(theta)

    def sum(self, summands: Sequence[Summand], of_images: OfImages) -> Tensor:
        """Float32 [size], zeros."""
        return torch.zeros(Blocks(tuple(summands)).layout.size)


@dataclass(frozen=True)
class Contender:
    """What runs the rounds, where the ledgers lie, and whether hospitals only pretend to work."""

    rounds: Rounds
    ledgers_in_memory: bool = True
    idle: bool = False


CONTENDERS = {
    FLWR_RUN: Contender(ray_rounds, ledgers_in_memory=False),
    SAME_WORK: Contender(local_rounds, ledgers_in_memory=False),
    SIMULATOR: Contender(local_rounds),
    IDLE: Contender(local_rounds, idle=True),
}


@dataclass(frozen=True)
class Job:
    """One run. patients: of each hospital."""

    contender: str
    hospitals: int
    rounds: int
    patients: int


@dataclass(frozen=True)
class Learned:
    """What a run's own process found. seconds: of each training round, by the coordinator's clock.

    opened_kb: anonymous memory once all hospitals are open. rounds_kb: what the rounds added to it at most.
    """

    seconds: list[float]
    opened_kb: int
    rounds_kb: int


@dataclass(frozen=True)
class Run:
    """A run as seen from outside. wall_s, cpu_s: without the making of hospitals. memory_kb: the most at one moment."""

    learned: Learned
    wall_s: float
    cpu_s: float
    memory_kb: int

    @property
    def round_s(self) -> float:
        """The median of the later half of the training rounds."""
        return statistics.median(self.learned.seconds[len(self.learned.seconds) // 2 :])


class UntilMade(PlainWatch):
    """Says nothing, but calls when the hospitals' images are all read."""

    def __init__(self, made: Callable[[], None]) -> None:
        super().__init__(Console(quiet=True))
        self._made = made

    def step(self, stage: str, done: int, total: int) -> None:
        """The last step of reading ends the making."""
        if stage == READING and done == total:
            self._made()


def learn(job: Job, sender: Connection) -> None:
    """In a process of its own: make the hospitals, send the seconds that took, run the rounds, send a Learned."""
    torch.set_num_threads(1)
    contender = CONTENDERS[job.contender]
    federation = changed(embedded(), rounds={"rounds": job.rounds})
    with tempfile.TemporaryDirectory() as folder:
        out, patients = Path(folder) / "out", (job.patients, job.patients)
        settings = Settings(federation, Path(), out, hospitals=job.hospitals, patients=patients)
        begun = time.perf_counter()
        watch = UntilMade(lambda: sender.send(time.perf_counter() - begun))
        ready = open_hospitals(settings, plan_sites(settings), watch, ledgers_in_memory=contender.ledgers_in_memory)
        if contender.idle:
            ready = replace(ready, open_cohort=IdleCohort)
        before = forgotten()
        events = [event for event, _ in contender.rounds(ready)]
        seconds = [event.seconds for event in events if isinstance(event, RoundEnded) and event.trains]
        added = status_kb()["VmHWM"] - before["VmRSS"]
    sender.send(Learned(seconds, before["RssAnon"], added))


def forgotten() -> dict[str, int]:
    """What this process holds now, freed memory given back and the greatest so far forgotten."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    return status_kb()


def status_kb() -> dict[str, int]:
    """The lines of /proc/self/status that are in kB."""
    lines = [line.split() for line in Path("/proc/self/status").read_text().splitlines() if line.endswith(" kB")]
    return {name.removesuffix(":"): int(value) for name, value, _ in lines}


def watched(job: Job) -> Run:
    """Run a job in a fresh process, and look at it and all that it starts twice a second."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=learn, args=(job, sender))
    started = time.perf_counter()
    process.start()
    sender.close()
    try:
        assert process.pid is not None
        making: float = receiver.recv()
        spent, memory = cpu_seconds(process.pid), memory_kb(process.pid)
        before = sum(spent.values())
        while not receiver.poll(POLL_S):
            spent |= cpu_seconds(process.pid)
            memory = max(memory, memory_kb(process.pid))
        learned: Learned = receiver.recv()
        wall = time.perf_counter() - started - making
    except EOFError:
        raise SystemExit(f"{job} ended early: its own words are above") from None
    process.join()
    return Run(learned, wall, sum(spent.values()) - before, max(memory, learned.opened_kb))


def compare(options: argparse.Namespace, contenders: Sequence[str], say: Console) -> list[Row]:
    """Medians over the repeats, a row a contender and number of hospitals."""
    runs: dict[tuple[int, str], list[Run]] = {}
    for repeat in range(options.repeats):
        for hospitals in options.hospitals:
            for contender in contenders:
                run = watched(Job(contender, hospitals, options.rounds, options.patients))
                runs.setdefault((hospitals, contender), []).append(run)
                say.print(
                    f"{repeat + 1} of {options.repeats}: {hospitals} hospitals, {contender}: "
                    f"{1000 * run.round_s:.0f} ms a round, {run.wall_s:.1f} s in all, {run.memory_kb >> 10} MB"
                )
    return [
        medians(hospitals, contender, each, runs.get((hospitals, FLWR_RUN)))
        for (hospitals, contender), each in runs.items()
    ]


def medians(hospitals: int, contender: str, runs: Sequence[Run], peer: Sequence[Run] | None) -> Row:
    """A row of the table; `times_...` are medians of ratios to the peer's run of the same repeat, more is better."""
    row: Row = {
        "hospitals": hospitals,
        "contender": contender,
        "round_ms": round(1000 * statistics.median(run.round_s for run in runs), 1),
        "rounds_per_s": round(1 / statistics.median(run.round_s for run in runs), 2),
        "wall_s": round(statistics.median(run.wall_s for run in runs), 1),
        "cpu_s": round(statistics.median(run.cpu_s for run in runs), 1),
        "memory_mb": round(statistics.median(run.memory_kb for run in runs) / 1024),
        "runs": [{**asdict(run), "round_s": run.round_s} for run in runs],
    }
    if peer is not None:
        pairs = list(zip(runs, peer, strict=True))
        row["times_rounds_per_s"] = round(statistics.median(b.round_s / a.round_s for a, b in pairs), 2)
        row["times_faster"] = round(statistics.median(b.wall_s / a.wall_s for a, b in pairs), 2)
    return row


def grow(options: argparse.Namespace, say: Console) -> list[Row]:
    """The simulator's memory with each number of hospitals, as it comes."""
    found: dict[int, Learned] = {}
    for hospitals in options.memory:
        found[hospitals] = learned = watched(Job(SIMULATOR, hospitals, options.rounds, options.patients)).learned
        say.print(f"{hospitals} hospitals: {learned.opened_kb} kB open, the rounds add {learned.rounds_kb} kB")
    return growth(found)


def growth(found: Mapping[int, Learned]) -> list[Row]:
    """What so many hospitals hold, and what each adds that the row before has not."""
    rows: list[Row] = [
        {
            "hospitals": hospitals,
            "opened_mb": round(learned.opened_kb / 1024, 1),
            "rounds_mb": round(learned.rounds_kb / 1024, 1),
            "round_ms": round(1000 * statistics.median(learned.seconds), 1),
        }
        for hospitals, learned in found.items()
    ]
    for row, ((fewer, before), (hospitals, learned)) in zip(rows[1:], pairwise(found.items()), strict=True):
        row["opened_kb_each"] = round((learned.opened_kb - before.opened_kb) / (hospitals - fewer), 1)
        row["rounds_kb_each"] = round((learned.rounds_kb - before.rounds_kb) / (hospitals - fewer), 1)
    return rows


SPEED = {
    "hospitals": "hospitals",
    "contender": "contender",
    "rounds_per_s": "rounds a second",
    "times_rounds_per_s": "times flwr run",
    "wall_s": "whole run, s",
    "times_faster": "times faster",
    "cpu_s": "processor, s",
    "memory_mb": "memory, MB",
}
GROWTH = {
    "hospitals": "hospitals",
    "opened_mb": "all open, MB",
    "opened_kb_each": "a further hospital, kB",
    "rounds_mb": "the rounds add, MB",
    "rounds_kb_each": "a further hospital, kB",
    "round_ms": "ms a round",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Rounds a second and memory of the simulator, beside `flwr run`.")
    parser.add_argument("--hospitals", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--patients", type=int, help="of each hospital [default: 20, and 4 with --memory]")
    parser.add_argument("--memory", type=int, nargs="+", metavar="HOSPITALS", help="how memory grows, instead")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    options.patients = options.patients or (4 if options.memory else 20)
    torch.set_num_threads(1)
    say, contenders = Console(stderr=True, markup=False, highlight=False, soft_wrap=True), list(CONTENDERS)
    if not options.memory and importlib.util.find_spec("ray") is None:
        contenders.remove(FLWR_RUN)
        say.print("flwr run is left out: it needs ray, which is not installed (pip install 'wardround[ray]').")
    rows = grow(options, say) if options.memory else compare(options, contenders, say)
    told = {"benchmark": "simulator", "hardware": hardware(), "rounds": options.rounds, "patients": options.patients}
    if options.json:
        print(json.dumps(told | {"rows": rows}))
        return
    print(", ".join(f"{name}: {value}" for name, value in told.items()))
    print(markdown(rows, GROWTH if options.memory else SPEED), end="")


if __name__ == "__main__":
    main()
