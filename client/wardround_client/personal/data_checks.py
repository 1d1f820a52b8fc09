"""What a hospital is told about its own data before adapting or taking part: too few patients, shortcuts, typos.

For a person at home and for nobody else. A round never asks these questions: whether it is answered must not depend on
a patient (P56).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wardround.errors import DataError
from wardround_client.cohort.labels import nearest
from wardround_client.cohort.store import UNKNOWN

NAMED = 5
"""At most so many classes or labels are named in one finding."""

_COUNTED = 20  # classes whose patients an error counts
_LONGEST_LABEL = 40  # characters; a column of reports must not fill the screen


@dataclass(frozen=True)
class Finding:
    """One thing that is amiss.

    level: an "error" stops what was asked; a "warning" is for a person to judge.
    what: what was found, a sentence without a full stop. do: what to do about it.
    """

    level: Literal["error", "warning"]
    what: str
    do: str


def class_findings(
    y: NDArray[np.int64],
    patient: NDArray[np.int64],
    manufacturers: Sequence[str],
    classes: Sequence[str],
    *,
    shots: int = 0,
) -> list[Finding]:
    """What is amiss with the patients and scanners of each class, errors first.

    A patient with images of several classes counts in each of them. A class that comes from one scanner teaches a
    model the scanner instead of the disease (Geirhos et al., "Shortcut learning in deep neural networks", 2020).

    Args:
        y: int64 [n], class index of each image (or row of a table).
        patient: int64 [n], any number that is a patient's own.
        manufacturers: [n], as `CohortStore.manufacturers`.
        classes: names, one for each class index.
        shots: patients a class that the model shall adapt to; 0: nothing is adapted, and the number is not judged.
    """
    pairs = np.unique(np.stack([y, patient], axis=1), axis=0)
    counts = dict(zip(classes, np.bincount(pairs[:, 0], minlength=len(classes)).tolist(), strict=True))
    found = [
        _too_few(counts, len(np.unique(patient)), shots),
        _few(counts, shots),
        _alone(counts),
        _missing(counts),
        _shortcut(y.tolist(), manufacturers, counts),
    ]
    return [finding for finding in found if finding]


def label_findings(codes: Iterable[str | None], classes: Sequence[str]) -> list[Finding]:
    """Labels that the task does not know: the most frequent of them, each with the class it may be a misspelling of.

    Args:
        codes: the label of each image, None where it has none; as `CohortStore.labels`.
        classes: the task's code list.
    """
    strange = Counter(code for code in codes if code is not None)
    for name in classes:
        strange.pop(name, None)
    if not strange:
        return []

    def told(code: str, count: int) -> str:
        near = nearest(code, classes)
        return f"{_short(code)} ({count}{f', perhaps {near!r}' if near else ''})"

    ordered = sorted(strange.items(), key=lambda item: (-item[1], item[0]))
    return [
        Finding(
            "warning",
            f"{_count(strange.total(), 'image has a label', 'images have labels')} that the task does not know: "
            + _listed((told(*item) for item in ordered), len(ordered)),
            "correct misspelt labels in the CSV and ingest again; images with any other label are not used",
        )
    ]


def raise_errors(findings: Iterable[Finding]) -> None:
    """Stop when one of the findings is an error. Raises: DataError."""
    errors = [finding for finding in findings if finding.level == "error"]
    if errors:
        raise DataError("; ".join(e.what for e in errors), do="; ".join(dict.fromkeys(e.do for e in errors)))


def _too_few(counts: dict[str, int], patients: int, shots: int) -> Finding | None:
    there = [f"{name!r} {count}" for name, count in counts.items() if count]
    ways = max(1, len(there))  # an episode may lack a class, so a class that nobody has asks for no patients
    if patients >= ways * shots:
        return None
    return Finding(
        "error",
        f"the cohort has {_count(patients, 'patient', 'patients')} for this task, fewer than "
        f"{_count(ways, 'class', 'classes')} x {_count(shots, 'shot', 'shots')} = {ways * shots} "
        f"(patients a class: {_listed(there, len(there), _COUNTED) or 'none'})",
        "label more patients, or ask for fewer shots",
    )


def _few(counts: dict[str, int], shots: int) -> Finding | None:
    few = [f"{name!r} {count}" for name, count in counts.items() if 2 <= count < shots]
    if not few:
        return None
    return Finding(
        "warning",
        f"classes with fewer patients than the {shots} shots that were asked for: {_listed(few, len(few))}",
        "label more patients of these classes, or ask for fewer shots; otherwise those that are there are used",
    )


def _alone(counts: dict[str, int]) -> Finding | None:
    alone = [repr(name) for name, count in counts.items() if count == 1]
    if not alone:
        return None
    return Finding(
        "warning",
        f"classes with one patient only: {_listed(alone, len(alone))}",
        "label a second patient of each; one patient can be in the support or be judged, not both",
    )


def _missing(counts: dict[str, int]) -> Finding | None:
    missing = [repr(name) for name, count in counts.items() if not count]
    if not missing:
        return None
    return Finding(
        "warning",
        f"classes without a patient: {_listed(missing, len(missing))}",
        "check the labels; without a patient of a class a model can neither be adapted to it nor be judged on it",
    )


def _shortcut(y: Sequence[int], manufacturers: Sequence[str], counts: dict[str, int]) -> Finding | None:
    seen: list[set[str]] = [set() for _ in counts]
    for number, manufacturer in zip(y, manufacturers, strict=True):
        seen[number].add(manufacturer)
    everywhere = set().union(*seen)
    told = [
        f"all images of {name!r} " + ("name no manufacturer" if UNKNOWN in of_class else f"come from {min(of_class)!r}")
        for (name, patients), of_class in zip(counts.items(), seen, strict=True)
        # One patient has one scanner as a rule, and is told of already.
        if patients > 1 and len(of_class) == 1 < len(everywhere)
    ]
    if not told:
        return None
    return Finding(
        "warning",
        f"a possible shortcut: {_listed(told, len(told))}, and images of other classes come from elsewhere; "
        "a model can learn the scanner instead of the disease",
        "add patients of these classes from other scanners, and look at the results by manufacturer",
    )


def _listed(items: Iterable[str], count: int, most: int = NAMED) -> str:
    """The first of so many items, and how many more there are."""
    return ", ".join([*islice(items, most), *([f"and {count - most} more"] if count > most else [])])


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"


def _short(label: str) -> str:
    return repr(label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…")
