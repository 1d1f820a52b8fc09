"""What a run's folder says about the run: the files, read into one frozen object.

events.jsonl        one event a line (required)
federation.toml     the agreement
simulation.json     only of a simulation: who the hospitals are, the seed, whether privacy was on
comparison.json     only of a simulation: k-shot accuracy at the hospital that took no part
membership.json     only of a simulation with --audit: what attacks on the released model and its deltas found
audit.json          only of a simulation with --audit: lower bounds on epsilon from canaries
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from wardround.config import Federation, load_federation
from wardround.errors import DataError
from wardround.labels import LABEL_KINDS
from wardround_server.events import (
    Event,
    Numbers,
    RoundEnded,
    RoundMissed,
    RunEnded,
    RunFailed,
    RunStarted,
    whole_lines,
)

Series = Mapping[str, Sequence[tuple[int, float]]]
"""Hospital -> [(training round, value)]."""


@dataclass(frozen=True)
class HospitalRow:
    """A line of the table of hospitals; None and "" where nobody knows.

    replies: rounds that it answered, of `rounds`. missing: which it did not, and why. cuts: which replies were
    shortened, and to what share of their length. apart: how far its deltas lay from what was made of all, in units of
    the median hospital; the mean over training rounds. answer: SHA-256 of its last answer. held_out: a simulation's
    hospital that took no part.
    """

    name: str
    declared_patients: int | None = None
    delta: float | None = None
    makers: str = ""
    epsilon: float | None = None
    replies: int = 0
    rounds: int = 0
    missing: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    apart: float | None = None
    answer: str = ""
    held_out: bool = False


@dataclass(frozen=True)
class RunRecord:
    """A run. outcome: how it ended; "unfinished" where nobody said. why: of a failure. planned: rounds in all.

    rounds: those that count. begun, ended: UTC, "" where nobody noted it.
    """

    name: str
    run: str
    federation: Federation | None
    digest: str
    outcome: Literal["done", "failed", "unfinished"]
    why: str
    rounds: tuple[RoundEnded, ...]
    planned: int
    begun: str
    ended: str
    privacy_on: bool
    simulated: bool
    synthetic: bool
    seed: int | None
    hospitals: tuple[HospitalRow, ...]
    epsilon: Series
    accuracy: Series
    comparison: Mapping[str, Any] | None
    membership: Mapping[str, Any] | None = None
    audit: Mapping[str, Any] | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def epsilon_max(self) -> float | None:
        """Epsilon after the last round, at the hospital that spent most."""
        spent = [points[-1][1] for points in self.epsilon.values() if points]
        return max(spent, default=None)

    @property
    def held_out(self) -> HospitalRow | None:
        """The hospital that took no part, if there was one."""
        return next((row for row in self.hospitals if row.held_out), None)

    @property
    def members(self) -> list[HospitalRow]:
        """Hospitals that were to take part."""
        return [row for row in self.hospitals if not row.held_out]

    @property
    def training(self) -> list[tuple[int, RoundEnded]]:
        """Training rounds, counted from 1."""
        return list(enumerate((event for event in self.rounds if event.trains), start=1))

    @property
    def shared_accuracy(self) -> list[tuple[int, float]]:
        """Training rounds with the shared model's accuracy after them: at the held-out hospital, or over all."""
        points = {number: event.accuracy for number, event in _counted(self.rounds) if event.accuracy is not None}
        return sorted(points.items())

    @property
    def score(self) -> str:
        """What all these accuracies are, for a reader."""
        agreed = LABEL_KINDS[self.federation.task.labels].evaluated if self.federation else RoundEnded().score
        return next((event.score for event in self.rounds if event.accuracy is not None), agreed)

    @property
    def measured(self) -> bool:
        """Whether anybody knows what the model is worth."""
        return bool(self.shared_accuracy or (self.comparison or {}).get("rows"))


