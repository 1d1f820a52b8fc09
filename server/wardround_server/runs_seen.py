"""What all runs of a home have come to, read on from their events.jsonl as they grow; and the same for Prometheus."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from wardround.errors import DataError
from wardround.metrics import Kind, Metric, Samples
from wardround_server.events import (
    LATE,
    Event,
    RoundEnded,
    RoundMissed,
    RunEnded,
    RunFailed,
    RunStarted,
    whole_lines,
)
from wardround_server.sinks.jsonl import FILE

MOST_RUNS, MOST_HOSPITALS = 20, 1000
log = logging.getLogger(__name__)


@dataclass
class Progress:
    """A run so far. late: hospitals' answers that had not come at the deadline; rejected: others that did not count."""

    rounds: int = 0
    done: int = 0
    missed: int = 0
    asked: int = 0
    replied: int = 0
    absent: int = 0
    late: int = 0
    rejected: int = 0
    clipped: int = 0
    seconds: float = 0.0
    going_on: bool = False
    accuracy: float | None = None
    epsilon: Mapping[str, float] = field(default_factory=dict)

    def learn(self, event: Event) -> None:
        """What an event adds."""
        match event:
            case RunStarted():
                self.rounds, self.done, self.going_on = event.rounds, event.from_round, True
            case RoundEnded() | RoundMissed():
                self.asked, self.replied, self.absent = event.hospitals, event.replied, len(event.absent)
                late = sum(reason.startswith(LATE) for reason in event.rejected.values())
                self.late, self.rejected = self.late + late, self.rejected + len(event.rejected) - late
                self.clipped += len(event.clipped)
                if isinstance(event, RoundMissed):
                    self.missed += 1
                    return
                self.rounds, self.done, self.seconds = event.rounds, event.round + 1, self.seconds + event.seconds
                self.epsilon = event.epsilon
                self.accuracy = self.accuracy if event.accuracy is None else event.accuracy
            case RunEnded() | RunFailed():
                self.going_on = False


class RunsSeen:
    """The runs of a coordinator's home, by name. folder: `runs` in it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[int, Progress]] = {}  # run -> (byte, what was learned up to there)
        self._damaged: set[str] = set()

    def news(self) -> Iterator[tuple[str, Event]]:
        """(run, event) for each that was written since the last call. A file that is no list of events is left."""
        for path in self._folder.glob(f"*/{FILE}"):
            run = path.parent.name
            offset, progress = self._read.get(run, (0, Progress()))
            try:
                if offset > path.stat().st_size:  # made anew
                    offset, progress = 0, Progress()
                for after, event in whole_lines(path, offset):
                    progress.learn(event)
                    self._read[run] = after, progress
                    yield run, event
            except (DataError, OSError) as error:
                if run not in self._damaged:
                    self._damaged.add(run)
                    log.warning("run %s: its events cannot be read on: %s", run, error)

    def progress(self) -> Mapping[str, Progress]:
        """The latest MOST_RUNS, by when anything happened to them."""

        def moved(run: str) -> float:
            try:
                return (self._folder / run / FILE).stat().st_mtime
            except OSError:
                return 0.0

        latest = sorted(self._read, key=moved, reverse=True)[:MOST_RUNS]
        return {run: self._read[run][1] for run in latest}


_GAUGES = {
    "rounds": "Rounds of the run, in all.",
    "rounds_done": "Rounds that count, so far.",
    "going_on": "1 from the start of a run to its end; a coordinator that was killed writes no end.",
    "hospitals": "Asked in the last round.",
    "replied": "Answered usably in the last round.",
    "absent": "Registered, and not connected in the last round.",
}
_COUNTERS = {
    "missed_rounds_total": "Rounds without a quorum.",
    "late_total": "Answers that had not come at the deadline.",
    "rejected_total": "Other answers that did not count: refusals, malformed ones.",
    "clipped_total": "Answers that were shortened to what an honest hospital can send.",
    "round_seconds_total": "Of all rounds that count.",
}


def of_coordinator(runs: Mapping[str, Progress], ends: Mapping[str, datetime]) -> Sequence[Metric]:
    """The metrics of the moment. ends: of the certificates, by what they are."""
    numbers = {
        run: {
            "rounds": each.rounds,
            "rounds_done": each.done,
            "going_on": each.going_on,
            "hospitals": each.asked,
            "replied": each.replied,
            "absent": each.absent,
            "missed_rounds_total": each.missed,
            "late_total": each.late,
            "rejected_total": each.rejected,
            "clipped_total": each.clipped,
            "round_seconds_total": each.seconds,
        }
        for run, each in runs.items()
    }
    metrics = []
    kinds: tuple[tuple[Mapping[str, str], Kind], ...] = ((_GAUGES, "gauge"), (_COUNTERS, "counter"))
    for helps, kind in kinds:
        for name, what in helps.items():
            samples: Samples = {(run,): float(values[name]) for run, values in numbers.items()}
            metrics.append(Metric(f"wardround_run_{name}", kind, what, ("run",), samples))
    measured: Samples = {(run,): each.accuracy for run, each in runs.items() if each.accuracy is not None}
    spent: Samples = {
        (run, hospital): epsilon
        for run, each in runs.items()
        for hospital, epsilon in sorted(each.epsilon.items())[:MOST_HOSPITALS]
    }
    until: Samples = {(name,): end.timestamp() for name, end in ends.items()}
    name = "wardround_coordinator_certificate_ends_seconds"
    return [
        *metrics,
        Metric("wardround_run_accuracy", "gauge", "As last measured, from noised counts.", ("run",), measured),
        Metric("wardround_run_epsilon", "gauge", "What the run has cost so far.", ("run", "hospital"), spent),
        Metric(name, "gauge", "When it ends, Unix time.", ("certificate",), until),
    ]
