"""`wardround hospital ledger`: what every answer cost and which bytes left, for a person or a spreadsheet."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import Table, emit, say, show
from wardround_client.commands._common import HERE, HomeArgument, checked
from wardround_client.office.receipts import head_from, judge, write_csv

if TYPE_CHECKING:
    from wardround_client.privacy.ledger import Entry


def ledger(
    home: HomeArgument = HERE,
    verify: Annotated[
        bool,
        typer.Option("--verify", help="Recompute the hashes of all entries and replies, and print the chain's head."),
    ] = False,
    contains: Annotated[
        str,
        typer.Option(
            help="Check that a head that you wrote down is still in the chain.",
            metavar="DIGEST",
            show_default=False,
        ),
    ] = "",
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Print a CSV for a spreadsheet, one line an entry; all else goes to stderr.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show the privacy ledger: what every answer cost and how many bytes left. The daemon may run meanwhile.

    If you find a run that you do not want, stop it with `wardround hospital revoke`.

    --verify finds every edit, insertion and removal. It cannot find an OLDER COPY of the whole file that was put back:
    that is a valid ledger which does not know what was spent since. So write down the head that --verify prints, now
    and then, outside this hospital's computers, and give it to --contains later: an older copy does not hold it.
    """
    home = checked(home)
    if as_csv and as_json:
        raise ConfigError("--csv and --json were both given", do="take one")
    contains = head_from(contains) if contains else ""
    from wardround_client.config import load_hospital_config
    from wardround_client.privacy.ledger import Ledger

    config = load_hospital_config(home / "hospital.toml")
    with closing(Ledger.of(home)) as book:
        entries, spent = book.entries(), book.spent(config.delta)
        broken = book.verify() if verify else None
        found = book.find(contains) if contains else None
        _, head = book.head
    if as_json:
        for entry in entries:
            emit(event="entry", seq=entry.seq, digest=entry.digest, **entry.body)
        emit(
            event="ledger",
            entries=len(entries),
            epsilon_spent=spent,
            epsilon_budget=config.budget.epsilon,
            delta=config.delta,
            head=head,
            **({"verified": broken is None, "broken_at": broken} if verify else {}),
            **({"contains": contains, "found_at": found} if contains else {}),
        )
    elif as_csv:
        write_csv(entries, sys.stdout)
    else:
        for table in _tables(entries):
            show(table)
        if not entries:
            say("No answer has been given yet.")
        left = max(0.0, config.budget.epsilon - spent)
        say(f"Spent: epsilon {spent:.4g} of {config.budget.epsilon:g} at delta {config.delta:.3g}; {left:.4g} left.")
    judge(broken, contains, found)
    tell = (lambda line: typer.echo(line, err=True)) if as_csv else say
    if verify and not as_json:
        tell("Every entry and every stored reply is as it was written.")
        tell(f"Head of the chain, to write down: {head}")
    if contains and not as_json:
        tell(f"The head that you wrote down is entry {found} of this chain: nothing before it was lost.")


def _tables(entries: Iterable[Entry]) -> Iterator[Table]:
    """One a run, in which the numbers say what came first."""
    runs: dict[tuple[str, str], list[Sequence[str]]] = {}
    for entry in entries:
        body = entry.body
        time, sha256 = entry.time[:19].replace("T", " "), str(body.get("sha256", ""))[:12]
        row: list[str] = [str(entry.seq), time, entry.kind, str(entry.round)]
        row += [f"{body['epsilon_after']:.4g}", str(body.get("bytes", "")), sha256]
        runs.setdefault((entry.run, body["coordinator"]), []).append(row)
    columns = (">no.", "time (UTC)", "entry", ">round", ">epsilon after", ">bytes", "reply's sha256")
    for (run, coordinator), rows in runs.items():
        yield Table(columns, rows, f"Run {run} of {coordinator}")


command = Command(
    ledger,
    panel="Look",
    place=3,
    examples=(
        "wardround hospital ledger ~/st-anna",
        "wardround hospital ledger ~/st-anna --verify",
        "wardround hospital ledger ~/st-anna --contains 5e41…c07a",
        "wardround hospital ledger ~/st-anna --csv > receipts.csv",
        "wardround hospital ledger ~/st-anna --json",
    ),
)
