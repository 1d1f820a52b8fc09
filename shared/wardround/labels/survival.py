"""Time until an event, of which some are seen and others not yet: y float32 [n, 2], interval time and whether it was.

Intervals end at `task.ends`. Interval time is j where the j-th ends (0 at the start), and runs evenly from end to end;
who is behind the last end is past it by as many times the last. It tells intervals and the order of times, and needs
no unit. A logit is the log odds of the event within an interval, for whoever reached it (Singer and Willett, "It's
about time: using discrete-time survival analysis to study duration and the timing of events", 1993). Who is lost counts
for the intervals that it was seen through, and for nothing behind them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from wardround import elementary
from wardround.labels import SEPARATOR, LabelKind
from wardround.vector import Layout

if TYPE_CHECKING:
    from wardround.labels import Labels
    from wardround.task import Task

EVENT, CENSORED = "event", "censored"
"""What texts of the column that tells whether the event was there may mean (`task.values`)."""

START = -2.197224577336219
"""The log odds of 1 to 9: a model of zeros expects a tenth of those who reach an interval to have the event in it."""

CUTS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7)
"""Of risks, for private evaluation: public, because nothing may be chosen on patients that is not paid for."""

_WORDS = {
    **dict.fromkeys(("1", "1.0", "yes", "true", "event", "dead", "died", "deceased"), EVENT),
    **dict.fromkeys(("0", "0.0", "no", "false", "censored", "alive", "living"), CENSORED),
}
_NUMBER = re.compile(r"\+?\d+([.,]\d+)?([eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"\+?\d{1,3},\d{3}")
_LONGEST = 1e9


class Survival(LabelKind):
    """Times to an event that some did not have while they were seen, learned by the likelihood of hazards."""

    described = "time to an event; who is lost before it counts for the intervals that it was seen through"
    counted = "with the event by {}"
    scored = evaluated = "concordance"
    unknown = "correct the times and events in the CSV and ingest again; patients without both are not used"
    elementary = True
    strict = True
    timed = True

    def check(self, task: Task) -> None:
        """An end for each class, the later the larger. Raises: ValueError."""
        if len(task.ends) != len(task.classes):
            raise ValueError(
                f"ends holds {len(task.ends)} numbers for {len(task.classes)} classes: each class is an interval, and "
                "ends says when it is over, in the unit of the times"
            )
        if any(one >= other for one, other in pairwise(task.ends)):
            raise ValueError("ends are times, each larger than the one before")

    def meanings(self, classes: Sequence[str]) -> tuple[str, ...]:
        """Of the column of events."""
        return EVENT, CENSORED

    def meant(self, cell: str, values: Mapping[str, str]) -> str | None:
        """What stands behind the last separator is the event's; times are numbers, whatever else `values` says."""
        time, separator, said = cell.rpartition(SEPARATOR)
        means = values.get(said.strip(), said)
        return f"{time}{separator}{means}" if means else None

    def named(self, cell: str, task: Task) -> list[str]:
        """The interval in which the event was; the cell itself where it cannot be read."""
        found = _read(cell)
        if found is None:
            return [cell]
        time, seen = found
        at = int(np.searchsorted(task.ends, time))
        return [task.classes[at]] if seen and at < len(task.ends) else []

    def allowed(self, task: Task) -> str:
        """In words."""
        if task.event_column:
            return f"{task.label_column} a number from 0 on, {task.event_column} 1 where the event was and 0 where not"
        return f'a time from 0 on and whether the event was, with "{SEPARATOR}" between: "730{SEPARATOR}1", or 0'

    def parse(self, cells: Sequence[str | None], task: Task) -> tuple[Labels, npt.NDArray[np.bool_]]:
        """A cell holds a time and whether the event was; an example without either is left out."""
        found = [cell and _read(cell) for cell in cells]
        pairs = [each or (0.0, False) for each in found]
        times = np.array([time for time, _ in pairs], np.float64)
        y = np.stack([interval_times(times, task.ends), np.array([seen for _, seen in pairs])], 1).astype(np.float32)
        return y.reshape(len(cells), 2), np.array([bool(each) for each in found], bool)

    def alike(self, y: Labels, classes: Sequence[str]) -> tuple[str, str] | None:
        """Nobody had the event."""
        if ((y[:, 1] > 0) & (y[:, 0] <= len(classes))).any():
            return None
        return f"is without the event up to {classes[-1]!r}", "some with it"

    def invented(self, number: int, task: Task) -> Tensor:
        """Every second one with the event, in the middle of each interval in turn."""
        each = torch.arange(number)
        return torch.stack([each % (len(task.classes) + 1) + 0.5, (each % 2 == 0).float()], 1)

    def targets(self, y: Tensor, classes: int) -> Tensor:
        """1 at the interval in which the event was."""
        return _events(y, classes).float()

    def losses(self, logits: Tensor, y: Tensor) -> Tensor:
        """The negative log likelihood: of each interval, up to the event or as far as somebody was seen."""
        logits, events = logits + START, _events(y, logits.shape[1])
        survived = _survived(y, logits.shape[1])
        return (survived * softplus(logits) + events * softplus(-logits)).sum(1)

    def errors(self, logits: Tensor, y: Tensor) -> Tensor:
        """The hazard in the intervals that somebody reached and was seen through, less 1 in that of the event."""
        events, classes = _events(y, logits.shape[1]), logits.shape[1]
        reached = (events | _survived(y, classes)).double()
        return elementary.sigmoid(logits + START) * reached - events.double()

    def prior(self, counts: Tensor, declared_patients: int) -> Tensor:
        """None: float32 [classes] of zeros. Probabilities are what is wanted, and not balance."""
        return torch.zeros_like(counts)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Of being without the event at the end of each interval: they never rise."""
        return torch.exp(-softplus(logits + START).cumsum(1))

    def prediction(self, probabilities: Sequence[float], classes: Sequence[str]) -> str:
        """At the last end."""
        return f"{100 * probabilities[-1]:.0f} % without the event at {classes[-1]}"

    def stratum(self, votes: Tensor) -> Tensor:
        """All are alike: who is chosen by what became of them teaches hazards that are nobody's."""
        return torch.zeros(len(votes), dtype=torch.int64)

    def score(self, probabilities: Tensor, y: Tensor, classes: int) -> float:
        """See `concordance`; 0.5 where no two can be compared."""
        y = y.cpu().double()
        weights = torch.ones(len(y), 1, dtype=torch.float64)
        found = float(concordance(risk_of(probabilities.cpu()), y, weights, classes))
        return 0.5 if math.isnan(found) else found

    def chance(self, classes: int) -> float | None:
        """Of two, the one that has the event first."""
        return 0.5

    def judgement(self, classes: int) -> Layout | None:
        """Patients by what became of them (the event in an interval, or lost after so many) and by their risk."""
        return Layout((("outcomes", (2 * classes + 1, len(CUTS) + 1)),))

    def judge(self, logits: Tensor, y: Tensor, classes: int) -> Tensor:
        """1 in an example's cell."""
        seen, events = y[:, 0].floor().clamp(0, classes).long(), _events(y, classes)
        outcome = torch.where(events.any(1), events.long().argmax(1), classes + seen)
        risk = torch.bucketize(risk_of(self.probabilities(logits)), torch.tensor(CUTS, device=logits.device))
        return one_hot(outcome * (len(CUTS) + 1) + risk, (2 * classes + 1) * (len(CUTS) + 1)).float()

    def scores(self, judged: Tensor, classes: int) -> dict[str, float | None]:
        """The concordance (Harrell's) of outcomes as far as intervals, and risks as far as CUTS, tell them apart."""
        outcomes = judged.view(2 * classes + 1, len(CUTS) + 1).double()
        right = pairs = 0.0
        for interval in range(classes):
            longer = outcomes[interval + 1 : classes].sum(0) + outcomes[classes + interval + 1 :].sum(0)
            below = longer.cumsum(0) - longer / 2  # of a risk that is as great one half
            right += float((outcomes[interval] * below).sum())
            pairs += float(outcomes[interval].sum() * longer.sum())
        return {"accuracy": min(max(right / pairs, 0.0), 1.0) if pairs > 0 else None}


