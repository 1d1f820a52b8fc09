"""The section "What an attacker gets": membership inference and the canary audit of a simulation with `--audit`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from wardround_server.report.charts import Line, legend, roc_chart
from wardround_server.report.data import RunRecord
from wardround_server.report.escaped import escape

Finding = Mapping[str, Any]
STYLES = ("faint", "fourth", "third", "second", "main")


def attacks(run: RunRecord) -> str:
    """The section; empty where nothing was attacked."""
    if run.membership is None and run.audit is None:
        return ""
    parts = [_membership(run.membership) if run.membership else "", _canaries(run.audit) if run.audit else ""]
    return f"<section><h2>What an attacker gets</h2>{''.join(parts)}</section>"


def _membership(found: Finding) -> str:
    if "skipped" in found:
        return f"<p>{escape(str(found['skipped']))}</p>"
    attacks: Sequence[Finding] = found["attacks"]
    ceiling = found.get("ceiling")
    # The strongest attacks get the last colours, also where some are left out.
    styles = STYLES[: len(attacks)] if len(attacks) < 3 else STYLES[-len(attacks) :]
    lines = [Line(str(a["label"]), a["roc"], style) for a, style in zip(attacks, styles, strict=True)]
    entries = [(line.style, line.label) for line in reversed(lines)]
    if ceiling:
        lines.append(Line("the most that the promise allows", ceiling["curve"], "limit"))
        entries.insert(0, ("limit", "the most that the promise allows"))
    chart = roc_chart(lines, title="ROC curves of the attacks", resolution=float(found["resolution"]))
    return (
        f"<p>{_told(found)}</p>{_verdict(attacks)}"
        f'<div class="pair"><div>{chart}{legend(entries)}</div>{_table(found, attacks, styles)}</div>'
        f"{_small_print(found)}"
    )


def _told(found: Finding) -> str:
    """The experiment in plain words."""
    weakest, strongest = found["attacks"][0], found["attacks"][-1]
    point, ceiling = strongest["points"][0], found.get("ceiling")
    fpr = _percent(point["fpr_asked"])
    limit = (
        f"No attack whatever can be expected to find more than {_percent(ceiling['tpr'][0][1])} (dashed)."
        if ceiling
        else "Privacy was OFF, so nothing limits what an attack may find."
    )
    return escape(
        f"This run was attacked: {found['members']:,} patients took part, {found['non_members']:,} of the same kind "
        f"did not, and an attacker says who is who, accusing at most {fpr} of the others wrongly. One who "
        f"{weakest['adversary']} finds {_percent(weakest['points'][0]['tpr'])} of those who took part; one who "
        f"{strongest['adversary']} finds {_percent(point['tpr'])}. {limit} Guessing finds as many as it accuses "
        "wrongly (dotted)."
    )


def _verdict(attacks: Sequence[Finding]) -> str:
    above = [str(a["label"]) for a in attacks if any(p["passes_the_promise"] for p in a["points"])]
    if not above:
        return ""
    return (
        f'<p class="banner" role="alert">{escape(", ".join(above))}: more is found than the promise allows. '
        "Repeat the run; if it stays so, the answers give more away than is claimed.</p>"
    )


def _table(found: Finding, attacks: Sequence[Finding], styles: Sequence[str]) -> str:
    asked = [_percent(point["fpr_asked"]) for point in attacks[0]["points"]]
    head = "".join(f"<th scope=col class=n>at {escape(fpr)} FPR</th>" for fpr in asked)
    rows = "".join(
        f'<tr><th scope=row><span class="key {style}"></span>{escape(str(a["label"]))}<br><span class=tag>'
        f"{escape(str(a['adversary']))}</span></th>"
        + "".join(f"<td class=n>{_share(point)}</td>" for point in a["points"])
        + f"<td class=n>{float(a['auc']):.3f}<br><span class=tag>\u00b1 {1.96 * float(a['auc_standard_error']):.3f}"
        "</span></td></tr>"
        for a, style in reversed(list(zip(attacks, styles, strict=True)))
    )
    ceiling = found.get("ceiling")
    if ceiling:
        mu = "" if ceiling.get("mu") is None else f"<br><span class=tag>mu = {float(ceiling['mu']):.3f}</span>"
        cells = "".join(f"<td class=n>{_percent(tpr)}</td>" for _, tpr in ceiling["tpr"])
        rows = f"<tr><th scope=row>the most that the promise allows{mu}</th>{cells}<td class=n></td></tr>" + rows
    confidence = f"{100 * float(found['confidence']):.0f}\u202f%"
    return (
        f'<div class="scroll"><table><caption>Share of those who took part that is found (TPR), with its {confidence} '
        f"interval</caption><thead><tr><th scope=col>attacker</th>{head}<th scope=col class=n>AUC</th></tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _small_print(found: Finding) -> str:
    """What the numbers cannot say."""
    others = int(found["non_members"])
    said = [
        f"One of {others:,} is {_percent(found['resolution'])}: below that FPR nothing can be told apart, and nothing "
        "is drawn.",
        "A threshold is chosen so that one more person who took no part would be accused as rarely as is said.",
        "Intervals are Clopper-Pearson, over patients of this one run; another run's noise moves them, too.",
    ]
    if found.get("ceiling"):
        said.append(
            "The promise is about one patient more or less, against everybody who sees all answers; its curve "
            "holds for attacks that nobody has thought of yet."
        )
    if found.get("rounds_used") and found["rounds_used"] < found["rounds"]:
        said.append(f"Deltas of {found['rounds_used']} of {found['rounds']} rounds were used.")
    said += [f"Left out: {what} ({why})." for what, why in found.get("left_out", {}).items()]
    return f"<p class=tag>{escape(' '.join(said))}</p>"


def _canaries(found: Finding) -> str:
    if "skipped" in found:
        return f"<h3>Audit with canaries</h3><p>{escape(str(found['skipped']))}</p>"
    body = "".join(
        f"<tr><th scope=row>{escape(str(row['name']))}</th><td>{escape(str(row['tests']))}</td>"
        f"<td class=n>{float(row['claimed_epsilon']):.2f}</td><td class=n>{float(row['lower_bound_epsilon']):.2f}</td>"
        f"<td class=n>{int(row['guesses']):,}</td>"
        + ("<td>holds</td>" if row["holds"] else '<td><b class="alarm">refuted</b></td>')
        + "</tr>"
        for row in found["experiments"]
    )
    banner = (
        ""
        if found["holds"]
        else '<p class="banner" role="alert">The audit refutes what is claimed of epsilon. Let no patient be asked '
        "with this installation.</p>"
    )
    return (
        f"<h3>Audit with canaries</h3>{banner}<p>{escape(str(found['headline']))} Invented patients, as conspicuous as "
        "can be, stand in for real ones, and an attacker who knows everything else guesses which of them are there: "
        "what the guesses prove is a lower bound on epsilon, and it must stay below the claim.</p>"
        '<div class="scroll"><table><thead><tr><th scope=col>experiment</th><th scope=col>what it would find</th>'
        "<th scope=col class=n>claimed epsilon</th><th scope=col class=n>at least</th>"
        "<th scope=col class=n>guesses</th><th scope=col>verdict</th></tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _share(point: Finding) -> str:
    above = '<br><b class="alarm">above the promise</b>' if point["passes_the_promise"] else ""
    return (
        f"{_percent(point['tpr'])}<br><span class=tag>{_number(point['tpr_low'])} to {_percent(point['tpr_high'])}"
        f"</span>{above}"
    )


def _percent(share: float) -> str:
    return f"{_number(share)}\u202f%"


def _number(share: float) -> str:
    """In percent, with two or three digits that matter."""
    value = 100 * float(share)
    return f"{value:.3g}" if value >= 1 else f"{value:.2g}"
