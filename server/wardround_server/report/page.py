"""The report's page: sections in the order in which a reader asks, each a template; all text of a run is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from wardround import __version__
from wardround.labels import LABEL_KINDS
from wardround.text import capital
from wardround.web.charts import Bar, Curve, bar_chart, line_chart, spark, style_sheet
from wardround.web.escaped import visible
from wardround_server.report.attacks import attacks
from wardround_server.report.card import card
from wardround_server.report.data import HospitalRow, RunRecord
from wardround_server.report.numbers import NOTHING, Cell, limits, percent
from wardround_server.report.story import means, story

MANY = 60  # small multiples beyond this are left to the table
DIGEST_LETTERS = 16


@cache
def _environment() -> Environment:
    """Templates are compiled once. All text is escaped; a name that a template misspells is an error."""
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def page(run: RunRecord) -> str:
    """The whole file."""
    columns, rows = hospitals(run)
    return (
        _environment()
        .get_template("page.html")
        .render(
            run=run,
            version=__version__,
            style=Markup(style_sheet() + files(__package__).joinpath("style.css").read_text(encoding="utf-8")),
            story=story(run),
            comparison=_comparison(run.comparison),
            card=card(run.comparison),
            curves=curves(run),
            each=each(run),
            columns=columns,
            hospitals=rows,
            privacy=_privacy(run),
            attacks=attacks(run),
            about=_about(run),
            agreement=list(_agreement(run)),
        )
    )


def _comparison(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    rows = sorted((found or {}).get("rows") or [], key=lambda row: int(row["shots"]))
    if not found or not rows:
        return None
    groups = [
        (
            str(int(row["shots"]) or "none"),
            [
                Bar(*limits(row["fresh"]), "faint", "from a fresh model, alone"),
                Bar(*limits(row["meta"]), "main", "from the federation's model"),
            ],
        )
        for row in rows
    ]
    repeats, chance = found.get("repeats"), found.get("chance")
    score = str(found.get("score", "balanced accuracy"))
    named = capital(score)
    drawn = f" Mean over {int(repeats)} draws of them; whiskers: 95\u202f% interval of the mean." if repeats else ""
    return {
        "who": found.get("hospital", "a hospital"),
        "chart": bar_chart(
            groups,
            title=f"{named} before and after",
            chance=float(chance) if isinstance(chance, int | float) else None,
            y_label=score,
            x_label="labelled patients a class",
        ),
        "score": named,
        "drawn": f"{named} by the number of labelled patients of each class.{drawn}",
        "rows": [
            {
                "shots": int(row["shots"]) or "not adapted",
                "fresh": _share(row["fresh"]),
                "meta": _share(row["meta"]),
                "gain": f"{100 * (float(row['meta']['mean']) - float(row['fresh']['mean'])):+.1f}",
            }
            for row in rows
        ],
    }


def _share(cell: Mapping[str, Any]) -> Cell:
    value, low, high = limits(cell)
    return Cell(percent(value, 1), f"{100 * low:.1f} to {100 * high:.1f}" if low < high else "")


def curves(run: RunRecord) -> dict[str, Any]:
    """Accuracy and the delta's norm by round, as drawings."""
    shared = [(float(number), value) for number, value in run.shared_accuracy]
    lines = [Curve(name, points, "faint") for name, points in run.accuracy.items()]
    entries = [("faint", "each hospital")] if lines else []
    if shared:
        who = run.held_out.name if run.held_out else "all hospitals together"
        lines.append(Curve(who, shared, "main"))
        entries.insert(0, ("main", f"{who}, which took no part" if run.held_out else who))
    why = "The shared model as it is, before any adaptation. " + (
        "Measured without noise after each round, which is allowed only because these patients are synthetic."
        if run.synthetic
        else "Measured without noise at the hospital that took no part: epsilon says nothing about its patients."
        if run.simulated
        else "Estimated from the noised counts that hospitals release when rounds.evaluate_every asks for them."
    )
    if run.simulated and not shared:
        why = "This method predicts nothing without examples of a class, so nothing is measured before any adaptation."
    task = run.federation.task if run.federation else None
    chance = LABEL_KINDS[task.labels].chance(len(task.classes)) if task else None
    named = f"{capital(run.score)} by round"
    norms = [(float(number), event.delta_norm) for number, event in run.training if event.delta_norm is not None]
    return {
        "accuracy": line_chart(
            lines,
            title=named,
            x_label="training round",
            y_label=run.score,
            percent=True,
            y_range=(0, 1),
            marks=[(chance, "chance")] if chance else [],
        ),
        "named": named,
        "why": why,
        "entries": entries,
        "norms": line_chart(
            [Curve("delta norm", norms, "second")],
            title="Norm of the mean delta",
            x_label="training round",
            y_label="L2 norm",
        ),
    }


