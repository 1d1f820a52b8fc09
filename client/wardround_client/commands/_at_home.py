"""What `adapt`, `evaluate` and others share: a hospital opened without its ledger, their options, their tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.progress import TextColumn

from wardround.terminal import Table, progress_bar, say
from wardround.text import counted
from wardround_client.commands._common import checked
from wardround_client.office import models

if TYPE_CHECKING:
    from collections.abc import Callable

    from wardround_client.hospital import Hospital
    from wardround_client.personal.data_checks import Finding

NOTHING_LEFT = "Nothing left this hospital, and nothing was charged to its budget."
TaskOption = Annotated[
    str,
    typer.Option(
        help="What is diagnosed: a federation (name, digest or its beginning, federation.toml), or a TOML file with "
        "nothing but a table of the name task, for a task of your own. Not needed where one federation is approved.",
        show_default=False,
    ),
]
FederationOption = Annotated[
    str,
    typer.Option(help="Whose model, where --task is a task of your own and several are approved.", show_default=False),
]
ModelOption = Annotated[
    Path | None,
    typer.Option(
        help="The coordinator's checkpoint.safetensors. Without it: the model that this hospital saw last.",
        show_default=False,
    ),
]
LOWER_IS_BETTER = ("expected_calibration_error", "brier_score", "calibration_error")
_METRICS = {
    "balanced_accuracy": "balanced accuracy",
    "macro_auroc": "macro AUROC",
    "macro_f1": "macro F1",
    "recall_at_specificity": "recall at {specificity:.0%} specificity",
    "expected_calibration_error": "calibration error (lower is better)",
    "brier_score": "Brier score (lower is better)",
    "concordance": "concordance (Uno's)",
    "calibration_error": "calibration error at the ends (lower is better)",
    "dice": "Dice coefficient",
    "surface_distance_95_px": "95 % surface distance, px of the cohort's images (lower is better)",
    "volume_error": "volume error, share of what is there (lower is better)",
    "cpm": "mean sensitivity at 1/8 to 8 false findings an image",
    **{
        f"sensitivity_at_{float(Fraction(rate)):g}": f"sensitivity at {rate} false findings an image"
        for rate in ("1/8", "1/4", "1/2", "1", "2", "4", "8")
    },
    "f1": "F1 of findings",
    "sensitivity": "sensitivity of what is called a finding",
    "false_findings_per_image": "false findings an image (lower is better)",
}
_PERCENT = ("balanced_accuracy", "recall_at_specificity")
_MOST_CLASSES = 8  # of a confusion matrix on the screen
Judged = Mapping[str, Any]
"""A `kinds.Judged` as JSON."""


def separated(names: str) -> list[str]:
    """What an option lists with commas between; nothing for an empty text."""
    return [each.strip() for each in names.split(",")] if names else []


def opened(home: Path) -> Hospital:
    """The hospital that lives there, without its ledger. Raises: ConfigError."""
    return models.opened(checked(home))


@contextmanager
def stages(*names: str, quiet: bool) -> Iterator[Callable[[], None]]:
    """A bar over steps of unknown length -> what ends a step and begins the next; the first has begun."""
    with progress_bar(TextColumn("step {task.completed} of {task.total}"), quiet=quiet) as progress:
        bar = progress.add_task(names[0], total=len(names))
        left = iter(names[1:])
        yield lambda: progress.update(bar, advance=1, description=next(left, "done"))


def warn(findings: Sequence[Finding]) -> None:
    """Each finding, and what to do about it."""
    for finding in findings:
        say(f"Warning: {finding.what}. Next: {finding.do}.", "yellow")


def scores(columns: Mapping[str, Judged], title: str) -> Table:
    """Metrics, one a row, of the same patients judged in several ways, one a column; then by manufacturer."""
    first = next(iter(columns.values()))
    rows = [
        (
            _METRICS.get(metric, metric).format(specificity=first.get("specificity")),
            *(_estimate(judged["metrics"][metric], metric) for judged in columns.values()),
        )
        for metric in first["metrics"]
    ]
    main = next(iter(first["metrics"]))
    makers = [
        (
            f"{_METRICS[main]}, {maker} ({counted(of_maker['patients'], 'patient')})",
            *(_estimate(judged["manufacturers"][maker]["metrics"][main], main) for judged in columns.values()),
        )
        for maker, of_maker in first["manufacturers"].items()
    ]
    caption = f"{counted(first['patients'], 'patient')}; in brackets the 95 % interval over patients"
    return Table(("metric", *(f">{name}" for name in columns)), [*rows, (), *makers], title, caption)


def decisions(judged: Judged, classes: Sequence[str]) -> list[Table]:
    """Which class is taken for which, where classes exclude each other; and each class' operating point."""
    tables = []
    if judged["confusion"] and len(classes) <= _MOST_CLASSES:
        rows = [(name, *map(str, row)) for name, row in zip(classes, judged["confusion"], strict=True)]
        columns = ("is \\ predicted", *(f">{name}" for name in classes))
        tables.append(Table(columns, rows, "Confusion matrix, patients"))
    rows = [
        (name, f"{point['threshold']:.3f}", _estimate(point["sensitivity"], "recall_at_specificity"),
         f"{100 * point['specificity']:.1f} %")
        for name, point in zip(classes, judged["operating_points"], strict=False)
        if point
    ]  # fmt: skip
    if rows:
        title = f"Operating points at {judged['specificity']:.0%} specificity, chosen on these patients"
        tables.append(Table(("class", ">probability above", ">sensitivity", ">specificity"), rows, title))
    return tables


def say_if_learned(hospital: Hospital, digest: str) -> None:
    """Where this hospital approved the federation, the shared model may know the patients that judge it."""
    if digest in hospital.approvals.digests():
        say("This hospital approved the federation: the shared model may have learned from these patients before.")


def say_shortfall(judged: Judged, classes: Sequence[str]) -> None:
    """Name the classes that nobody can be judged on."""
    missing = [name for index, name in enumerate(classes) if index not in judged["classes"]]
    if missing:
        say(f"Not judged, because nobody here shows them, or everybody does: {', '.join(missing)}.")


def _estimate(found: Mapping[str, float] | None, metric: str) -> str:
    if found is None:
        return "-"
    if metric in _PERCENT:
        value, low, high = (f"{100 * found[key]:.1f}" for key in ("value", "low", "high"))
        return f"{value} % ({low} to {high})"
    value, low, high = (f"{found[key]:.3f}" for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"