def read_run(run_dir: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        DataError: no events, or a line that is not JSON (a last line that was cut off is passed over).
        ConfigError: federation.toml does not parse.
    """
    events = _events(run_dir / "events.jsonl")
    rounds = tuple(event for event in events if isinstance(event, RoundEnded))
    starts = [event for event in events if isinstance(event, RunStarted)]
    start = starts[-1] if starts else RunStarted()
    simulation = _json(run_dir / "simulation.json")
    facts = simulation or {}
    toml = run_dir / "federation.toml"
    federation = load_federation(toml, approved=True) if toml.exists() else None
    end = events[-1] if events else Event()
    done = end if isinstance(end, RunEnded) else RunEnded()
    times = [event.time for event in events if event.time]
    return RunRecord(
        name=federation.name if federation else start.federation or run_dir.name,
        run=start.run or run_dir.name,
        federation=federation,
        digest=start.digest or (federation.digest if federation else ""),
        outcome="done" if end is done else "failed" if isinstance(end, RunFailed) else "unfinished",
        why=end.message if isinstance(end, RunFailed) else "",
        rounds=rounds,
        planned=start.rounds or max((event.rounds for event in rounds), default=0),
        begun=min(times, default=""),
        ended=max(times, default=""),
        privacy_on="OFF" not in {facts.get("privacy"), *(event.privacy for event in events)},
        simulated=simulation is not None,
        synthetic=bool(facts.get("synthetic", False)),
        seed=facts.get("seed"),
        hospitals=tuple(_hospitals(events, start, [dict(h) for h in facts.get("hospitals", [])])),
        epsilon=_series(rounds, lambda event: event.epsilon),
        accuracy=_series(rounds, lambda event: event.accuracy_by_hospital),
        comparison=_json(run_dir / "comparison.json"),
        membership=_json(run_dir / "membership.json"),
        audit=_json(run_dir / "audit.json"),
        versions=done.versions or start.versions or facts.get("versions") or {},
        seconds=done.seconds or sum(event.seconds for event in rounds),
    )


def _events(path: Path) -> list[Event]:
    """Every event, each round once: a run that was resumed may have asked one twice, and the later one counts."""
    if not path.exists():
        raise DataError(
            f"{path} is missing, so there is nothing to report", do="name the folder of a run, for example runs/NAME"
        )
    kept: dict[object, Event] = {}
    for index, (_, event) in enumerate(whole_lines(path)):
        key = ("round", event.round) if isinstance(event, RoundEnded | RoundMissed) else ("other", index)
        kept.pop(key, None)
        kept[key] = event
    return list(kept.values())


def _json(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise DataError(f"{path} is not JSON", do="remove it; the report is written without it") from None
    return value if isinstance(value, dict) else None


def _counted(rounds: Sequence[RoundEnded]) -> Iterator[tuple[int, RoundEnded]]:
    """Each round with the number of training rounds until then."""
    training = 0
    for event in rounds:
        training += event.trains
        yield training, event


def _series(rounds: Sequence[RoundEnded], of: Callable[[RoundEnded], Numbers]) -> Series:
    """A later question of the same training round replaces."""
    series: dict[str, dict[int, float]] = {}
    for number, event in _counted(rounds):
        for name, value in of(event).items():
            if value is not None:
                series.setdefault(name, {})[number] = value
    return {name: sorted(points.items()) for name, points in series.items()}


def _hospitals(events: Sequence[Event], start: RunStarted, described: list[dict[str, Any]]) -> Iterator[HospitalRow]:
    known = {str(facts["name"]): facts for facts in described}
    asked = [event for event in events if isinstance(event, RoundEnded | RoundMissed)]
    ended = [event for event in asked if isinstance(event, RoundEnded)]
    names = dict.fromkeys([*known, *start.registered, *start.hospitals])
    for event in asked:
        names |= dict.fromkeys([*event.declared_patients, *event.rejected, *event.absent])
    epsilon = _series(ended, lambda event: event.epsilon)
    for name in names:
        facts, registered = known.get(name, {}), start.registered.get(name)
        declared = [event.declared_patients[name] for event in asked if event.declared_patients.get(name)]
        apart = [times for event in ended if (times := event.apart.get(name)) is not None]
        answers = [event.answers[name] for event in ended if name in event.answers]
        yield HospitalRow(
            name=name,
            declared_patients=facts.get("declared_patients")
            or next(iter(declared), registered.declared_patients if registered else None),
            delta=facts.get("delta") or (registered.delta if registered else None),
            makers=", ".join(str(facts[key]) for key in ("modality", "manufacturer") if facts.get(key)),
            epsilon=epsilon[name][-1][1] if epsilon.get(name) else None,
            replies=sum(name in event.declared_patients for event in asked),
            rounds=len(asked),
            missing=_missing(name, asked),
            cuts=tuple(
                f"round {event.round}: to {100 * factor:.3g} %"
                for event in asked
                if (factor := event.clipped.get(name)) is not None
            ),
            apart=fmean(apart) if apart else None,
            answer=answers[-1] if answers else "",
            held_out=not facts.get("took_part", True),
        )


def _missing(name: str, asked: Sequence[RoundEnded | RoundMissed]) -> tuple[str, ...]:
    """Which rounds lack a hospital's answer, and why; rounds in a row with the same reason are one."""
    reasons = []
    for event in asked:
        absent = "not connected" if name in event.absent else "not asked"
        why = event.rejected.get(name) or ("" if name in event.declared_patients else absent)
        reasons.append((event.round, why))
    lines = []
    for why, group in groupby(reasons, key=lambda pair: pair[1]):
        numbers = [number for number, _ in group]
        if why:
            rounds = f"round {numbers[0]}" if len(numbers) == 1 else f"rounds {numbers[0]} to {numbers[-1]}"
            lines.append(f"{rounds}: {why}")
    return tuple(lines)