def interval_times(times: npt.NDArray[np.float64], ends: Sequence[float]) -> npt.NDArray[np.float32]:
    """Times from 0 on, [n] -> interval times float32 [n], in the same order; j where the j-th interval ends."""
    stops = np.array([0.0, *ends])
    at = np.searchsorted(stops[1:], times)  # the interval that ends then, or later
    last = at == len(ends)
    start = stops[at]
    length = np.where(last, stops[-1], stops[np.minimum(at + 1, len(ends))] - start)
    found = (at + (times - start) / length).astype(np.float32)
    # What lies behind an end stays behind it in float32.
    after = np.nextafter(at.astype(np.float32), np.float32(np.inf))
    placed: npt.NDArray[np.float32] = np.where(times > start, np.maximum(found, after), found).astype(np.float32)
    return placed


def risk_of(probabilities: Tensor) -> Tensor:
    """Of being without the event at each end, [n, classes] -> [n]: how much of the time until the last end is lost."""
    return 1 - probabilities.mean(1)


def kept(y: Tensor, weights: Tensor, at: Tensor) -> Tensor:
    """How likely it is to be seen still just before some times: Kaplan and Meier's estimate of when patients are lost.

    y: float64 [n, 2]. weights: float64 [n, resamples], of patients. at: float64 [m]. Returns: [m, resamples].
    """
    order = y[:, 0].argsort(stable=True)
    times, lost, weight = y[order, 0].contiguous(), (y[order, 1] == 0).unsqueeze(1), weights[order]
    first, last = (torch.searchsorted(times, times, right=right) for right in (False, True))  # of the same time

    def of_a_time(some: Tensor) -> Tensor:
        sums = torch.cat([some.new_zeros(1, some.shape[1]), some.cumsum(0)])
        return sums[last] - sums[first]

    # Of one time, events come before losses: who has the event then can be lost no more.
    reached = weight.flip(0).cumsum(0).flip(0)[first] - of_a_time(weight * ~lost)
    stays = 1 - of_a_time(weight * lost) / reached.clamp_min(1e-12)
    once = (first == torch.arange(len(times))).unsqueeze(1)
    running = torch.where(once, stays.clamp(0, 1), 1.0).cumprod(0)
    return torch.cat([running.new_ones(1, running.shape[1]), running])[torch.searchsorted(times, at)]


