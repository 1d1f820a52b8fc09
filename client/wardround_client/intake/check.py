"""The labels that a source brings, looked at before anything is stored: typing errors cost whole classes."""

from __future__ import annotations

from collections.abc import Iterator

from wardround.errors import DataError
from wardround.task import Task, joined
from wardround_client.cohort.labels import LabelCounts
from wardround_client.intake.source import Labels, Source

CORRECT = "correct the labels and ingest again, or add --allow-unknown-labels: what has them is then not used"


def check_labels(source: Source, task: Task) -> None:
    """Look whether a source's labels are classes of a task. Raises: DataError: some are not, or there is no column."""
    counts = labels_for(source, task)
    if counts.suspect:
        raise counts.error("lines", CORRECT)


def labels_for(source: Source, task: Task) -> LabelCounts:
    """Lines, or items, a class of a task. Raises: DataError, when the source has no such label column."""
    for column in task.label_columns:
        if column not in source.label_columns:
            raise DataError(
                f"{source.name}: no label column {column!r}",
                allowed=f"the label columns that are there: {', '.join(source.label_columns)}",
                do="correct its name in the task, or in the CSV",
            )
    places = [source.label_columns.index(column) for column in task.label_columns]
    told = ((joined([labels[place] for place in places]), n) for n, labels in enumerate(_labels(source)) if labels)
    found = ((label, n) for label, n in told if label)
    return LabelCounts.of(found, task)


def _labels(source: Source) -> Iterator[Labels]:
    if source.key:
        yield from (line.labels for line in source.labels())
    else:
        yield from (item.labels for item in source.items() if item.labels is not None)
