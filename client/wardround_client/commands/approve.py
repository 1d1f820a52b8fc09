"""`wardround hospital approve`: see what an agreement asks and costs, and say yes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import BudgetExceeded, ConfigError, WardroundError
from wardround.terminal import Fields, emit, say, show
from wardround.text import counted
from wardround_client.commands._common import NewHome, checked
from wardround_client.commands._terms import rows_of, terms_of

if TYPE_CHECKING:
    from wardround.task import Task
    from wardround_client.hospital import Hospital

MOST_RUNS = 100
MOST_DAYS = 3650


def approve(
    home: NewHome,
    federation: Annotated[Path, typer.Argument(help="The agreement: federation.toml.", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", help="Approve without asking.")] = False,
    runs: Annotated[
        int,
        typer.Option(help="How many more runs of this agreement may begin.", min=1, max=MOST_RUNS),
    ] = 1,
    days: Annotated[
        int, typer.Option(help="For how many days a run may begin; 0: until revoked.", min=0, max=MOST_DAYS)
    ] = 0,
    anyway: Annotated[
        bool,
        typer.Option("--anyway", help="Approve although the budget or the cohort does not suffice."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show what an agreement asks and costs, check it against policy, budget and cohort, and approve it.

    A running daemon sees it at once; without an approval it refuses every round. An approval is of one agreement, by
    the coordinator that the hospital is joined to now, for one run; --runs allows more. `wardround hospital revoke`
    takes it back. The file is read once: what is shown is what is stored, with its terms, as approval.json.

    Ends with 4 when the budget does not carry all rounds, and with 3 when the cohort has fewer patients than
    policy.least_patients, unless --anyway is given.
    """
    home = checked(home)
    if as_json and not yes:
        raise ConfigError("--json cannot ask", do="add --yes")
    from wardround_client.consent.approvals import Proposal
    from wardround_client.hospital import Hospital

    hospital = Hospital.open(home)
    try:
        proposal = Proposal.read(federation)
        terms = terms_of(hospital, hospital.approvals.preview(proposal), runs)
        patients, warnings, obstacle = _cohort(hospital, proposal.federation.task)
        if terms["rounds_within_budget"] < runs * terms["rounds"]:
            obstacle = BudgetExceeded(
                f"the budget {terms['forecast']}",
                do="agree on fewer rounds or more noise, raise budget.epsilon in hospital.toml, or add --anyway: the "
                "run then ends early, and what it has spent stays spent",
            )
        if not as_json:
            show(Fields(patients, "This hospital's patients"))
            show(Fields(rows_of(terms), "This agreement"))  # its cost comes last, beside the question
            for warning in warnings:
                say(f"Warning: {warning}", "bold yellow")
        if obstacle and not anyway:
            raise obstacle
        if obstacle and not as_json:
            say(f"Warning: {obstacle.what}. Approving it all the same (--anyway).", "bold yellow")
        if not yes and not typer.confirm(f"Approve it for {counted(runs, 'run')}?"):
            say("Not approved. Nothing was changed.")
            raise typer.Exit(1)
        until = datetime.now(UTC) + timedelta(days=days) if days else None
        hospital.approvals.approve(proposal, terms, runs=runs, until=until)
    finally:
        hospital.ledger.close()
    if as_json:
        emit(event="approve", **terms, cohort={"patients": patients, "warnings": warnings})
        return
    first = f", if it begins before {until:%Y-%m-%d %H:%M} UTC" if until else ""
    say(f"Approved for {counted(runs, 'run')}{first}: {terms['name']} ({terms['digest'][:12]}).")


def _cohort(hospital: Hospital, task: Task) -> tuple[dict[str, str], list[str], WardroundError | None]:
    """(patients a class, what to warn of, why to refuse). It is shown here and stored nowhere."""
    from wardround.errors import DataError
    from wardround_client.cohort.labels import label_counts, quoted

    fewest, declared = hospital.config.policy.least_patients, hospital.config.hospital.declared_patients
    try:
        cohort = hospital.patients.cohort()
        usable = hospital.patients.usable(task)
        counts = label_counts(cohort, task)
    except WardroundError as error:
        return {"cohort": "does not fit yet"}, [str(error)], None
    count = len(usable.patients)
    patients = {"usable": f"{count} of {len(cohort.pseudonyms)}, {declared} declared"}
    patients |= {quoted(name): str(number) for name, number in counts.classes.items()}
    warnings = [f"{sentence}. Their images are not used" for sentence in [counts.sentence()] if counts.suspect]
    if missing := [quoted(name) for name, number in counts.classes.items() if not number]:
        warnings.append(f"no patient shows {', '.join(missing)}")
    try:
        usable.check(task)
    except DataError as error:
        warnings.append(str(error))
    if count >= fewest:
        return patients, warnings, None
    few = DataError(
        f"the cohort has {counted(count, 'patient')} for this task",
        allowed=f"at least {fewest} (policy.least_patients)",
        do="ingest more patients, or add --anyway: noise will drown what so few can teach",
    )
    return patients, warnings, few


command = Command(
    approve,
    panel="Take part",
    place=1,
    examples=(
        "wardround hospital approve ~/st-anna federation.toml",
        "wardround hospital approve ~/st-anna federation.toml --yes",
        "wardround hospital approve ~/st-anna federation.toml --runs 3 --days 90",
    ),
)
