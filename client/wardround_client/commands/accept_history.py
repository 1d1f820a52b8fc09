"""`wardround hospital accept-history`: what a person decides when the home was copied or its ledger restored."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from wardround.command import Command, JsonOption
from wardround.errors import ConfigError
from wardround.terminal import emit, say
from wardround_client.commands._common import NewHome, checked

if TYPE_CHECKING:
    from wardround_client import one_life


def accept_history(
    home: NewHome,
    answers: Annotated[
        Path | None, typer.Argument(help="The coordinator's list of this hospital's answers: its answers/NAME.jsonl.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start a stopped hospital again, which found that the coordinator has an answer that its ledger does not hold.

    That happens when a copy of the home ran elsewhere, or when an older copy of the ledger was put back: this ledger
    then knows less than was spent. First make sure that only one copy of the home is left. If the newer ledger still
    exists, put it back and run this command without a list. Otherwise ask the coordinator for its list of answers:
    every round in it that this ledger does not hold is counted as spent, at the price of its agreement.
    """
    home = checked(home)
    from wardround_client import one_life
    from wardround_client.hospital import Hospital

    mark = one_life.mark_of(home)
    if mark is None and answers is None:
        emit(event="history", adopted=0, stopped=False) if as_json else say("This hospital has not stopped.")
        return
    hospital = Hospital.open(home)
    try:
        if answers is None and mark and hospital.ledger.holds(mark.last.run, mark.last.round, mark.last.sha256):
            spent = hospital.ledger.spent(hospital.config.delta)
            history = one_life.History((), spent, spent)
        elif answers is None:
            raise ConfigError(
                f"this ledger does not hold the answer to {one_life.why(home)}",
                do="put the newer ledger back, or name the coordinator's list of this hospital, answers/NAME.jsonl",
            )
        else:
            history = one_life.weigh(hospital, one_life.read_answers(answers))
        if not as_json:
            _show(history, hospital.config.budget.epsilon)
        if not yes and as_json:
            raise ConfigError("--json cannot ask", do="add --yes")
        if not yes and not typer.confirm("Is this the only copy of the home, and shall these rounds count as spent?"):
            say("Nothing was changed; the hospital stays stopped.")
            raise typer.Exit(1)
        one_life.accept(hospital, history)
    finally:
        hospital.ledger.close()
    if as_json:
        emit(event="history", adopted=len(history.adopted), stopped=False, epsilon_spent=history.epsilon_after)
    else:
        say(f"Accepted. Start the daemon again: wardround hospital up {home}")


def _show(history: one_life.History, budget: float) -> None:
    if not history.adopted:
        say("The ledger holds every answer: nothing more is spent.")
        return
    say("Rounds of another copy that will be counted as spent in this ledger:")
    for each in history.adopted:
        seen = f"reply {each.sha256[:12]}" if each.sha256 else "no reply seen, but one may have left"
        say(f"  run {each.run}, round {each.round}: {each.question} ({seen})")
    say(f"Epsilon spent: {history.epsilon_before:.4g} -> {history.epsilon_after:.4g} of {budget:g}.")


command = Command(
    accept_history,
    panel="Repair",
    place=1,
    examples=(
        "wardround hospital accept-history ~/st-anna",
        "wardround hospital accept-history ~/st-anna st-anna.jsonl",
    ),
)