def each(run: RunRecord) -> dict[str, Any] | None:
    """Small drawings of each hospital; None where nothing is known."""
    names = [row.name for row in run.members]
    if not names or not (run.epsilon or run.accuracy):
        return None
    last = max(len(run.training), 1)
    limit = max([run.epsilon_max or 0, run.federation.privacy.epsilon if run.federation else 0, 1e-9])
    hospitals = []
    for name in names[:MANY]:
        drawings = []
        if run.accuracy.get(name):
            line = Curve(run.score, run.accuracy[name], "main")
            drawings.append(spark([line], title=f"{name}: {run.score} by round", x=(0, last), y=(0, 1), percent=True))
        if run.privacy_on and run.epsilon.get(name):
            line = Curve("epsilon", run.epsilon[name], "second")
            drawings.append(spark([line], title=f"{name}: epsilon by round", x=(0, last), y=(0, limit), percent=False))
        if drawings:
            hospitals.append((name, drawings))
    entries = [("main", f"{run.score}, 0 to 100 %")] if run.accuracy else []
    entries += [("second", f"epsilon spent, 0 to {limit:.3g}")] if run.privacy_on else []
    return {"entries": entries, "hospitals": hospitals, "rest": max(0, len(names) - MANY)}


def hospitals(run: RunRecord) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """(headings, rows); a column of which nobody knows anything is left out."""
    rows = run.hospitals
    columns = {
        "modality, manufacturer": ("", [row.makers for row in rows]),
        "declared patients": ("n", [f"{row.declared_patients:,}" if row.declared_patients else "" for row in rows]),
        "epsilon spent": ("n", [_spent(row, run.privacy_on) for row in rows]),
        "delta": ("n", [f"{delta:.1e}" if run.privacy_on and (delta := delta_of(row)) else "" for row in rows]),
        "answers": ("n", ["" if row.held_out else f"{row.replies} of {row.rounds}" for row in rows]),
        "apart": ("n", ["" if row.apart is None else f"{row.apart:.1f}" for row in rows]),
        "last answer (SHA-256)": ("digest", [row.answer[:DIGEST_LETTERS] for row in rows]),
    }
    known = {name: column for name, column in columns.items() if any(column[1])}
    titles = ((name, kind) for name, (kind, _) in known.items())
    return [("hospital", ""), *titles, ("cut", ""), ("missing, and why", "")], [
        {
            "name": row.name,
            "held_out": row.held_out,
            "cells": [(values[index] or NOTHING, kind) for kind, values in known.values()],
            "cuts": row.cuts,
            "missing": () if row.held_out else row.missing,
        }
        for index, row in enumerate(rows)
    ]


def delta_of(row: HospitalRow) -> float | None:
    """A hospital's delta: its own, or what follows from the patients that it declares."""
    return row.delta or (1 / (10 * row.declared_patients + 1) if row.declared_patients else None)


def _spent(row: HospitalRow, privacy_on: bool) -> str:
    if row.held_out or not privacy_on:
        return "none" if row.held_out else "off"
    return "" if row.epsilon is None else f"{row.epsilon:.2f}"


def _privacy(run: RunRecord) -> dict[str, Any]:
    deltas = [delta for row in run.members if (delta := delta_of(row))]
    facts = [
        ("Protected unit", "one patient, with all of that patient's images"),
        ("Neighbours", "cohorts that differ by adding or removing one patient"),
        ("Adversary", "sees everything that left the hospital in this run, the coordinator included"),
    ]
    agreed = run.federation.privacy if run.federation else None
    if agreed:
        facts.append(("Epsilon", f"at most {agreed.epsilon:g} for the whole run, at each hospital"))
    facts.append(
        ("Delta", f"{min(deltas):.1e} to {max(deltas):.1e}, below 1/(10 x declared patients)")
        if deltas
        else ("Delta", "each hospital's own, below 1/(10 x declared patients)")
    )
    spent = []
    if run.epsilon_max is not None:
        left = f"; {max(0.0, agreed.epsilon - run.epsilon_max):.3f} of what was agreed is left" if agreed else ""
        spent.append(f"The hospital that spent most has spent {run.epsilon_max:.3f}{left}.")
        if deltas:
            facts.append(("In other words", means(run.epsilon_max, max(deltas))))
    if agreed:
        facts.append(("Clipping", f"each patient's gradient to an L2 norm of {agreed.clip_norm:g}"))
    facts.append(("Noise", "Gaussian, from the operating system's entropy; it cannot be seeded"))
    return {"spent": spent, "facts": facts}


def _about(run: RunRecord) -> list[tuple[str, str]]:
    facts = [("run", run.run), ("federation", run.name), ("agreement", run.digest or "not recorded")]
    facts += [("begun", run.begun or "not recorded"), ("last event", run.ended or "not recorded")]
    facts += [(name, version) for name, version in sorted(run.versions.items())]
    if not run.versions:
        facts.append(("versions", "not recorded"))
    if run.seed is not None:
        facts.append(("seed of the synthetic data", str(run.seed)))
    return facts


def _agreement(run: RunRecord) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    if not run.federation:
        return
    for name, value in run.federation.model_dump(mode="json").items():
        table: Mapping[str, Any] = value if isinstance(value, dict) else {name: value}
        title = f"[{name}]" if isinstance(value, dict) else "federation"
        yield title, [(key, _setting(setting)) for key, setting in table.items()]


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value) or "none"
    return str(value) if value != "" else "none"
