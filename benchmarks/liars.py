"""What hospitals that lie do to a federation, under each rule: balanced accuracy where nobody learned from.

    python benchmarks/liars.py                   # everything, about half an hour of one core
    python benchmarks/liars.py --seeds 3 --rules mean median

Hospitals are synthetic (`wardround_simulation.phantoms`); 20 are made, and three more that take no part, where the
shared model is judged as it is. A seed draws which hospitals take part, which of them lie, and noise. Liars know all
honest replies of the round, lie in every round, statistics included, and each reply is as long as the coordinator lets
pass at most:

    flip     the opposite of what the hospital would have sent
    boosted  the opposite of the honest mean, as long as the bound allows
    random   a random direction, as long as the bound allows
    little   the honest mean, moved against itself by 1.5 honest standard deviations in each number (Baruch, Baruch and
             Goldberg, "A Little Is Enough", 2019; their own formula gives 0 for eight hospitals)

Numbers are kept as soon as they are known; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from rich.console import Console

from federated import RUN, ArrayHospital, InMemory
from tables import TABLE, Store, ending, estimate, hardware, markdown
from wardround.config import Federation
from wardround.errors import WardroundError
from wardround.files import write_atomically
from wardround.models import Model, build_model
from wardround.rules import RULES
from wardround.schedule import Schedule
from wardround.wire import RoundReply, Vector, peek_request
from wardround_client.cohort.examples import Examples
from wardround_client.personal.learner import Learner
from wardround_server.bounds import Bounds
from wardround_server.events import Event, RoundEnded
from wardround_server.rounds import run
from wardround_simulation.federation import changed, embedded, with_algorithm
from wardround_simulation.in_memory import InMemoryCheckpointer
from wardround_simulation.opening import open_hospitals
from wardround_simulation.phantoms import make_profiles
from wardround_simulation.settings import Settings
from wardround_simulation.sites import synthetic_sites

RESULTS = Path(__file__).parent / "results" / "liars"
ATTACKS = ("flip", "boosted", "random", "little")
CROWDS = {"0/8": (8, 0), "1/8": (8, 1), "2/8": (8, 2), "0/20": (20, 0), "4/20": (20, 4)}
"""Hospitals, and liars among them."""
COLUMNS_OF = ("private", "exact")
MANY = 8
OUTSIDE = 3
ABSENT = "absent"  # what the others can do without the liars: no rule can be expected to do better
DEVIATIONS = 1.5  # of "little"
JUST_WITHIN = 1 - 1e-4
COLUMNS = {
    "rule": "rule",
    "nobody": "nobody lies",
    **{attack: attack for attack in ATTACKS},
    "worst": "worst, against nobody",
}


@dataclass(frozen=True)
class Liars:
    """Some hospitals of a transport, and what they send instead."""

    honest: InMemory
    names: frozenset[str]
    attack: str
    bounds: Bounds
    schedule: Schedule
    model: Model
    random: np.random.Generator

    def hospitals(self) -> Sequence[str]:
        """All of them."""
        return self.honest.hospitals()

    def declared_patients(self, name: str) -> int | None:
        """Nobody lies about this: it is registered."""
        return self.honest.declared_patients(name)

    def exchange(
        self, requests: Mapping[str, bytes], deadline_s: float
    ) -> Iterator[tuple[str, bytes | WardroundError]]:
        """Honest replies, then lies."""
        plan = self.schedule[peek_request(next(iter(requests.values()))).round]
        replies = {}
        for name, outcome in self.honest.exchange(requests, deadline_s):
            assert isinstance(outcome, bytes)
            declared = self.honest.declared_patients(name) or 1
            size = sum(numbers for numbers, _ in self.bounds.parts(plan, name, declared))
            replies[name] = RoundReply.unpack(outcome, run=RUN, round=plan.number, size=size)
        truth = np.stack([reply.answer for name, reply in replies.items() if name not in self.names]).astype(np.float64)
        for name, reply in replies.items():
            if name in self.names:
                if self.attack == ABSENT:
                    continue
                parts = self.bounds.parts(plan, name, reply.header.declared_patients)
                lie = _lie(self.attack, truth, reply.answer, self.random)
                if self.attack in ("boosted", "random"):
                    lie = _stretched(lie, parts)
                reply = RoundReply(reply.header, lie.astype(np.float32))
            yield name, reply.pack()


def _lie(attack: str, truth: Any, own: Vector, random: np.random.Generator) -> Any:
    """float64 [size]. truth: the honest answers [hospitals, size]. own: what the liar would have answered."""
    match attack:
        case "flip":
            return -own.astype(np.float64)
        case "boosted":
            return -truth.mean(0)
        case "random":
            return random.standard_normal(len(own))
        case _:
            return truth.mean(0) - DEVIATIONS * np.sign(truth.mean(0)) * truth.std(0)


def _stretched(lie: Any, parts: Sequence[tuple[int, float]]) -> Any:
    """Each part as long as it may be."""
    stretched, start = [], 0
    for size, longest in parts:
        part = lie[start : start + size]
        stretched.append(part * (JUST_WITHIN * longest / max(float(np.linalg.norm(part)), 1e-300)))
        start += size
    return np.concatenate(stretched)


@dataclass(frozen=True)
class Case:
    """One run."""

    algorithm: str
    private: bool
    hospitals: int
    liars: int
    attack: str
    rule: str
    seed: int

    @property
    def key(self) -> str:
        """In the store."""
        private = "private" if self.private else "exact"
        return f"{self.algorithm}/{private}/{self.hospitals}/{self.liars}/{self.attack}/{self.rule}/{self.seed}"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """All runs, seed by seed, so that a first table is there soon; the large federation has every second seed."""
    rules: Sequence[str] = options.rules
    for seed, name, column, crowd, rule in product(
        range(options.seeds), options.algorithms, options.columns, options.crowds, rules
    ):
        private, (hospitals, liars) = column == "private", CROWDS[crowd]
        if hospitals > MANY and seed % 2:
            continue
        if liars and rule == rules[0]:
            yield Case(name, private, hospitals, liars, ABSENT, "mean", seed)
        for attack in ATTACKS if liars else ("nobody",):
            yield Case(name, private, hospitals, liars, attack, rule, seed)


def played(case: Case, federation: Federation, everybody: Mapping[str, Examples]) -> dict[str, Any]:
    """Run it -> the row to keep."""
    started_s = time.process_time()
    federation = changed(federation, outer={"rule": case.rule})
    model = _model(federation)
    random = np.random.default_rng([case.seed, case.hospitals])  # the same hospitals and liars whatever the rule
    names = list(everybody)
    chosen = sorted(random.choice(names[:-OUTSIDE], case.hospitals, replace=False).tolist())
    liars = frozenset(random.choice(chosen, case.liars, replace=False).tolist())
    hospitals = [ArrayHospital.of(name, everybody[name], federation, model, private=case.private) for name in chosen]
    schedule = Schedule.of(federation)
    bounds = Bounds(federation, schedule, model)
    transport = Liars(InMemory(hospitals), liars, case.attack, bounds, schedule, model, random)
    checkpointer = InMemoryCheckpointer()
    events = list(run(federation, model, transport, checkpointer, run_name=RUN))
    rounds = [event for event in events if isinstance(event, RoundEnded)]
    state = checkpointer.state
    assert state is not None
    learner = Learner.of(federation, model, state.theta, state.shift, state.scale)
    scores = [learner.score(learner.unadapted(), everybody[name]) for name in names[-OUTSIDE:]]
    return {
        "accuracy": round(fmean(scores), 5),
        "honest_clipped": sum(len(set(event.clipped) - liars) for event in rounds),
        "rejected": sum(len(event.rejected) for event in rounds),
        "apart": _apart(rounds, liars),
        "cpu_s": round(time.process_time() - started_s, 2),
    }


def _model(federation: Federation) -> Model:
    return federation.algorithm.extended(build_model(federation))


def _apart(rounds: Sequence[RoundEnded], liars: frozenset[str]) -> dict[str, float]:
    """How far replies lay from the result, in medians: the mean over rounds of liars and of others."""
    found: dict[bool, list[float]] = {True: [], False: []}
    for event in rounds:
        for name, apart in event.apart.items():
            found[name in liars].append(apart)
    return {("liars" if who else "others"): round(fmean(each), 2) for who, each in found.items() if each}


def federated(algorithm: str) -> Federation:
    """The demo's agreement."""
    return embedded() if algorithm == "reptile" else with_algorithm(embedded(), algorithm)


