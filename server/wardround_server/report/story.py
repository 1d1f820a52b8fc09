"""What happened, in plain sentences: the top of a report. Nothing is claimed that the events do not say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp

from wardround.text import counted
from wardround_server.report.data import HospitalRow, RunRecord
from wardround_server.report.numbers import duration, percent, whole_percent


@dataclass(frozen=True)
class Story:
    """trouble: why the run is not what was wanted; "" for none. notes: what the headline cannot say."""

    eyebrow: str
    headline: str
    trouble: str
    notes: Sequence[str]
    tiles: Sequence[tuple[str, str]]


def story(run: RunRecord) -> Story:
    """All of it."""
    return Story(_eyebrow(run), _headline(run), _trouble(run), _notes(run), _tiles(run))


def means(epsilon: float, delta: float) -> str:
    """What (epsilon, delta) promises: a guess whether one patient took part (Kairouz, Oh, Viswanath 2015, eq. 4)."""
    right = 1 - (1 - delta) / (1 + exp(min(epsilon, 700.0)))
    return (
        f"Who guesses whether a patient took part, with even odds before, is right at most {percent(right, 2)} of the "
        f"time (epsilon {epsilon:.3g}, delta {delta:.1e}); tossing a coin, 50\u202f%."
    )


def _eyebrow(run: RunRecord) -> str:
    kind = "Simulated federation" if run.simulated else "Federation"
    times = [time[:16].replace("T", " ") for time in (run.begun, run.ended) if time]
    when = "date not recorded"
    if times:
        when = f"{times[0]} to {times[-1].removeprefix(times[0][:11])} UTC"
    return f"{kind} · {run.name} · run {run.run} · {when}"


def _headline(run: RunRecord) -> str:
    answered = [row for row in run.members if row.replies]
    done, classes = len(run.training), listed(run.federation.task.classes) if run.federation else "its classes"
    if not answered:
        return f"No hospital answered, so nothing was learned{_of_planned(run)}."
    who = counted(len(answered), "hospital")
    if not done:
        return f"{who} answered, and no training round was finished."
    rounds = counted(done, "round")
    if not run.measured:
        sentences = [f"{who} trained a model together in {rounds}. How well it tells {classes} apart was not measured."]
    else:
        sentences = [f"{who} learned to tell {classes} apart together in {rounds}."]
    rows = sorted((run.comparison or {}).get("rows") or [], key=lambda row: int(row["shots"]))
    if rows:
        row = rows[-1]
        score = (run.comparison or {}).get("score", "balanced accuracy")
        meta, fresh = float(row["meta"]["mean"]), float(row["fresh"]["mean"])
        sentences.append(
            f"With {counted(int(row['shots']), 'labelled patient')} a class, a hospital that took no part reaches "
            f"{percent(meta)} {score} from the shared model, {'up from' if meta > fresh else 'against'} "
            f"{percent(fresh)} from a fresh one."
        )
    if not run.privacy_on:
        sentences.append("No patient was protected.")
    elif run.epsilon_max is not None:
        sentences.append(f"What left a hospital tells at most epsilon {run.epsilon_max:.2f} about any one patient.")
    return " ".join(sentences)


def _of_planned(run: RunRecord) -> str:
    return f" in {counted(run.planned, 'planned round')}" if run.planned else ""


def _trouble(run: RunRecord) -> str:
    done = f"after {len(run.rounds)} of {counted(run.planned, 'round')}"
    if not run.planned:
        done = f"after {counted(len(run.rounds), 'round')}"
    if run.outcome == "failed":
        return f"This run failed {done}. {run.why}"
    if run.outcome == "unfinished" and (not run.planned or len(run.rounds) < run.planned):
        return f"This run is not finished: it is under way, or was stopped, {done}; run --resume continues it."
    return ""


def _notes(run: RunRecord) -> list[str]:
    notes = []
    absent = [row for row in run.members if not row.replies]
    partial = [row for row in run.members if row.replies and row.missing]
    if absent:
        notes.append(f"Never answered: {_named(absent)}. The table of hospitals says why.")
    if partial:
        notes.append(f"Missed some rounds: {_named(partial)}.")
    return notes


def _named(rows: Sequence[HospitalRow]) -> str:
    return ", ".join(f"{row.name} ({row.replies} of {row.rounds})" for row in rows)


def _tiles(run: RunRecord) -> list[tuple[str, str]]:
    members, training = run.members, len(run.training)
    planned = run.federation.rounds.rounds if run.federation else training
    answers, wanted = sum(row.replies for row in members), sum(row.rounds for row in members)
    tiles = [
        (f"{sum(bool(row.replies) for row in members)} of {len(members)}", "hospitals answered at least once"),
        (f"{training} of {planned}", "training rounds"),
    ]
    if wanted:
        tiles.append((whole_percent(answers, wanted), f"of the questions were answered: {answers:,} of {wanted:,}"))
    if not run.privacy_on:
        tiles.append(("off", "privacy"))
    elif run.epsilon_max is not None:
        agreed = f" of {run.federation.privacy.epsilon:g} agreed" if run.federation else ""
        tiles.append((f"{run.epsilon_max:.2f}", f"epsilon spent{agreed}, at the hospital that spent most"))
    tiles.append((duration(run.seconds), "in rounds" if not run.simulated else "from start to end"))
    return tiles


def listed(words: Sequence[str]) -> str:
    """Classes in a sentence; more than four are counted."""
    return f"{len(words)} findings" if len(words) > 4 else f"{', '.join(words[:-1])} and {words[-1]}"
