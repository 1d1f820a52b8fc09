"""What an agreement asks and costs, as `approve` shows and stores it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from wardround.errors import WardroundError
from wardround.text import counted

if TYPE_CHECKING:
    from wardround.config import Federation
    from wardround_client.consent.agreement import Agreement
    from wardround_client.hospital import Hospital

MOST_CHANGES = 20
# Rows of the screen that are called otherwise than in --json.
_NAMES = {
    "changed": "changed since the last",
    "frozen_part_sha256": "frozen part's sha256",
    "questions": "what leaves, with noise",
    "outbound_bytes": "bytes that leave",
    "runs_begun": "runs that have begun",
    "runs_approved": "further runs approved",
    "epsilon_of_this_run": "epsilon of this run alone",
    "epsilon_spent_before": "epsilon spent so far",
    "epsilon_after_this_run": "epsilon after all of this",
    "epsilon_budget": "epsilon allowed in all",
    "forecast": "the budget",
    "costs_at_most": "COSTS AT MOST",
}


def terms_of(hospital: Hospital, agreement: Agreement, runs: int = 1) -> dict[str, Any]:
    """What a person has to know before saying yes; all of it from public numbers and the ledger. The cost comes last,
    beside the question: a long list of classes must not scroll it away.

    Raises: PolicyRefusal, when the machine has less memory than a round may take.
    """
    from wardround.wire import reply_bytes
    from wardround_client.consent.footprint import footprint, free_memory
    from wardround_client.consent.forecast import forecast
    from wardround_client.consent.terms import computed

    federation, model, schedule = agreement.federation, agreement.model, agreement.schedule
    declared = hospital.config.hospital.declared_patients
    budget = hospital.budget
    bytes_a_run = sum(map(reply_bytes, schedule.answer_sizes(federation, model)))
    history = hospital.ledger.history()
    price = forecast(agreement, history, budget, runs)
    alone = price.alone if runs == 1 else forecast(agreement, (), budget).alone
    return {
        "name": federation.name,
        "digest": federation.digest,
        "bundle_sha256": agreement.bundle_sha256,
        "coordinator": hospital.config.coordinator.identity,
        "changed": changes(hospital, federation),
        "task": f"{federation.task.label_column}: {_listed(federation.task.classes)} ({federation.task.kind})",
        "features": [_listed(federation.task.features)] if federation.task.features else [],
        "model": f"{federation.model.family}, {model.layout.size} parameters",
        "frozen_part_sha256": model.fingerprint,
        "algorithm": federation.algorithm.name,
        **computed(federation, schedule, agreement.calibration, declared),
        "memory": footprint(federation, model, declared).check(free_memory()),
        "rounds": len(schedule),
        "questions": {name: schedule.times(name) for name in schedule.questions},
        "outbound_bytes": runs * bytes_a_run,
        "runs_begun": sorted(hospital.ledger.runs_of(federation.digest)),
        "runs_approved": runs,
        "epsilon_of_this_run": round(alone, 4),
        "epsilon_spent_before": round(price.before, 4),
        "epsilon_after_this_run": round(price.after, 4),
        "epsilon_budget": budget.epsilon,
        "delta": budget.delta,
        "rounds_within_budget": price.affordable,
        "forecast": price.sentence(),
        "costs_at_most": f"{counted(runs, 'run')}, epsilon {price.alone:.2f}",
    }


def changes(hospital: Hospital, federation: Federation) -> list[str]:
    """What differs from the approved federation of the same name that is nearest to it; nothing for the first."""
    before = []
    for digest in hospital.approvals.digests() - {federation.digest}:
        try:
            before.append(hospital.approvals.federation(digest))
        except WardroundError:  # not usable, and so nothing to compare with
            continue
    new = federation.model_dump()
    found = [list(_differences(each.model_dump(), new)) for each in before if each.name == federation.name]
    nearest = min(found, key=len, default=[])
    more = len(nearest) - MOST_CHANGES
    return nearest[:MOST_CHANGES] + ([f"and {more} more"] if more > 0 else [])


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key in dict.fromkeys((*new, *old)):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key} from {_said(before)} to {_said(after)}"


def rows_of(terms: Mapping[str, Any]) -> dict[str, str]:
    """The screen; what is empty says nothing, but for the coordinator."""
    nobody = "none is joined: `wardround hospital join` first, or approve again after it"
    filled = {name: value for name, value in terms.items() if value != []}
    filled["coordinator"] = terms["coordinator"] or nobody
    return {_NAMES.get(name, name.replace("_", " ")): _said(value) for name, value in filled.items()}


def _said(value: object) -> str:
    if isinstance(value, dict):
        from wardround.schedule import QUESTIONS

        return "; ".join(f"{name} x {times}: {QUESTIONS[name].described}" for name, times in value.items())
    if isinstance(value, list | tuple):
        return "; ".join(map(_said, value)) or "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value) or "-"


def _listed(names: Sequence[str]) -> str:
    """Names with commas between; one that could be taken for two stands in quotes."""
    return ", ".join(json.dumps(name, ensure_ascii=False) if set(name) & set(',;:"()') else name for name in names)
