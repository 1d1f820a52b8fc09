"""`wardround hospital approve`: what an agreement asks and costs, and the hospital's yes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wardround.errors import ConfigError
from wardround_client.commands.common import JsonOption, NewHome, app, checked, emit, example, say, show

if TYPE_CHECKING:
    from wardround_client.agreement import Agreement
    from wardround_client.hospital import Hospital


@app.command(
    epilog=example(
        "wardround hospital approve ~/st-anna federation.toml",
        "wardround hospital approve ~/st-anna federation.toml --yes",
    )
)
def approve(
    home: NewHome,
    federation: Annotated[Path, typer.Argument(help="The agreement: federation.toml.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what an agreement asks and costs, check it against the policy, approve it. A daemon sees it at once.

    Without an approval the daemon refuses. What was shown is kept beside the approved copy, as approval.json.
    """
    home = checked(home)
    from wardround_client.hospital import Hospital

    hospital = Hospital.open(home)
    try:
        agreement = hospital.agreement_of(federation)
        terms = terms_of(hospital, agreement)
        if not as_json:
            show({name.replace("_", " "): _said(value) for name, value in terms.items()}, title="This agreement")
            if not yes and not typer.confirm("Approve it?"):
                say("Not approved. Nothing was changed.")
                raise typer.Exit(4)
        elif not yes:
            raise ConfigError("--json cannot ask", do="add --yes")
        hospital.approve(federation, terms)
    finally:
        hospital.ledger.close()
    if as_json:
        emit(event="approve", **terms)
    else:
        say(f"Approved: {agreement.federation.name} ({agreement.federation.digest[:12]}).")


def terms_of(hospital: Hospital, agreement: Agreement) -> dict[str, Any]:
    """What a person has to know before saying yes; all of it from public numbers and the ledger.

    Raises: PolicyRefusal, when the machine has less memory than a round may take.
    """
    from wardround.schedule import QUESTIONS, answer_size
    from wardround.wire import reply_bytes
    from wardround_client.footprint import footprint, free_memory
    from wardround_client.forecast import forecast
    from wardround_client.terms import computed

    federation, model, schedule = agreement.federation, agreement.model, agreement.schedule
    declared = hospital.config.hospital.declared_patients
    budget = hospital.budget
    asked = {question: schedule.times(question) for question in QUESTIONS}
    replies = Counter(plan.question for plan in schedule.rounds)
    price = forecast(agreement, hospital.ledger.history(), budget)
    return {
        "name": federation.name,
        "digest": federation.digest,
        "bundle_sha256": agreement.bundle_sha256,
        "task": f"{federation.task.label_column}: {', '.join(federation.task.classes)} ({federation.task.kind})",
        "model": f"{federation.model.family}, {model.layout.size} parameters",
        "frozen_part_sha256": model.fingerprint,
        "algorithm": federation.algorithm.name,
        **computed(federation, schedule, agreement.calibration, declared),
        "memory": footprint(federation, model, declared).check(free_memory()),
        "rounds": len(schedule),
        "questions": {question: times for question, times in asked.items() if times},
        "outbound_bytes": sum(reply_bytes(answer_size(each, model)) * rounds for each, rounds in replies.items()),
        "epsilon_of_this_run": round(price.alone, 4),
        "epsilon_spent_before": round(price.before, 4),
        "epsilon_after_this_run": round(price.after, 4),
        "epsilon_budget": budget.epsilon,
        "delta": budget.delta,
        "rounds_within_budget": price.affordable,
        "forecast": price.sentence(),
        "cohort": hospital.unfit_for(agreement) or "fits",
    }


def _said(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} x {times}" for name, times in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
