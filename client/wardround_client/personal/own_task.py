"""A hospital's own task: the table [task] of a file of its own, and which of its classes are the federation's.

It stays at home. An agreement has no `same_as`, so that no digest knows of it.
"""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Annotated, Self

import torch
from pydantic import BeforeValidator, Field, ValidationInfo, model_validator
from torch import Tensor

from wardround.labels import LABEL_KINDS
from wardround.settings import invalid
from wardround.task import Label, Task
from wardround.text import shown
from wardround.toml import Section
from wardround_client.cohort.labels import same_words

Origins = Mapping[str, tuple[str, ...]]
"""Of each own class, in the order of the task, the federation's classes that it is like; () where it is like none."""
# What an answer is called whatever the question: under another label column it is another class.
_ANSWERS = frozenset(
    ("yes", "no", "y", "n", "true", "false", "positive", "negative", "pos", "neg", "present", "absent", "none", "other")
)


def _listed(names: object) -> object:
    return (names,) if isinstance(names, str) else names


_Like = Annotated[tuple[Label, ...], BeforeValidator(_listed), Field(max_length=256)]


class OwnTask(Task):
    """What a hospital diagnoses, in its own words. Its validation context is the federation's task.

    same_as: for an own class, the federation's classes that it is like: one under another name, several that it is made
    of, or one of which it is a part. An empty list: none, whatever it is called.
    """

    same_as: dict[Label, _Like] = Field(default_factory=dict, max_length=256)

    @model_validator(mode="after")
    def _known(self, info: ValidationInfo) -> Self:
        for name, like in self.same_as.items():
            if name not in self.classes:
                raise _wrong(name, f"no class of this task; {_allowed(name, self.classes)}")
            if len(set(like)) != len(like):
                raise _wrong(name, "names a class twice")
        if self.same_as and isinstance(info.context, Task):
            self._fits(info.context)
        return self

    def _fits(self, agreed: Task) -> None:
        """Raises: ValidationError, unless the federation's classes can be like ours."""
        labels = self.labels if "labels" in self.model_fields_set else agreed.labels
        if labels != agreed.labels or LABEL_KINDS[labels].dense or LABEL_KINDS[labels].timed:
            why = (
                f'is for labels "one" and "several" that the federation has too; it has "{agreed.labels}", and this '
                f'task "{labels}". Leave same_as out: the last layer is then learned from your patients'
            )
            raise invalid("task", "same_as", None, why)
        for name, theirs in ((name, each) for name, like in self.same_as.items() for each in like):
            if theirs not in agreed.classes:
                why = f"{shown(theirs)!r} is no class of the federation; {_allowed(theirs, agreed.classes)}"
                raise _wrong(name, why)


class TaskFile(Section):
    """A file with the table [task] alone."""

    task: OwnTask


def origins(ours: Task, agreed: Task, declared: Mapping[str, Sequence[str]]) -> Origins:
    """Which of the federation's classes ours are like: as declared, else those of the same name.

    Names are the same whatever their case, blanks and hyphens; where two of a task differ in no more, only what is
    written alike is. Under another label column an answer, like "yes" or "1", is no name of a class. Labels of another
    kind have no class in common, and neither have times; of masks and points the first class is what is left over.
    """
    if ours.labels != agreed.labels or LABEL_KINDS[ours.labels].timed:
        return dict.fromkeys(ours.classes, ())
    found = {name: _namesake(name, ours, agreed) for name in ours.classes}
    found |= {name: tuple(like) for name, like in declared.items()}
    if LABEL_KINDS[ours.labels].dense:
        others = any(found[name] for name in ours.classes[1:])
        found[ours.classes[0]] = agreed.classes[:1] if others else ()
    return found


def shares(origins: Origins, theirs: Sequence[str]) -> Tensor:
    """float32 [ours, theirs]: the same share of each class that ours is like; a row of zeros where it is like none."""
    rows = torch.zeros(len(origins), len(theirs))
    for row, like in zip(rows, origins.values(), strict=True):
        for name in like:
            row[list(theirs).index(name)] = 1 / len(like)
    return rows


def _namesake(name: str, ours: Task, agreed: Task) -> tuple[str, ...]:
    if ours.label_column != agreed.label_column and (name.casefold() in _ANSWERS or not any(map(str.isalpha, name))):
        return ()
    if name in agreed.classes:
        return (name,)
    alike = [each for each in agreed.classes if same_words(*map(_compatible, (each, name)))]
    rivals = [each for each in ours.classes if same_words(*map(_compatible, (each, name)))]
    return tuple(alike) if len(alike) == len(rivals) == 1 else ()


def _compatible(name: str) -> str:
    return unicodedata.normalize("NFKC", name)


def _wrong(name: str, why: str) -> Exception:
    return invalid("task", ("same_as", name), None, why)


def _allowed(name: str, classes: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, classes, n=1, cutoff=0.5)
    named = ", ".join(map(repr, classes[:20])) + (f" and {len(classes) - 20} more" if len(classes) > 20 else "")
    return f"did you mean {near[0]!r}?" if near else f"allowed: {named}"
