"""The tables of `--audit` in a terminal, from the events as they stand in events.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

Event = Mapping[str, Any]


def show_membership(console: Console, event: Event) -> None:
    """What each attack finds, beside what the promise allows."""
    if "skipped" in event:
        console.print(Text(str(event["skipped"])), soft_wrap=True)
        return
    asked = [point["fpr_asked"] for point in event["attacks"][0]["points"]]
    table = Table(
        title=f"Membership inference: {event['members']} patients who took part, {event['non_members']} who did not",
        caption=f"true positives, {100 * event['confidence']:.0f} % interval over patients of this one run",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("attack")
    for fpr in asked:
        table.add_column(f"TPR at {100 * fpr:g} % FPR", justify="right")
    table.add_column("AUC", justify="right")
    for attack in event["attacks"]:
        table.add_row(attack["label"], *(_share(point) for point in attack["points"]), f"{attack['auc']:.3f}")
    ceiling = event.get("ceiling")
    allowed = [f"{100 * tpr:.2f} %" for _, tpr in ceiling["tpr"]] if ceiling else ["no limit"] * len(asked)
    table.add_section()
    table.add_row("at most, by the promise" if ceiling else "privacy is OFF", *allowed, "")
    console.print(table)
    for what, why in event["left_out"].items():
        console.print(Text(f"left out: {what} ({why})"), soft_wrap=True)


def show_audit(console: Console, event: Event) -> None:
    """Lower bounds beside claims, and the headline."""
    if "skipped" in event:
        console.print(Text(str(event["skipped"])), soft_wrap=True)
        return
    table = Table(title="Audit with canaries", title_justify="left")
    table.add_column("experiment")
    table.add_column("what it would find", overflow="fold")
    for heading in ("claimed epsilon", "lower bound", "guesses"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for row in event["experiments"]:
        table.add_row(
            row["name"],
            row["tests"],
            f"{row['claimed_epsilon']:.2f}",
            f"{row['lower_bound_epsilon']:.2f}",
            str(row["guesses"]),
            "holds" if row["holds"] else Text("REFUTED", style="bold red"),
        )
    console.print(table)
    console.print(Text(str(event["headline"])), soft_wrap=True)


def _share(point: Mapping[str, Any]) -> str:
    return f"{100 * point['tpr']:.2f} % ({100 * point['tpr_low']:.2f} to {100 * point['tpr_high']:.2f})"
