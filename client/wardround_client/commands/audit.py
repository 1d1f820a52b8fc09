"""`wardround hospital audit`: attack this installation's answers with invented patients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import TextColumn
from rich.text import Text

from wardround.command import Command, JsonOption
from wardround.terminal import Table, emit, progress_bar, say, show
from wardround_client.commands._common import HomeArgument, checked
from wardround_client.office import LEAST_TRIALS, NOTE, TRIALS

if TYPE_CHECKING:
    from wardround_client.audit import AuditReport


def audit(
    home: HomeArgument,
    federation: Annotated[
        str,
        typer.Argument(
            help="An approved federation's digest or its beginning, or a federation.toml; "
            "not needed where one federation is approved.",
            metavar="[FEDERATION]",
        ),
    ] = "",
    trials: Annotated[
        int,
        typer.Option(
            help="Answers of each experiment, about: more give sharper bounds and take longer.", min=LEAST_TRIALS
        ),
    ] = TRIALS,
    confidence: Annotated[
        float, typer.Option(help="Confidence that all lower bounds together hold.", min=0.5, max=0.9999)
    ] = 0.95,
    as_json: JsonOption = False,
) -> None:
    """Estimate a lower bound on epsilon by attacking our own answers, and compare it with the epsilon that is claimed.

    Ends with 4 when a lower bound exceeds its claim: then this installation breaks the promise. No real patient is
    read, nothing is written to the ledger, and nothing leaves. It takes 1 to 5 minutes with the default --trials, and
    longer for larger models.
    """
    home = checked(home)
    from wardround_client.office.auditing import audited

    answers = TextColumn("{task.completed} of {task.total} answers")
    with progress_bar(answers, quiet=as_json, description="{task.description:12}") as progress:
        bar, running = progress.add_task("audit", total=None), ""

        def told(name: str, done: int, total: int) -> None:
            nonlocal running
            progress.update(bar, description=name, completed=done, total=total)
            if name != running and progress.disable and not as_json:
                say(f"{name}: from answer {done:,} of {total:,}")
            running = name

        agreement, report = audited(home, federation, trials=trials, confidence=confidence, progress=told)
    if as_json:
        emit(event="audit", federation=agreement.federation.digest, note=NOTE, **report.to_json())
    else:
        show(table(report, f"{agreement.federation.name} ({agreement.federation.digest[:12]})"))
        say(NOTE)
        say(report.headline)
    report.check()


def table(report: AuditReport, title: str) -> Table:
    """The audit's rows for a person."""
    rows = [
        (
            row.name,
            row.tests,
            f"{row.claimed_epsilon:.2f}",
            f"{row.lower_bound_epsilon:.2f}",
            "holds" if row.holds else Text("REFUTED", style="bold red"),
        )
        for row in report.rows
    ]
    caption = f"All lower bounds together: {report.confidence:.0%} confidence, at delta {report.delta:.2g}."
    return Table(
        ("experiment", "what it would find", ">claimed epsilon", ">lower bound", "verdict"),
        rows,
        f"Audit of {title}",
        caption,
    )


command = Command(
    audit,
    panel="Look",
    place=7,
    examples=(
        "wardround hospital audit ~/st-anna",
        "wardround hospital audit ~/st-anna federation.toml --trials 10000",
        "wardround hospital audit ~/st-anna 3f2a9c --json",
    ),
)
