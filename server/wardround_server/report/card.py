"""The new-hospital card: what the shared model is worth at a hospital that took no part, before and after adapting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from wardround.text import capital, counted
from wardround.web.charts import Bar, bar_chart
from wardround_server.report.numbers import NOTHING, Cell, limits, percent

Judged = Mapping[str, Any]


@dataclass(frozen=True)
class Metric:
    """name: in the JSON. label: for a reader. means: in plain words. lower: whether less is better.

    share: whether it is a proportion of patients, in [0, 1].
    """

    name: str
    label: str
    means: str
    share: bool = False
    lower: bool = False


# Balanced accuracy is shown once, above the card, over more draws of the labelled patients.
BALANCED = Metric(
    "balanced_accuracy", "balanced accuracy", "share recognised, each class counting the same", share=True
)
METRICS = (
    Metric("macro_auroc", "macro AUROC", "how often a patient with a finding scores above one without; 0.5 is chance"),
    Metric("macro_f1", "macro F1", "missed and wrongly named patients weighed together; 1 is the best"),
    Metric(
        "recall_at_specificity",
        "recall at {specificity}",
        "share of a class found while so many of the others are told right",
        share=True,
    ),
    Metric(
        "expected_calibration_error", "calibration error", "how far probabilities are from what came true", lower=True
    ),
    Metric("brier_score", "Brier score", "squared error of the probabilities", lower=True),
)
OF_TIMES = (
    Metric("concordance", "concordance", "how often the patient with the event first had the greater risk"),
    Metric(
        "calibration_error", "calibration error", "how far probabilities are from the share that came true", lower=True
    ),
)
OF_PLACES = (
    Metric("dice", "Dice coefficient", "overlap of masks, patient by patient; 1 is the best"),
    Metric(
        "surface_distance_95_px", "95 % surface distance", "how far edges of masks lie apart, in pixels", lower=True
    ),
    Metric("volume_error", "volume error", "how much too large or too small a mask is", lower=True),
    Metric("cpm", "mean sensitivity", "findings found at 1/8 to 8 false ones an image; 1 is the best"),
    Metric("f1", "F1 of findings", "missed and invented findings weighed together; 1 is the best"),
    Metric("false_findings_per_image", "false findings an image", "of what is called a finding", lower=True),
)
ALL = (BALANCED, *METRICS, *OF_TIMES, *OF_PLACES)


def card(comparison: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the template shows; None where nobody adapted."""
    found: Judged | None = (comparison or {}).get("card")
    if not comparison or not found:
        return None
    if "skipped" in found:
        return {"skipped": found["skipped"]}
    before, after = found["before"], found["after"]
    # As on the screen of `adapt`: the first that a kind of labels is judged by.
    main = next((m for name in after["metrics"] for m in ALL if m.name == name), BALANCED)
    metrics = METRICS if (comparison.get("rows") or []) else (BALANCED, *METRICS)
    shown = [
        m for m in (*metrics, *OF_TIMES, *OF_PLACES) if before["metrics"].get(m.name) and after["metrics"].get(m.name)
    ]
    groups = [
        (
            _label(metric, after),
            [
                Bar(*_limits(metric, before), "faint", "before adapting"),
                Bar(*_limits(metric, after), "main", "after adapting"),
            ],
        )
        for metric in shown
        if not metric.lower
    ]
    return {
        "skipped": "",
        "who": comparison.get("hospital", "the new hospital"),
        "story": _story(found, shown),
        "chart": bar_chart(groups, title="Before and after adapting", chance=None, y_label="higher is better"),
        "makers_title": f"{capital(_label(main, after))} by the scanner's manufacturer",
        "makers": _makers(main, before, after),
        "rows": [
            {
                "name": _label(metric, after),
                "means": metric.means + ("; lower is better" if metric.lower else ""),
                "before": _cell(metric, before),
                "after": _cell(metric, after),
            }
            for metric in shown
        ],
        "small_print": _small_print(found),
    }


def _story(found: Judged, shown: Sequence[Metric]) -> str:
    learned = ", ".join(f"{count} {label}" for label, count in found["support_by_class"].items() if count)
    what = (
        f"The shared model learned from {counted(found['support_patients'], 'labelled patient')} of this hospital "
        f"({learned}). {counted(found['after']['patients'], 'other patient')} of it judge it, before and after."
    )
    if not shown:
        return what
    metric = shown[0]
    before, after = (limits(found[when]["metrics"][metric.name])[0] for when in ("before", "after"))
    went = "rose" if after > before else "fell" if after < before else "stayed"
    return (
        f"{what} The {_label(metric, found['after'])} {went} from {_value(metric, before)} to {_value(metric, after)}."
    )


def _makers(metric: Metric, before: Judged, after: Judged) -> Sequence[Mapping[str, Any]]:
    """A metric by the maker of the scanner; nothing where there is one."""
    makers = list(after["manufacturers"])
    if len(makers) < 2:
        return ()
    return [
        {
            "name": maker,
            "patients": int(after["manufacturers"][maker]["patients"]),
            "before": _cell(metric, before["manufacturers"][maker]),
            "after": _cell(metric, after["manufacturers"][maker]),
        }
        for maker in makers
    ]


def _small_print(found: Judged) -> str:
    classes, judged = found["classes"], found["after"]["classes"]
    missing = [str(name) for index, name in enumerate(classes) if index not in judged]
    text = "One draw of the labelled patients; all images of a patient make one prediction."
    return text + (f" Not judged, for lack of patients: {', '.join(missing)}." if missing else "")


def _label(metric: Metric, judged: Judged) -> str:
    return metric.label.format(specificity=f"{percent(float(judged.get('specificity', 0)))} specificity")


def _limits(metric: Metric, judged: Judged) -> tuple[float, float, float]:
    return limits(judged["metrics"][metric.name], int(judged["patients"]) if metric.share else 0)


def _value(metric: Metric, value: float) -> str:
    return percent(value, 1) if metric.share else f"{value:.3f}"


def _cell(metric: Metric, judged: Judged) -> Cell:
    if not judged["metrics"].get(metric.name):
        return Cell(NOTHING)
    value, low, high = _limits(metric, judged)
    if metric.share:
        return Cell(_value(metric, value), f"{100 * low:.1f} to {100 * high:.1f}")
    return Cell(_value(metric, value), f"{low:.3f} to {high:.3f}" if low < high else "")
