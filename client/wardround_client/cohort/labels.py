"""Patients a class, and the labels that a task does not know, each with the class that was perhaps meant.

For a person at home and for nobody else: a round never asks, since whether it is answered must not depend on a patient.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from wardround.errors import DataError
from wardround.labels import LABEL_KINDS
from wardround.planes import shown_in
from wardround.task import Task, joined
from wardround.text import shown
from wardround_client.cohort.store import CohortStore

NAMED = 5
"""At most so many unknown labels are named in one sentence."""

_LONGEST = 40  # characters of a label; a column of reports must not fill the screen
_LONG = 6  # letters; a slip turns a shorter word into another too easily


class Labelled(Protocol):
    """What has columns of labels: a cohort on disk."""

    def labels(self, column: str, /) -> Sequence[str | None]: ...


def cells_of(store: Labelled, task: Task) -> list[str | None]:
    """What the columns of a task say of each row, [n]. Raises: DataError, for a column that is not there."""
    return [joined(cells) for cells in zip(*map(store.labels, task.label_columns), strict=True)]


@dataclass(frozen=True)
class LabelCounts:
    """How often each class of a task is there, and which labels are none.

    column: the task's, or its columns in words; columns: all of them. classes: class -> how many, in the order of the
    task, 0 where it is absent. unknown: other labels -> how many, the most frequent first. nearest: the class that an
    unknown label perhaps means, where there is one. strict: other text is a mistake; otherwise it says that none of the
    classes is there. allowed: what would be known.
    """

    column: str
    classes: Mapping[str, int]
    unknown: Mapping[str, int]
    nearest: Mapping[str, str]
    strict: bool = True
    allowed: str = ""
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, labels: Iterable[tuple[str, Hashable]], task: Task) -> LabelCounts:
        """Of (label, whose it is): each patient, or each line, counts once for a class."""
        kind = LABEL_KINDS[task.labels]
        meant = ((task.label(label), whose) for label, whose in labels)
        named = {(name, whose) for label, whose in meant if label for name in kind.named(label, task) if name}
        counts = Counter(name for name, _ in named)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        unknown = {name: count for name, count in ordered if name not in task.classes}
        return cls(
            column=" and ".join(task.label_columns),
            classes={name: counts[name] for name in task.classes},
            unknown=unknown,
            nearest={name: near for name in unknown if (near := nearest(name, task.classes))},
            strict=kind.strict,
            allowed=kind.allowed(task),
            columns=task.label_columns,
        )

    @property
    def suspect(self) -> Mapping[str, int]:
        """Unknown labels that are probably a mistake: all of them, or of findings those that resemble one."""
        return {name: n for name, n in self.unknown.items() if self.strict or name in self.nearest}

    def sentence(self, of: str = "patients") -> str:
        """The unknown labels in words, or "" where there are none. of: what was counted."""
        if not self.unknown:
            return ""
        hints = {name: f", did you mean {near!r}?" for name, near in self.nearest.items()}
        named = [
            f"{quoted(name)} ({n} {of.removesuffix('s') if n == 1 else of}{hints.get(name, '')})"
            for name, n in list(self.unknown.items())[:NAMED]
        ]
        more = [f"and {len(self.unknown) - NAMED} more"] if len(self.unknown) > NAMED else []
        return f"{self.column} has labels that the task does not know: {', '.join(named + more)}"

    def error(self, of: str, do: str) -> DataError:
        """For labels that are probably a mistake. of: what was counted. do: what to do next."""
        return DataError(self.sentence(of), allowed=self.allowed, do=do)


def label_counts(store: CohortStore, task: Task) -> LabelCounts:
    """Patients a class in a cohort; a patient with images of two classes counts in both. Of masks and points: patients
    with an image that shows the class; all planes are read for that.

    Raises: DataError, when the cohort has no such label column.
    """
    if task.dense:
        return LabelCounts(task.label_column, _marked(store, task), {}, {})
    labels = zip(cells_of(store, task), store.patients.tolist(), strict=True)
    return LabelCounts.of(((label, patient) for label, patient in labels if label is not None), task)


def _marked(store: CohortStore, task: Task) -> Mapping[str, int]:
    showing: list[set[int]] = [set() for _ in task.classes]
    rows = zip(store.labels(task.label_column), store.patients.tolist(), strict=True)
    for row, (marked, patient) in enumerate(rows):
        there = shown_in(store.inputs[row][-1], len(task.classes)) if marked is not None else ()
        for each, shows in zip(showing, there, strict=False):
            each.update([patient] if shows else [])
    return {name: len(patients) for name, patients in zip(task.classes, showing, strict=True)}


def nearest(label: str, classes: Sequence[str]) -> str | None:
    """The class that a label perhaps means: the same but for case and blanks, or with one slip in one long word.

    Likeness is no evidence: "none" shares most letters with "bone", "typical" with "atypical", and "grade 1" with
    "grade 2". So short words, numbers and first letters must agree.
    """
    said = _words(label)
    for alike in (_joined_alike, _misspelt):
        for name in classes:
            if alike(said, _words(name)):
                return name
    return None


def same_words(one: str, other: str) -> bool:
    """Whether two names are the same but for case and for what stands between words: blanks, "-", "_"."""
    return _words(one) == _words(other)


def _words(text: str) -> list[str]:
    return re.sub(r"_|(?<=\w)-(?=\w)", " ", text).casefold().split()


def _joined_alike(one: list[str], other: list[str]) -> bool:
    return "".join(one) == "".join(other)


def _misspelt(one: list[str], other: list[str]) -> bool:
    apart = [(a, b) for a, b in zip(one, other, strict=False) if a != b]
    return len(one) == len(other) and len(apart) == 1 and _slip(*apart[0])


def _slip(one: str, other: str) -> bool:
    """Whether a letter is missing, added or wrong, or two are exchanged: once, behind the first, in a long word."""
    if one[0] != other[0] or max(len(one), len(other)) < _LONG or not (one + other).isalpha():
        return False
    start = next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    a, b = one[start:], other[start:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[1::-1] == b[:2] and a[2:] == b[2:])


def quoted(label: str) -> str:
    """A label of the CSV as it may be shown."""
    return repr(shown(label, _LONGEST))
