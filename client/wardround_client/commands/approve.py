"""`wardround hospital approve`: see what an agreement asks and costs, and say yes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import Fields, emit, say, show
from wardround.text import counted
from wardround_client.commands._common import NewHome, checked
from wardround_client.office import MOST_DAYS, MOST_RUNS


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
    from wardround_client.hospital import Hospital
    from wardround_client.office.offer import Offer
    from wardround_client.office.terms import rows_of

    hospital = Hospital.open(home)
    try:
        offer = Offer.of(hospital, federation, runs)
        terms, obstacle = offer.terms, offer.obstacle
        if not as_json:
            show(Fields(offer.patients, "This hospital's patients"))
            show(Fields(rows_of(terms), "This agreement"))  # its cost comes last, beside the question
            for warning in offer.warnings:
                say(f"Warning: {warning}", "bold yellow")
        if obstacle and not anyway:
            raise obstacle
        if obstacle and not as_json:
            say(f"Warning: {obstacle.what}. Approving it all the same (--anyway).", "bold yellow")
        if not yes and not typer.confirm(f"Approve it for {counted(runs, 'run')}?"):
            say("Not approved. Nothing was changed.")
            raise typer.Exit(1)
        until = offer.approve(hospital, days)
    finally:
        hospital.ledger.close()
    if as_json:
        emit(event="approve", **terms, cohort={"patients": offer.patients, "warnings": offer.warnings})
        return
    first = f", if it begins before {until:%Y-%m-%d %H:%M} UTC" if until else ""
    say(f"Approved for {counted(runs, 'run')}{first}: {terms['name']} ({terms['digest'][:12]}).")


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
