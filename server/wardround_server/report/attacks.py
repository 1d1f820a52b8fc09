"""The section "What an attacker gets": membership inference and the canary audit of a simulation with `--audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wardround.web.charts import Curve, roc_chart
from wardround_server.report.data import RunRecord
from wardround_server.report.numbers import Cell, significant

Finding = Mapping[str, Any]
STYLES = ("faint", "fourth", "third", "second", "main")


def attacks(run: RunRecord) -> dict[str, Any] | None:
    """What the template shows; None where nothing was attacked."""
    if run.membership is None and run.audit is None:
        return None
    return {
        "membership": _membership(run.membership) if run.membership else None,
        "audit": _canaries(run.audit) if run.audit else None,
    }


def _membership(found: Finding) -> dict[str, Any]:
    if "skipped" in found:
        return {"skipped": found["skipped"]}
    attacks: Sequence[Finding] = found["attacks"]
    ceiling = found.get("ceiling")
    # The strongest attacks get the last colours, also where some are left out.
    styles = STYLES[: len(attacks)] if len(attacks) < 3 else STYLES[-len(attacks) :]
    lines = [Curve(str(a["label"]), a["roc"], style) for a, style in zip(attacks, styles, strict=True)]
    entries = [(line.style, line.label) for line in reversed(lines)]
    if ceiling:
        lines.append(Curve("the most that the promise allows", ceiling["curve"], "limit"))
        entries.insert(0, ("limit", "the most that the promise allows"))
    asked = [_percent(point["fpr_asked"]) for point in attacks[0]["points"]]
    return {
        "skipped": "",
        "story": _story(found),
        "above": ", ".join(str(a["label"]) for a in attacks if any(p["passes_the_promise"] for p in a["points"])),
        "chart": roc_chart(lines, title="ROC curves of the attacks", resolution=float(found["resolution"])),
        "entries": entries,
        "caption": "True positive rate (TPR): the share of those who took part that is found, with its "
        f"{100 * float(found['confidence']):.0f}\u202f% interval, by false positive rate (FPR)",
        "headings": [("attacker", ""), *((f"at {fpr} FPR", "n") for fpr in asked), ("AUC", "n")],
        "ceiling": ceiling
        and {
            "mu": "" if ceiling.get("mu") is None else f"mu = {float(ceiling['mu']):.3f}",
            "cells": [_percent(tpr) for _, tpr in ceiling["tpr"]],
        },
        "rows": [
            {
                "style": style,
                "name": attack["label"],
                "adversary": attack["adversary"],
                "cells": [_share(point) for point in attack["points"]],
                "auc": Cell(f"{float(attack['auc']):.3f}", f"\u00b1 {1.96 * float(attack['auc_standard_error']):.3f}"),
            }
            for attack, style in reversed(list(zip(attacks, styles, strict=True)))
        ],
        "small_print": _small_print(found),
    }


def _story(found: Finding) -> str:
    """The experiment in plain words."""
    weakest, strongest = found["attacks"][0], found["attacks"][-1]
    point, ceiling = strongest["points"][0], found.get("ceiling")
    fpr = _percent(point["fpr_asked"])
    limit = (
        f"No attack whatever can be expected to find more than {_percent(ceiling['tpr'][0][1])} (dashed)."
        if ceiling
        else "Privacy was OFF, so nothing limits what an attack may find."
    )
    return (
        f"This run was attacked: {found['members']:,} patients took part, {found['non_members']:,} of the same kind "
        f"did not, and an attacker says who is who, accusing at most {fpr} of the others wrongly. One who "
        f"{weakest['adversary']} finds {_percent(weakest['points'][0]['tpr'])} of those who took part; one who "
        f"{strongest['adversary']} finds {_percent(point['tpr'])}. {limit} Guessing finds as many as it accuses "
        "wrongly (dotted)."
    )


def _small_print(found: Finding) -> str:
    """What the numbers cannot say."""
    others = int(found["non_members"])
    sentences = [
        f"One of {others:,} is {_percent(found['resolution'])}: below that FPR nothing can be told apart, and nothing "
        "is drawn.",
        "A threshold is chosen so that one more person who took no part would be accused as rarely as is said.",
        "Intervals are Clopper-Pearson, over patients of this one run; another run's noise moves them, too.",
    ]
    if found.get("ceiling"):
        sentences.append(
            "The promise is about one patient more or less, against everybody who sees all answers; its curve "
            "holds for attacks that nobody has thought of yet."
        )
    if found.get("rounds_used") and found["rounds_used"] < found["rounds"]:
        sentences.append(f"Deltas of {found['rounds_used']} of {found['rounds']} rounds were used.")
    sentences += [f"Left out: {what} ({why})." for what, why in found.get("left_out", {}).items()]
    return " ".join(sentences)


def _canaries(found: Finding) -> dict[str, Any]:
    if "skipped" in found:
        return {"skipped": found["skipped"]}
    return {
        "skipped": "",
        "holds": found["holds"],
        "headline": found["headline"],
        "rows": [
            {
                "name": row["name"],
                "tests": row["tests"],
                "claimed": f"{float(row['claimed_epsilon']):.2f}",
                "bound": f"{float(row['lower_bound_epsilon']):.2f}",
                "guesses": f"{int(row['guesses']):,}",
                "holds": row["holds"],
            }
            for row in found["experiments"]
        ],
    }


def _share(point: Finding) -> Cell:
    low, high = significant(point["tpr_low"]), _percent(point["tpr_high"])
    return Cell(_percent(point["tpr"]), f"{low} to {high}", alarm=bool(point["passes_the_promise"]))


def _percent(share: float) -> str:
    return f"{significant(share)}\u202f%"
