"""The report's page: sections in the order in which a reader asks. Every string of a run is escaped."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from typing import Any

from wardround_server.report.attacks import attacks
from wardround_server.report.card import card
from wardround_server.report.charts import Bar, Line, bar_chart, legend, line_chart, number, spark
from wardround_server.report.data import HospitalRow, RunRecord
from wardround_server.report.escaped import escape

NOTHING = "\u2013"
MANY = 60  # small multiples beyond this are left to the table


def page(run: RunRecord) -> str:
    """The whole file."""
    style = (importlib.resources.files(__package__) / "style.css").read_text(encoding="utf-8")
    sections = [
        _header(run),
        _comparison(run),
        card(run),
        _curves(run),
        _each_hospital(run),
        _hospitals(run),
        _privacy(run),
    ]
    sections.append(attacks(run))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(run.name)}: wardround report</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(s for s in [*sections, _configuration(run)] if s)
        + "\n<footer>Written by wardround from the run's own events. This file loads nothing and runs nothing.</footer>"
        "\n</main></body></html>\n"
    )


def _header(run: RunRecord) -> str:
    kind = "Simulated federation" if run.simulated else "Federation"
    banner = (
        ""
        if run.privacy_on
        else '<p class="banner" role="alert">PRIVACY OFF. No clipping and no noise: this run protects nobody. '
        "Only a simulation can do this; never show its deltas to anyone who may not see the patients.</p>"
    )
    tiles = "".join(f"<li><b>{escape(big)}</b><span>{escape(small)}</span></li>" for big, small in _tiles(run))
    return (
        f'<header>{banner}<p class="eyebrow">{kind} · {escape(run.name)}</p>'
        f'<h1>{escape(headline(run))}</h1><ul class="tiles">{tiles}</ul></header>'
    )


def headline(run: RunRecord) -> str:
    """What happened, in one or two plain sentences (text, not HTML)."""
    count = sum(not h.held_out for h in run.hospitals)
    rounds = len(run.training)
    goal = f" to tell {_listed(run.federation.task.classes)} apart" if run.federation else ""
    said = [f"{_counted(count, 'hospital')} learned{goal} together in {_counted(rounds, 'round')}."]
    rows = _shots(run.comparison)
    if rows:
        row = rows[-1]
        meta, fresh = float(row["meta"]["mean"]), float(row["fresh"]["mean"])
        change = "up from" if meta > fresh else "against"
        said.append(
            f"With {_counted(int(row['shots']), 'labelled patient')} a class, a hospital that took no part reaches "
            f"{number(meta, True)} balanced accuracy from the shared model, {change} {number(fresh, True)} from a "
            "fresh one."
        )
    if not run.privacy_on:
        said.append("No patient was protected.")
    elif run.epsilon_max is not None:
        said.append(f"What left a hospital tells at most epsilon {run.epsilon_max:.2f} about any one patient.")
    return " ".join(said)


def _tiles(run: RunRecord) -> list[tuple[str, str]]:
    tiles = [
        (str(sum(not h.held_out for h in run.hospitals)), "hospitals took part"),
        (str(len(run.training)), "training rounds"),
    ]
    asked = sum(e.hospitals for e in run.rounds)
    replied = sum(e.replied for e in run.rounds)
    if asked:
        tiles.append((f"{100 * replied / asked:.0f}\u202f%", "of the questions were answered"))
    if not run.privacy_on:
        tiles.append(("off", "privacy"))
    elif run.epsilon_max is not None:
        agreed = f" of {run.federation.privacy.epsilon:g} agreed" if run.federation else ""
        tiles.append((f"{run.epsilon_max:.2f}", f"epsilon spent{agreed}, at the hospital that spent most"))
    tiles.append((_duration(run.seconds), "from start to end"))
    return tiles


def _comparison(run: RunRecord) -> str:
    rows = _shots(run.comparison)
    if run.comparison is None or not rows:
        return ""
    groups = [
        (
            _counted(int(r["shots"]), "patient") + " a class" if int(r["shots"]) else "not adapted",
            [
                Bar(*_interval(r["fresh"]), "faint", "from a fresh model"),
                Bar(*_interval(r["meta"]), "main", "from the meta-learned model"),
            ],
        )
        for r in rows
    ]
    body = "".join(
        f"<tr><th scope=row>{int(r['shots']) or 'not adapted'}</th><td class=n>{_with_interval(r['fresh'])}</td>"
        f"<td class=n>{_with_interval(r['meta'])}</td>"
        f"<td class=n>{100 * (float(r['meta']['mean']) - float(r['fresh']['mean'])):+.1f}</td></tr>"
        for r in rows
    )
    who = escape(str(run.comparison.get("hospital", "a hospital that took no part")))
    repeats = run.comparison.get("repeats")
    drawn = (
        f" Mean over {int(repeats)} draws of the labelled patients; whiskers: 95\u202f% interval of the mean."
        if repeats
        else ""
    )
    chance = run.comparison.get("chance")
    chart = bar_chart(
        groups,
        title="k-shot accuracy before and after",
        chance=float(chance) if isinstance(chance, int | float) else None,
        y_label="balanced accuracy",
    )
    entries = legend([("main", "from the meta-learned model"), ("faint", "from a fresh model")])
    return (
        f"<section><h2>What a new hospital gains</h2><p>The hospital {who} took no part. It adapts the model "
        "with a few of its own "
        f"labelled patients and is tested on its other patients.{escape(drawn)}</p>"
        f'<div class="pair"><div>{chart}{entries}</div>'
        '<div class="scroll"><table><caption>Balanced accuracy after adaptation, with its interval</caption>'
        "<thead><tr><th scope=col>"
        "patients a class</th><th scope=col class=n>fresh</th><th scope=col class=n>meta-learned</th>"
        f"<th scope=col class=n>points gained</th></tr></thead><tbody>{body}</tbody></table></div></div></section>"
    )


def _curves(run: RunRecord) -> str:
    held_out = [(float(i), a) for i, a in run.shared_accuracy]
    accuracy = [Line(name, points, "faint") for name, points in run.accuracy.items()]
    entries = [("faint", "each hospital")] if accuracy else []
    if held_out:
        held_name = run.held_out.name if run.held_out else "all hospitals together"
        accuracy.append(Line(held_name, held_out, "main"))
        entries.insert(0, ("main", f"{held_name}, which took no part" if run.held_out else held_name))
    why = "The shared model as it is, before any adaptation. " + (
        "Measured without noise after each round, which is allowed only because these patients are synthetic."
        if run.synthetic
        else "Measured without noise at the hospital that took no part: epsilon says nothing about its patients."
        if run.simulated
        else "Estimated from the noised counts that hospitals release when rounds.evaluate_every asks for them."
    )
    chance = 1 / len(run.federation.task.classes) if run.federation else None
    marks = [(chance, "chance")] if chance else []
    accuracy_chart = line_chart(
        accuracy,
        title="Accuracy by round",
        x_label="round",
        y_label="accuracy",
        percent=True,
        y_range=(0, 1),
        marks=marks,
    )
    norms = [(float(i), e.delta_norm) for i, e in run.training if e.delta_norm is not None]
    norm_chart = line_chart(
        [Line("delta norm", norms, "second")], title="Norm of the mean delta", x_label="round", y_label="L2 norm"
    )
    return (
        f'<div class="pair"><section><h2>Accuracy by round</h2><p>{why}</p>{accuracy_chart}{legend(entries)}</section>'
        "<section><h2>How far the model moved</h2><p>L2 norm of the mean delta, noise included. With privacy on it "
        f"levels off at the size of the noise, not at zero.</p>{norm_chart}</section></div>"
    )


def _each_hospital(run: RunRecord) -> str:
    names = [h.name for h in run.hospitals if not h.held_out]
    shown = names[:MANY]
    if not shown or not (run.epsilon or run.accuracy):
        return ""
    last = max(len(run.training), 1)
    limit = max([run.epsilon_max or 0, run.federation.privacy.epsilon if run.federation else 0, 1e-9])
    cards = []
    for name in shown:
        pictures = []
        if run.accuracy.get(name):
            line = Line("accuracy", run.accuracy[name], "main")
            pictures.append(spark([line], title=f"{name}: accuracy by round", x=(0, last), y=(0, 1), percent=True))
        if run.privacy_on and run.epsilon.get(name):
            line = Line("epsilon", run.epsilon[name], "second")
            pictures.append(spark([line], title=f"{name}: epsilon by round", x=(0, last), y=(0, limit), percent=False))
        cards.append(f"<figure><h3>{escape(name)}</h3>{''.join(pictures)}</figure>")
    rest = (
        f"<p class=empty>{len(names) - MANY} more hospitals stand in the table below.</p>" if len(names) > MANY else ""
    )
    entries = [("main", "accuracy, 0 to 100 %")] if run.accuracy else []
    entries += [("second", f"epsilon spent, 0 to {limit:.3g}")] if run.privacy_on else []
    return (
        "<section><h2>Each hospital</h2><p>All pictures share their axes; the number at the end is the last value.</p>"
        f'{legend(entries)}<div class="many">{"".join(cards)}</div>{rest}</section>'
    )


def _hospitals(run: RunRecord) -> str:
    asked = len(run.rounds)
    body = "".join(_hospital_row(h, asked, run.privacy_on) for h in run.hospitals)
    return (
        "<section><h2>Hospitals</h2><p>Numbers of patients are the round, public ones that hospitals declare. "
        "A reply that is longer than an honest one can be is cut to that length. How far deltas lay from what was made "
        "of all is in units of the median hospital: far more than 1, round after round, is worth a "
        "question.</p>"
        '<div class="scroll"><table><thead><tr><th scope=col>hospital</th><th scope=col>modality, manufacturer</th>'
        "<th scope=col class=n>declared patients</th><th scope=col class=n>epsilon spent</th>"
        "<th scope=col class=n>answers</th><th scope=col class=n>apart</th><th scope=col>cut</th>"
        "<th scope=col>missing</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div></section>"
    )


def _hospital_row(row: HospitalRow, asked: int, privacy_on: bool) -> str:
    if row.held_out:
        spent, answers = "none", NOTHING
    else:
        spent = "off" if not privacy_on else NOTHING if row.epsilon is None else f"{row.epsilon:.2f}"
        answers = f"{row.replies} of {asked}"
    tag = ' <span class="tag">took no part</span>' if row.held_out else ""
    return (
        f"<tr{'' if not row.held_out else ' class=out'}><th scope=row>{escape(row.name)}{tag}</th>"
        f"<td>{escape(row.makers) or NOTHING}</td>"
        f"<td class=n>{row.declared_patients if row.declared_patients else NOTHING}</td><td class=n>{spent}</td>"
        f"<td class=n>{answers}</td><td class=n>{NOTHING if row.apart is None else f'{row.apart:.1f}'}</td>"
        f"<td>{_rejections(row.cuts)}</td><td>{_rejections(row.missing)}</td></tr>"
    )


def _rejections(reasons: Sequence[str]) -> str:
    if not reasons:
        return "none"
    if len(reasons) == 1:
        return escape(reasons[0])
    items = "<br>".join(escape(r) for r in reasons)
    return f"<details><summary>{len(reasons)} rounds</summary>{items}</details>"


def _privacy(run: RunRecord) -> str:
    if not run.privacy_on:
        return (
            "<section><h2>Privacy</h2><p>Switched off by hand for this simulation: answers were exact, so "
            "every delta may betray single patients. A hospital's installation cannot do this.</p></section>"
        )
    facts: list[tuple[str, str]] = [
        ("Protected unit", "one patient, with all of that patient's images"),
        ("Neighbours", "cohorts that differ by adding or removing one patient"),
        ("Adversary", "sees everything that left the hospital in this run, the coordinator included"),
    ]
    if run.federation:
        privacy = run.federation.privacy
        facts.append(("Epsilon", f"at most {privacy.epsilon:g} for the whole run, at each hospital"))
    deltas = [h.delta for h in run.hospitals if h.delta and not h.held_out]
    facts.append(
        ("Delta", f"{min(deltas):.1e} to {max(deltas):.1e}, below 1/(10 x declared patients)")
        if deltas
        else ("Delta", "each hospital's own, below 1/(10 x declared patients)")
    )
    if run.federation:
        facts.append(("Clipping", f"each patient's gradient to an L2 norm of {run.federation.privacy.clip_norm:g}"))
    facts.append(("Noise", "Gaussian, from the operating system's entropy; it cannot be seeded"))
    spent = f" The hospital that spent most has spent {run.epsilon_max:.3f}." if run.epsilon_max is not None else ""
    return (
        "<section><h2>What was promised to patients</h2><p>Whoever sees all that left a hospital "
        "can tell whether any one "
        f"patient was in its cohort only as well as (epsilon, delta) allows.{spent} Each price stood in the "
        f"hospital's ledger before its answer was computed.</p>{_facts(facts)}</section>"
    )


def _configuration(run: RunRecord) -> str:
    tables = ""
    if run.federation:
        for name, value in run.federation.model_dump(mode="json").items():
            values: Mapping[str, Any] = value if isinstance(value, dict) else {name: value}
            title = f"[{name}]" if isinstance(value, dict) else "federation"
            tables += f"<h3>{escape(title)}</h3>{_facts([(k, _shown(v)) for k, v in values.items()])}"
        tables += _facts([("digest", run.federation.digest)])
    versions = (
        _facts(sorted((str(k), str(v)) for k, v in run.versions.items())) if run.versions else "<p>Not recorded.</p>"
    )
    seed = _facts([("seed of the synthetic data", str(run.seed))]) if run.seed is not None else ""
    return (
        "<section><h2>Configuration and versions</h2><details><summary>What every hospital approved</summary>"
        f"{tables or '<p>Not recorded.</p>'}</details>"
        f"<details><summary>Versions</summary>{versions}{seed}</details></section>"
    )


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in facts) + "</dl>"


def _shots(comparison: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    rows = (comparison or {}).get("rows") or []
    return sorted(rows, key=lambda r: int(r["shots"]))


def _interval(cell: Mapping[str, Any]) -> tuple[float, float, float]:
    mean = float(cell["mean"])
    return mean, float(cell.get("low", mean)), float(cell.get("high", mean))


def _with_interval(cell: Mapping[str, Any]) -> str:
    mean, low, high = _interval(cell)
    interval = f"<br><span class=tag>{100 * low:.1f} to {100 * high:.1f}</span>" if low < high else ""
    return f"{100 * mean:.1f}\u202f%{interval}"


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def _listed(words: Sequence[str]) -> str:
    if len(words) > 4:
        return f"{len(words)} findings"
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value) or "none"
    return str(value) if value != "" else "none"


def _duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
