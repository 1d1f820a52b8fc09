"""Events in words, a line each. What a hospital wrote is shown as text, and cut where it is long."""

from __future__ import annotations

from collections.abc import Iterable

from wardround.text import shown
from wardround_server.events import Event, Proceeding, RoundEnded, RoundMissed, RunEnded, RunFailed, RunStarted, Waiting

LONGEST_REASON, LONGEST_MESSAGE = 500, 4000


def in_words(event: Event, training_rounds: int | None = None) -> list[str]:
    """What a person wants to know of an event; nothing for kinds that are not ours.

    training_rounds: how many there will be; then training rounds are counted from 1, and others called by question.
    """
    match event:
        case RunStarted():
            missing = [name for name in event.registered if name not in event.hospitals]
            lines = [f"run {event.run}: from round {event.from_round} of {event.rounds}"]
            lines += [f"connected: {names(event.hospitals)}; not connected: {names(missing)}"] if missing else []
            if event.rule != "mean" and not event.liars_borne:
                lines.append(
                    f"outer.rule {event.rule} is the mean while fewer than three hospitals answer: of two that "
                    "disagree, nobody can tell which one lies."
                )
            return lines
        case Waiting():
            return [f"{until(event)}"]
        case Proceeding():
            return [f"round {event.round}: going on without {names(event.absent)}"]
        case RoundEnded():
            return [f"{title(event, training_rounds)}: {facts(event)} ({event.seconds:.2f} s)", *remarks(event)]
        case RoundMissed():
            return [f"round {event.round}: missed, {facts(event)}", *remarks(event)]
        case RunFailed():
            return [f"failed: {shown(event.message, LONGEST_MESSAGE)}"]
        case RunEnded():
            return ["the run is done"]
    return []


def title(event: RoundEnded, training_rounds: int | None = None) -> str:
    """Which round."""
    if training_rounds is None:
        return f"round {event.round} of {event.rounds}"
    return f"round {event.training_round} of {training_rounds}" if event.trains else event.question


def facts(event: RoundEnded | RoundMissed) -> str:
    """What is worth knowing of a round, short."""
    parts = [f"{event.replied}/{event.hospitals} replied"]
    parts += [f"{len(event.absent)} absent"] if event.absent else []
    if event.privacy == "OFF":
        parts.append("privacy OFF")
    if isinstance(event, RoundEnded):
        parts += [f"epsilon {event.epsilon_max:.2f}"] if event.epsilon_max is not None else []
        if event.accuracy is not None:
            parts.append(f"{shown(event.score)} {100 * event.accuracy:.0f} %")
        elif event.training_round is not None:  # a simulation looks after every round
            parts.append("not measured")
    return ", ".join(parts)


def remarks(event: RoundEnded | RoundMissed) -> list[str]:
    """Whom the round lacks, and why: a line a hospital."""
    return [
        *(f"round {event.round}: {shown(who)}: not connected" for who in event.absent),
        *(f"round {event.round}: {shown(who)}: {shown(why, LONGEST_REASON)}" for who, why in event.rejected.items()),
        *(
            f"round {event.round}: {shown(who)}: cut to {100 * factor:.0f} % of its length: no honest reply is longer"
            for who, factor in event.clipped.items()
        ),
    ]


def until(event: Waiting) -> str:
    """What is waited for."""
    who = f"for {names(event.missing)}" if event.missing else f"until {event.quorum} hospitals are connected"
    return f"waiting {who}, at most {event.seconds:.0f} s"


def names(hospitals: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(map(shown, hospitals)) or "nobody"
