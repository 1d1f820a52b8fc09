"""The labels that a source brings, looked at before anything is stored: typing errors cost whole classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from wardround.config import Task
from wardround.errors import DataError
from wardround_client.cohort.labels import LabelCounts
from wardround_client.intake.source import Labels, Source


def check_labels(source: Source, tasks: Sequence[Task], *, allow_unknown: bool = False) -> None:
    """Compare a source's labels with the classes of the tasks that they are for.

    Raises: DataError: a task's column is not there, no label is one of its classes, or, unless `allow_unknown`, some
        are not.
    """
    for task in tasks:
        if task.label_column not in source.label_columns:
            raise DataError(
                f"{source.name}: no label column {task.label_column!r}",
                allowed=f"the label columns that are there: {', '.join(source.label_columns)}",
                do="correct task.label_column, or the name in the CSV",
            )
        place = source.label_columns.index(task.label_column)
        found = ((label, n) for n, labels in enumerate(_labels(source)) if labels and (label := labels[place]))
        counts = LabelCounts.of(found, task)
        if not allow_unknown:
            counts.check(of="lines")


def _labels(source: Source) -> Iterator[Labels]:
    if source.key:
        yield from (line.labels for line in source.labels())
    else:
        yield from (item.labels for item in source.items() if item.labels is not None)
