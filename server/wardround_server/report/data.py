"""What a run's folder says about the run: the files, read into one frozen object.

events.jsonl        one object a line, as `--json` prints them (required)
federation.toml     the agreement
simulation.json     only of a simulation: who the hospitals are, the seed, whether privacy was on
comparison.json     only of a simulation: k-shot accuracy at the hospital that took no part
membership.json     only of a simulation with --audit: what attacks on the released model and its deltas found
audit.json          only of a simulation with --audit: lower bounds on epsilon from canaries
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from wardround.config import Federation, load_federation
from wardround.errors import DataError
from wardround.schedule import TRAINING

Event = Mapping[str, Any]


@dataclass(frozen=True)
class HospitalRow:
    """A line of the table of hospitals; None and "" where nobody knows.

    cuts: which replies were shortened, and to what share of their length. apart: how far its deltas lay from what was
    made of all, in units of the median hospital; the mean over training rounds.
    """

    name: str
    declared_patients: int | None = None
    delta: float | None = None
    makers: str = ""
    epsilon: float | None = None
    replies: int = 0
    rejections: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    apart: float | None = None
    took_part: bool = True


@dataclass(frozen=True)
class RunRecord:
    """A run. series: hospital -> [(training round, value)]."""

    name: str
    federation: Federation | None
    rounds: tuple[Event, ...]
    privacy_on: bool
    simulated: bool
    synthetic: bool
    seed: int | None
    hospitals: tuple[HospitalRow, ...]
    epsilon: Mapping[str, list[tuple[int, float]]]
    accuracy: Mapping[str, list[tuple[int, float]]]
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
        return next((row for row in self.hospitals if not row.took_part), None)

    @property
    def training(self) -> list[tuple[int, Event]]:
        """Training rounds, counted from 1."""
        return _numbered(self.rounds)

    @property
    def shared_accuracy(self) -> list[tuple[int, float]]:
        """Training rounds with the shared model's accuracy after them: at the held-out hospital, or over all."""
        points: dict[int, float] = {}
        training = 0
        for event in self.rounds:
            training += event.get("question", "gradient") in TRAINING
            if isinstance(event.get("accuracy"), int | float):
                points[training] = float(event["accuracy"])
        return sorted(points.items())


def read_run(run_dir: Path) -> RunRecord:
    """Read a run's folder.

    Raises:
        DataError: no events, or a line that is not JSON (a last line that was cut off is passed over).
        ConfigError: federation.toml does not parse.
    """
    events = _events(run_dir / "events.jsonl")
    rounds = tuple(e for e in events if e.get("event") == "round")
    simulation = _json(run_dir / "simulation.json")
    described = [dict(h) for h in (simulation or {}).get("hospitals", [])]
    toml = run_dir / "federation.toml"
    federation = load_federation(toml) if toml.exists() else None
    done: Event = next((e for e in reversed(events) if e.get("event") == "done"), {})
    return RunRecord(
        name=federation.name if federation else run_dir.name,
        federation=federation,
        rounds=rounds,
        privacy_on=not any(e.get("privacy") == "OFF" for e in events)
        and (simulation or {}).get("privacy", "ON") != "OFF",
        simulated=simulation is not None,
        synthetic=bool((simulation or {}).get("synthetic", False)),
        seed=(simulation or {}).get("seed"),
        hospitals=tuple(_hospitals(rounds, described)),
        epsilon=_series(rounds, "epsilon"),
        accuracy=_series(rounds, "accuracy_by_hospital") or _series(rounds, "accuracies"),
        comparison=_json(run_dir / "comparison.json"),
        membership=_json(run_dir / "membership.json"),
        audit=_json(run_dir / "audit.json"),
        versions=done.get("versions") or (simulation or {}).get("versions") or {},
        seconds=float(done.get("seconds") or sum(float(e.get("seconds") or 0) for e in rounds)),
    )


def _events(path: Path) -> list[Event]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing, so there is nothing to report", do="name the folder of a run, for example runs/NAME"
        ) from None
    events: list[Event] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError:
            if number == len(lines):  # the run was killed while it wrote
                break
            raise DataError(f"{path}, line {number} is not JSON", do="restore the file, or remove that line") from None
        if isinstance(event, dict):
            events.append(event)
    return _last_of_each_round(events)


def _last_of_each_round(events: list[Event]) -> list[Event]:
    """A run that was resumed may have written a round twice: the later one counts."""
    kept: dict[object, Event] = {}
    for index, event in enumerate(events):
        key: object = ("round", event.get("round")) if event.get("event") == "round" else ("other", index)
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


def _numbered(rounds: tuple[Event, ...]) -> list[tuple[int, Event]]:
    return list(enumerate((e for e in rounds if e.get("question", "gradient") in TRAINING), start=1))


def _series(rounds: tuple[Event, ...], key: str) -> dict[str, list[tuple[int, float]]]:
    """Hospital -> [(training rounds so far, value)]; a later question of the same training round replaces."""
    series: dict[str, dict[int, float]] = {}
    training = 0
    for event in rounds:
        training += event.get("question", "gradient") in TRAINING
        for name, value in (event.get(key) or {}).items():
            if isinstance(value, int | float):
                series.setdefault(name, {})[training] = float(value)
    return {name: sorted(points.items()) for name, points in series.items()}


def _told(rounds: tuple[Event, ...], key: str, name: str) -> list[tuple[Event, float]]:
    """Rounds that say a number of a hospital, with the number."""
    told = [(event, values.get(name)) for event in rounds if isinstance(values := event.get(key), dict)]
    return [(event, float(value)) for event, value in told if isinstance(value, int | float)]


def _hospitals(rounds: tuple[Event, ...], described: list[dict[str, Any]]) -> list[HospitalRow]:
    known = {str(h["name"]): h for h in described}
    names = list(known)
    for event in rounds:
        for name in [*(event.get("declared_patients") or {}), *(event.get("rejected") or {})]:
            if name not in names:
                names.append(name)
    epsilon = _series(rounds, "epsilon")
    rows = []
    for name in names:
        facts = known.get(name, {})
        declared = [(e.get("declared_patients") or {}).get(name) for e in rounds]
        rejected = [
            f"round {e.get('round')}: {e['rejected'][name]}" for e in rounds if name in (e.get("rejected") or {})
        ]
        cut = [f"round {e.get('round')}: to {100 * factor:.3g} %" for e, factor in _told(rounds, "clipped", name)]
        apart = [times for _, times in _told(rounds, "apart", name)]
        replied = [e for e in rounds if name in (e.get("declared_patients") or {})]
        rows.append(
            HospitalRow(
                name=name,
                declared_patients=facts.get("declared_patients") or next((d for d in declared if d), None),
                delta=facts.get("delta"),
                makers=", ".join(str(facts[key]) for key in ("modality", "manufacturer") if facts.get(key)),
                epsilon=epsilon[name][-1][1] if epsilon.get(name) else None,
                replies=len(replied),
                rejections=tuple(rejected),
                cuts=tuple(cut),
                apart=fmean(apart) if apart else None,
                took_part=bool(facts.get("took_part", True)),
            )
        )
    return rows