def concordance(risk: Tensor, y: Tensor, weights: Tensor, classes: int) -> Tensor:
    """How often, of two patients, the one with the event first had the greater risk, a tie being half: [resamples].

    Uno's, up to the last end (Uno, Cai, Pencina, D'Agostino and Wei, "On the C-statistics for evaluating overall
    adequacy of risk prediction procedures with censored survival data", 2011): a pair counts by how likely it was to be
    seen, since otherwise a hospital that loses its patients early would be judged on their first months alone.

    risk: [n]. y: float64 [n, 2]. weights: float64 [n, resamples]. NaN where no two can be compared.
    """
    seen = torch.nonzero((y[:, 1] > 0) & (y[:, 0] <= classes)).flatten()
    worth = weights[seen] / kept(y, weights, y[seen, 0].contiguous()).square().clamp_min(1e-12)
    right = pairs = weights.new_zeros(weights.shape[1])
    for part in torch.split(torch.arange(len(seen)), _AT_ONCE):
        rows = seen[part]
        later = (y[:, 0] > y[rows, :1]) | ((y[:, 0] == y[rows, :1]) & (y[:, 1] == 0))
        ahead = risk[rows].unsqueeze(1)
        wins = later * ((ahead > risk).double() + 0.5 * (ahead == risk))
        right = right + (worth[part] * (wins @ weights)).sum(0)
        pairs = pairs + (worth[part] * (later.double() @ weights)).sum(0)
    return right / pairs


_AT_ONCE = 512  # patients whose comparisons with all others are held at once


def _read(cell: str) -> tuple[float, bool] | None:
    """A time and whether the event was; None where the cell does not say both."""
    time, _, said = (part.strip() for part in cell.rpartition(SEPARATOR))
    means = _WORDS.get(said.casefold()) or _WORDS.get(said.partition(":")[0])
    if means is None or not _NUMBER.fullmatch(time) or _THOUSANDS.fullmatch(time):
        return None
    value = float(time.replace(",", "."))
    return (value, means == EVENT) if value <= _LONGEST else None


def _events(y: Tensor, classes: int) -> Tensor:
    """Bool [n, classes]: the interval in which the event was; a time of 0 is in the first."""
    interval = torch.arange(classes, device=y.device)
    return (y[:, 1:] > 0) & ((y[:, :1].ceil() - 1).clamp_min(0) == interval)


def _survived(y: Tensor, classes: int) -> Tensor:
    """Bool [n, classes]: the intervals that ended while somebody was seen without the event."""
    return (y[:, :1] >= torch.arange(1, classes + 1, device=y.device)) & ~_events(y, classes)


kind = Survival()