class Quiet:
    """A simulation's `Watch` that says which stage there is, and no more."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def begin(self, title: str, *, privacy_on: bool, rounds: int) -> None:
        """Nothing."""

    def step(self, stage: str, done: int, total: int) -> None:
        """Which hospital is being made."""
        self._console.print(f"{stage}: {done} of {total}")

    def note(self, text: str) -> None:
        """Nothing."""

    def event(self, event: Event) -> None:
        """Nothing."""


def examples(cache: Path, console: Console) -> dict[str, Examples]:
    """Hospitals by name, encoded; the last OUTSIDE take no part. They are made once, which takes minutes."""
    if not cache.exists():
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "liars"
            profiles = make_profiles(max(hospitals for hospitals, _ in CROWDS.values()) + OUTSIDE, seed=0)
            settings = Settings(federation=embedded(), base=Path(), out=out)
            ready = open_hospitals(settings, synthetic_sites(profiles, out), Quiet(console))
            made = {
                site.name: hospital.examples(agreement)
                for site, hospital, agreement in zip(ready.sites, ready.hospitals, ready.agreements, strict=True)
            }
        cache.parent.mkdir(parents=True, exist_ok=True)
        torch.save({name: (e.z, e.y, e.patient, e.summary, e.classes) for name, e in made.items()}, cache)
    loaded = torch.load(cache, weights_only=True)
    return {
        name: Examples(z=z, y=y, patient=patient, summary=summary, classes=classes)
        for name, (z, y, patient, summary, classes) in loaded.items()
    }


def table(store: Store) -> str:
    """All that is known, as Markdown."""
    found: dict[tuple[str, ...], list[float]] = {}
    for key, row in store.rows().items():
        *where, _ = key.split("/")
        found.setdefault(tuple(where), []).append(float(str(row["accuracy"])))
    parts = []
    groups = sorted({where[:4] for where in found if where[3] != "0"})
    for algorithm, private, hospitals, liars in groups:
        rows = []
        for rule in RULES.built_in:
            honest = found.get((algorithm, private, hospitals, "0", "nobody", rule), [])
            row = {"rule": rule, "nobody": _shown(honest)}
            for attack in ATTACKS:
                row[attack] = _shown(found.get((algorithm, private, hospitals, liars, attack, rule), []))
            means = [
                fmean(values)
                for attack in ATTACKS
                if (values := found.get((algorithm, private, hospitals, liars, attack, rule)))
            ]
            if honest and len(means) == len(ATTACKS):
                row["worst"] = f"{100 * (min(means) - fmean(honest)):+.1f}"
                rows.append(row)
        alone = _shown(found.get((algorithm, private, hospitals, liars, ABSENT, "mean"), []))
        title = f"{algorithm}, {'epsilon 8' if private == 'private' else 'not private'}: {liars} of {hospitals} lie"
        title += f" (the mean of the others alone: {alone})"
        parts.append(f"**{title}**\n\n{markdown(rows, COLUMNS)}")
    return "\n".join(parts)


def _shown(values: Sequence[float]) -> str:
    """The mean; with its interval from three seeds on, since of two it says nothing."""
    if not values:
        return ""
    return str(estimate(values)) if len(values) > 2 else f"{100 * fmean(values):.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rules", nargs="+", choices=RULES.built_in, default=list(RULES.built_in), metavar="RULE")
    parser.add_argument("--crowds", nargs="+", choices=CROWDS, default=list(CROWDS), metavar="L/N", help="L of N lie")
    parser.add_argument("--columns", nargs="+", choices=COLUMNS_OF, default=list(COLUMNS_OF))
    parser.add_argument("--algorithms", nargs="+", default=["reptile"], metavar="NAME")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, help="of encoded images; default: features/ in --out")
    parser.add_argument("--json", action="store_true", help="a JSON object a run instead of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    console, store = Console(stderr=True), Store(options.out)
    with ending(console, stopped="Stopped. The same command goes on."):
        known = store.rows()
        missing = [case for case in cases(options) if case.key not in known]
        everybody = examples(options.cache or options.out / "features" / "phantoms.pt", console) if missing else {}
        for number, case in enumerate(missing, start=1):
            row = played(case, federated(case.algorithm), everybody)
            store.put(case.key, row)
            if options.json:
                print(json.dumps({"case": case.key, **row}), flush=True)
            elif number % 10 == 0:
                console.print(f"{number} of {len(missing)}: {case.key}")
        options.out.mkdir(parents=True, exist_ok=True)
        write_atomically(options.out / TABLE, (table(store) + f"\n{hardware()}\n").encode())
    if not options.json:
        print((options.out / TABLE).read_text(), end="")


if __name__ == "__main__":
    main()
