"""Which of a federation's classes a hospital's own classes look like, told by its own labelled patients, at home.

The federation's model gives every patient a probability of each of its classes. One of them is *lifted* in an own class
by the ratio of its mean there to its mean over all own classes: by how much better than by chance the two go together,
whatever the model takes all of this hospital's images for. An own class looks like the class that is lifted most in it,
and like those which are lifted nowhere more than in it: so a class under another name, one of several, and a part of
one are all found. What the model hardly sees in an own class (FAINT) or lifts hardly (LEAST_LIFT) is no likeness.

How sure that is: in how many of DRAWS draws of a Bayesian bootstrap over patients (Rubin, "The Bayesian bootstrap",
1981) it comes out. Below SURE, or with fewer than LEAST patients, nothing is said. docs/benchmarks.md says how often
what is said is right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from wardround.task import Task
from wardround_client.cohort.examples import Examples
from wardround_client.personal.shared_model import SharedModel
from wardround_client.personal.suggestions import over_patients

DRAWS = 500
# All four chosen at a hospital that stood in for others (docs/benchmarks.md, "Classes under other names").
SURE = 0.95
LEAST = 4
FAINT = 0.5  # of the mean probability of the class that an own class shows most
LEAST_LIFT = 0.1  # of the way from none, 1, to all: as many as there are own classes


@dataclass(frozen=True)
class Resemblance:
    """What an own class looks like.

    own: its name. patients: who show it. like: the federation's classes that it surely looks like; () where nothing is
    sure. nearest: what it looks like most, sure or not; "" where nobody shows the class. sure: of `nearest`, in [0, 1].
    shares: the mean probability of each of the federation's classes among its patients.
    """

    own: str
    patients: int
    like: tuple[str, ...]
    nearest: str
    sure: float
    shares: dict[str, float]

    def record(self) -> dict[str, Any]:
        """Plain values, by name."""
        shares = {name: round(share, 4) for name, share in self.shares.items()}
        return {
            "class": self.own,
            "patients": self.patients,
            "like": list(self.like),
            "nearest": self.nearest,
            "sure": round(self.sure, 3),
            "shares": shares,
        }


def resemblances(
    probabilities: Tensor, shows: Tensor, ours: Sequence[str], theirs: Sequence[str], *, draws: int = DRAWS
) -> list[Resemblance]:
    """What each own class looks like.

    Args:
        probabilities: float32 [patients, theirs], of the federation's model.
        shows: bool [patients, ours], who shows which own class.
        ours: names.
        theirs: names.
        draws: of the bootstrap, which is the same for the same patients.
    """
    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(draws, len(shows)).exponential_(generator=generator)
    weight = torch.cat([torch.ones(1, len(shows)), weight])  # the first: as they are
    there = torch.nonzero(shows.any(0)).flatten().tolist()
    means = torch.zeros(draws + 1, len(there), len(theirs))
    for place, number in enumerate(there):
        own = shows[:, number]
        means[:, place] = weight[:, own] @ probabilities[own] / weight[:, own].sum(1, keepdim=True)
    lifted = torch.zeros(draws + 1, len(ours), len(theirs))
    lifted[:, there] = _lifted(means)
    shares = torch.zeros(len(ours), len(theirs))
    shares[there] = means[0]
    sure = _alike(lifted[1:]).float().mean(0)
    nearest = lifted[0].argmax(1)
    said = (sure >= SURE) & (shows.sum(0) >= LEAST).unsqueeze(1)
    return [
        Resemblance(
            own=name,
            patients=int(shows[:, place].sum()),
            like=tuple(each for each, told in zip(theirs, said[place].tolist(), strict=True) if told),
            nearest=theirs[int(nearest[place])] if place in there else "",
            sure=float(sure[place, nearest[place]]),
            shares=dict(zip(theirs, shares[place].tolist(), strict=True)),
        )
        for place, name in enumerate(ours)
    ]


def at_home(start: SharedModel, support: Examples) -> list[Resemblance]:
    """What the classes of a task of one's own look like to the federation's model; [] where they are its own, or labels
    of another kind, or places or times.

    support: labelled patients.
    """
    known, task = start.before(support.device), start.federation.task
    if known is None or support.labels.dense or support.labels.timed:
        return []
    told = over_patients(known.probabilities(known.unadapted(), support.z), support)
    shows = over_patients(support.targets, support) > 0
    return resemblances(told, shows, task.classes, start.theirs)


def lines(like: Mapping[str, Sequence[str]], task: Task, *, whole: bool) -> list[str]:
    """Of a task file: the table [task.same_as] that says this, an empty list where a class is like none. whole: with
    [task] above it.
    """
    head = ["[task]", f"label_column = {_quoted(task.label_column)}", f"classes = {_quoted(task.classes)}", ""]
    said = [f"{_quoted(own)} = {_quoted(theirs)}" for own, theirs in like.items()]
    return [*(head if whole else []), "[task.same_as]", *said]


def _quoted(value: object) -> str:
    """As TOML: its basic strings are JSON's, where nothing is invisible."""
    return json.dumps(value, ensure_ascii=False)


def _lifted(means: Tensor) -> Tensor:
    """How much each class is lifted in each own class, 0 where it is faint: means [draws, ours, theirs] likewise."""
    faint = means < FAINT * means.amax(2, keepdim=True)
    return (means / means.mean(1, keepdim=True).clamp_min(1e-9)).masked_fill(faint, 0)


def _alike(lifted: Tensor) -> Tensor:
    """Which own classes look like which: bool [draws, ours, theirs]."""
    least = 1 + LEAST_LIFT * (lifted.shape[1] - 1)
    return (lifted > least) & ((lifted == lifted.amax(2, keepdim=True)) | (lifted == lifted.amax(1, keepdim=True)))
