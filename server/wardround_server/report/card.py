"""The new-hospital card: what the shared model is worth at a hospital that took no part, before and after adapting."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wardround_server.report.charts import Bar, bar_chart, legend, number
from wardround_server.report.data import RunRecord
from wardround_server.report.escaped import escape

Judged = Mapping[str, Any]
NOTHING = "\u2013"


@dataclass(frozen=True)
class Metric:
    """name: in the JSON. said: for a reader. means: in plain words. lower: whether less is better."""

    name: str
    said: str
    means: str
    percent: bool = False
    lower: bool = False


METRICS = (
    Metric("balanced_accuracy", "balanced accuracy", "share recognised, each class counting the same", percent=True),
    Metric("macro_auroc", "macro AUROC", "how often a patient with a finding scores above one without; 0.5 is chance"),
    Metric("macro_f1", "macro F1", "missed and wrongly named patients weighed together; 1 is the best"),
    Metric(
        "recall_at_specificity",
        "recall at {specificity}",
        "share of a class found while so many of the others are told right",
        True,
    ),
    Metric(
        "expected_calibration_error", "calibration error", "how far probabilities are from what came true", lower=True
    ),
    Metric("brier_score", "Brier score", "squared error of the probabilities", lower=True),
)


def card(run: RunRecord) -> str:
    """The section; empty where nobody was adapted to."""
    found: Judged | None = (run.comparison or {}).get("card")
    if not found:
        return ""
    if "skipped" in found:
        return f"<section><h2>New-hospital card</h2><p>{escape(str(found['skipped']))}</p></section>"
    before, after = found["before"], found["after"]
    shown = [m for m in METRICS if before["metrics"].get(m.name) and after["metrics"].get(m.name)]
    charted = [metric for metric in shown if not metric.lower]
    groups = [
        (
            _said(metric, after),
            [
                Bar(*_interval(before["metrics"][metric.name]), "faint", "before adapting"),
                Bar(*_interval(after["metrics"][metric.name]), "main", "after adapting"),
            ],
        )
        for metric in charted
    ]
    chart = bar_chart(groups, title="Before and after adapting", chance=None, y_label="higher is better")
    entries = legend([("faint", "before: the shared model as it is"), ("main", "after adapting to this hospital")])
    who = str((run.comparison or {}).get("hospital", "the new hospital"))
    return (
        f"<section><h2>New-hospital card: {escape(who)}</h2><p>{escape(_story(found))}</p>"
        f'<div class="pair"><div>{chart}{entries}{_makers(before, after)}</div>{_table(shown, before, after)}</div>'
        f'<p class="tag">{escape(_small_print(found))}</p></section>'
    )


def _story(found: Judged) -> str:
    learned = ", ".join(f"{count} {label}" for label, count in found["support_by_class"].items() if count)
    what = (
        f"The shared model learned from {found['support_patients']} labelled patients of this hospital "
        f"({learned}). Its {found['after']['patients']} other patients judge it, before and after."
    )
    values = [found[when]["metrics"].get("balanced_accuracy") for when in ("before", "after")]
    if None in values:
        return what
    before, after = (float(value["value"]) for value in values)
    went = "rose" if after > before else "fell" if after < before else "stayed"
    return f"{what} Balanced accuracy {went} from {number(before, True)} to {number(after, True)}."


def _table(shown: list[Metric], before: Judged, after: Judged) -> str:
    body = "".join(
        f"<tr><th scope=row>{escape(_said(metric, after))}<br><span class=tag>{escape(metric.means)}"
        f"{'; lower is better' if metric.lower else ''}</span></th>"
        f"<td class=n>{_cell(metric, before)}</td><td class=n>{_cell(metric, after)}</td></tr>"
        for metric in shown
    )
    return (
        '<div class="scroll"><table><caption>Each metric with its 95\u202f% interval over patients</caption>'
        "<thead><tr><th scope=col>metric</th><th scope=col class=n>before</th><th scope=col class=n>after</th></tr>"
        f"</thead><tbody>{body}</tbody></table></div>"
    )


def _makers(before: Judged, after: Judged) -> str:
    """Balanced accuracy by the maker of the scanner; nothing where there is one."""
    makers = list(after["manufacturers"])
    if len(makers) < 2:
        return ""
    metric = METRICS[0]
    body = "".join(
        f"<tr><th scope=row>{escape(maker)}</th><td class=n>{int(after['manufacturers'][maker]['patients'])}</td>"
        f"<td class=n>{_cell(metric, before['manufacturers'][maker])}</td>"
        f"<td class=n>{_cell(metric, after['manufacturers'][maker])}</td></tr>"
        for maker in makers
    )
    return (
        '<div class="scroll"><table><caption>Balanced accuracy by the scanner\'s manufacturer</caption><thead><tr>'
        "<th scope=col>manufacturer</th><th scope=col class=n>patients</th><th scope=col class=n>before</th>"
        f"<th scope=col class=n>after</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def _small_print(found: Judged) -> str:
    classes, judged = found["classes"], found["after"]["classes"]
    missing = [str(name) for index, name in enumerate(classes) if index not in judged]
    said = (
        "One draw of the labelled patients. Here all images of a patient make one prediction, so that numbers differ a "
        "little from those above. With few patients a class the intervals are too narrow."
    )
    return said + (f" Not judged, for lack of patients: {', '.join(missing)}." if missing else "")


def _said(metric: Metric, judged: Judged) -> str:
    return metric.said.format(specificity=f"{100 * float(judged['specificity']):.0f}\u202f% specificity")


def _interval(found: Judged) -> tuple[float, float, float]:
    return float(found["value"]), float(found["low"]), float(found["high"])


def _cell(metric: Metric, judged: Judged) -> str:
    found = judged["metrics"].get(metric.name)
    if not found:
        return NOTHING
    value, low, high = _interval(found)
    if metric.percent:
        return f"{100 * value:.1f}\u202f%<br><span class=tag>{100 * low:.1f} to {100 * high:.1f}</span>"
    return f"{value:.3f}<br><span class=tag>{low:.3f} to {high:.3f}</span>"
