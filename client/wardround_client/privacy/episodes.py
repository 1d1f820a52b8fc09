"""Few-shot episodes of a hospital's patients, dealt so that one patient can change one episode and no other.

Each sampled patient draws an episode, and support or query, alone and uniformly, whoever else was sampled. N-way
K-shot sampling from a pool would let a patient reshuffle many episodes, and nothing would bound what that changes. The
price is ragged shots and missing classes, which a loss has to live with (docs/privacy-specification.md P15).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from wardround.questions import Shots
from wardround_client.cohort.examples import Examples
from wardround_client.privacy import mechanism


@dataclass(frozen=True)
class Deal:
    """Where each sampled patient is: episode int64 [patients], support bool [patients]."""

    episode: Tensor
    support: Tensor


def deal(patients: int, episodes: int, support_share: float) -> Deal:
    """Two independent draws for each of so many patients, from the operating system's entropy."""
    episode = (mechanism.uniform(patients) * episodes).long().clamp_max_(episodes - 1)
    return Deal(episode, mechanism.uniform(patients) < support_share)


def episodes_of(
    examples: Examples, rows: Tensor, valid: Tensor, dealt: Deal, most: int | None = None
) -> Iterator[tuple[Shots, Shots]]:
    """The episodes that have both a support and a query, as (support, query).

    Args:
        examples: the cohort.
        rows: int64 [patients, m], which examples each sampled patient contributes.
        valid: bool [patients, m], at least one in a row.
        dealt: of the same patients.
        most: patients in a support, and in a query: a public number, so that an episode's memory has a public bound.
            Whoever comes after them takes no part. None: all.
    """
    for number in torch.unique(dealt.episode).tolist():
        here = dealt.episode == number
        support, query = (torch.nonzero(here & side).flatten()[:most] for side in (dealt.support, ~dealt.support))
        if len(support) and len(query):
            yield _shots(examples, rows[support], valid[support]), _shots(examples, rows[query], valid[query])


def _shots(examples: Examples, rows: Tensor, valid: Tensor) -> Shots:
    counts = valid.sum(1) * examples.variants
    patient = torch.repeat_interleave(torch.arange(len(rows)), counts)
    x, y = examples.for_learning(rows[valid].to(examples.device))
    weight = (1 / counts)[patient].float()
    return Shots(x, y, patient.to(examples.device), weight.to(examples.device), examples.labels)
