"""A whole federation in one process, top to bottom: hospitals are made, learn, a newcomer is judged, a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError
from wardround.experience.file import FILE, append
from wardround.labels import LABEL_KINDS
from wardround_client.audit import AuditReport
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import Attacked, Event, RoundEnded, RoundMissed, RunEnded, versions, whole_lines
from wardround_server.experience import row_of
from wardround_server.report import write_report
from wardround_server.sinks import Sinks
from wardround_simulation import audited
from wardround_simulation.evaluate import compare_shots, measured
from wardround_simulation.local import Asked, local_rounds
from wardround_simulation.opening import Ready, open_hospitals, plan_sites, reopen_hospitals
from wardround_simulation.settings import RUN, Settings, write
from wardround_simulation.watch import Watch

Rounds = Callable[[Ready], Iterator[tuple[Asked, State]]]


def simulate(settings: Settings, watch: Watch, engine: Rounds | None = None, *, resume: bool = False) -> Path:
    """Run it all.

    Args:
        settings: what was asked for.
        watch: is told what happens.
        engine: yields (round event, state after it); default: threads in this process.
        resume: go on with the simulation of this folder.

    Returns:
        The report's path.

    Raises: ConfigError, DataError, StorageError, PolicyRefusal, QuorumMissed, FederationError; AuditFailed, after all
        is written, when the audit refutes what is claimed of epsilon.
    """
    begun = time.monotonic()
    sites, past = plan_sites(settings), list[Event]()
    if resume:
        past = _past(settings)
        ready = reopen_hospitals(settings, sites, watch)
    else:
        ready = open_hospitals(settings, sites, watch, ledgers_in_memory=False)
    try:
        return _simulated(ready, watch, engine or local_rounds, past, begun)
    finally:
        for hospital in ready.hospitals:
            hospital.ledger.close()


def _past(settings: Settings) -> list[Event]:
    """What happened before a simulation was cut off. Raises: ConfigError, when it cannot go on."""
    past = [event for _, event in whole_lines(settings.out / "events.jsonl")]
    if past and isinstance(past[-1], RunEnded):
        raise ConfigError(f"{settings.out} is complete", do=f"see {settings.out / 'report.html'}")
    if (settings.out / "ray").exists():
        raise ConfigError("a simulation under Ray cannot go on", do="run it anew")
    if settings.audit:
        raise ConfigError("a simulation with --audit cannot go on: it needs all that was sent", do="run it anew")
    return past


def _simulated(ready: Ready, watch: Watch, engine: Rounds, past: Sequence[Event], begun: float) -> Path:
    """The rounds that are left, the comparison, the audit and the report."""
    settings = ready.settings
    recorder = audited.Recorder(ready, RUN) if settings.audit else None
    with Sinks(settings.out, {name: {} for name in settings.sinks}) as sinks:
        training = sum(isinstance(event, RoundEnded) and event.trains for event in past)
        answered = list(past)  # as the coordinator knows it, without what only a simulation may know
        state = Checkpointer(settings.out).load(run=RUN, federation=settings.federation.digest)
        for event, state in engine(ready):
            training += event.trains
            answered.append(event.model_copy(update=settings.marked))
            watch.event(sinks.tell(_enriched(event, ready, state, training)))
            if recorder is not None:
                recorder.note(event, state)
        assert state is not None
        newcomer, agreement = ready.hospitals[-1], ready.agreements[-1]
        step = partial(watch.step, "a new hospital")  # adapts to its patients, again and again
        comparison = compare_shots(newcomer, agreement, state, shots=settings.shots, seed=settings.seed, step=step)
        write(settings.out / "comparison.json", comparison)
        # Of somebody's own folders a row holds what is noised; phantoms are nobody.
        row = row_of(settings.federation, answered, comparison if settings.data is None else None)
        if row is not None:
            append(settings.out / FILE, row)
        verdict, files = _audit(ready, recorder, sinks, watch) if recorder is not None else (None, {})
        done = sinks.tell(
            RunEnded(
                run=RUN,
                rounds=settings.federation.rounds.rounds,
                report=str(settings.out / "report.html"),
                seconds=round(time.monotonic() - begun, 3),
                comparison=comparison,
                versions=versions(),
                **(settings.marked | files),
            )
        )
    report = write_report(settings.out)
    watch.event(done)
    if verdict is not None:
        verdict.check()
    return report


def _audit(
    ready: Ready, recorder: audited.Recorder, sinks: Sinks, watch: Watch
) -> tuple[AuditReport | None, dict[str, str]]:
    """Attack what was released, then audit the answers -> the verdict, and the files that hold both."""
    found = audited.infer_membership(ready, recorder, watch)
    inferred = _told(ready.settings, "membership", found, sinks, watch)
    verdict = audited.canaries(ready, watch)
    found = verdict.to_json() if verdict is not None else {"skipped": audited.NOTHING_CLAIMED}
    return verdict, inferred | _told(ready.settings, "audit", found, sinks, watch)


def _told(settings: Settings, name: str, found: dict[str, Any], sinks: Sinks, watch: Watch) -> dict[str, str]:
    """Write a finding and tell of it -> its name and its file."""
    path = settings.out / f"{name}.json"
    write(path, settings.marked | found)
    fields = {"event": name, "file": str(path)} | settings.marked | audited.summary(found)
    watch.event(sinks.tell(Attacked.model_validate(fields)))
    return {name: str(path)}


def _enriched(event: Asked, ready: Ready, state: State, training: int) -> Asked:
    """The event with what only a simulation may know: scores without noise.

    Those of participants are legal because nobody is a patient here; of somebody's own folders they are left out while
    privacy is on. The last hospital took no part, so nobody was promised anything about it.
    """
    settings = ready.settings
    known: dict[str, Any] = settings.marked
    if isinstance(event, RoundMissed):
        return event.model_copy(update=known)
    known["training_round"] = training
    if not settings.privacy:
        known |= {"epsilon": {}, "epsilon_max": None}
    *part, (_, held_out, agreement) = zip(ready.sites, ready.hospitals, ready.agreements, strict=True)
    known["score"] = LABEL_KINDS[agreement.federation.task.labels].scored
    known["accuracy"] = measured(held_out, agreement, state)
    if agreement.federation.model.family != "conv4" and (settings.data is None or not settings.privacy):
        known["accuracy_by_hospital"] = {site.name: measured(h, a, state) for site, h, a in part}
    return event.model_copy(update=known)
