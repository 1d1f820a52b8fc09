"""The tables of `--audit` in a terminal, from the events as they stand in events.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from wardround.terminal import Table

Event = Mapping[str, Any]


def show_membership(console: Console, event: Event) -> None:
    """What each attack finds, beside what the promise allows."""
    if "skipped" in event:
        console.print(Text(str(event["skipped"])), soft_wrap=True)
        return
    asked = [point["fpr_asked"] for point in event["attacks"][0]["points"]]
    rows = [
        (attack["label"], *(_share(point) for point in attack["points"]), f"{attack['auc']:.3f}")
        for attack in event["attacks"]
    ]
    ceiling = event.get("ceiling")
    allowed = [f"{100 * tpr:.2f} %" for _, tpr in ceiling["tpr"]] if ceiling else ["no limit"] * len(asked)
    table = Table(
        ("attack", *(f">TPR at {100 * fpr:g} % FPR" for fpr in asked), ">AUC"),
        [*rows, (), ("at most, by the promise" if ceiling else "privacy is OFF", *allowed, "")],
        f"Membership inference: {event['members']} patients who took part, {event['non_members']} who did not",
        f"TPR: true positive rate, FPR: false positive rate; {100 * event['confidence']:.0f} % interval over patients "
        "of this one run",
    )
    console.print(table, crop=False)
    for what, why in event["left_out"].items():
        console.print(Text(f"left out: {what} ({why})"), soft_wrap=True)


def show_audit(console: Console, event: Event) -> None:
    """Lower bounds beside claims, and the headline."""
    if "skipped" in event:
        console.print(Text(str(event["skipped"])), soft_wrap=True)
        return
    rows = [
        (
            row["name"],
            row["tests"],
            f"{row['claimed_epsilon']:.2f}",
            f"{row['lower_bound_epsilon']:.2f}",
            str(row["guesses"]),
            "holds" if row["holds"] else Text("REFUTED", style="bold red"),
        )
        for row in event["experiments"]
    ]
    columns = ("experiment", "what it would find", ">claimed epsilon", ">lower bound", ">guesses", "verdict")
    console.print(Table(columns, rows, "Audit with canaries"), crop=False)
    console.print(Text(str(event["headline"])), soft_wrap=True)


def _share(point: Mapping[str, Any]) -> str:
    return f"{100 * point['tpr']:.2f} % ({100 * point['tpr_low']:.2f} to {100 * point['tpr_high']:.2f})"
