"""Chests and tables of real hospitals: who takes part, and that nobody learns from a target."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fed_chest
import fed_tables
from hospitals import Problem
from real_data import DATA

pytestmark = pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")


def rows_of(problem: Problem) -> tuple[set[float], set[float]]:
    """Numbers of the images that are learned from, and of those that are judged."""
    learned = torch.cat([cohort.z[:, 0] for cohort in problem.cohorts.values()])
    return set(learned.tolist()), set(torch.cat([target.examples.z[:, 0] for target in problem.targets]).tolist())


def test_a_chest_is_learned_from_or_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter(range(0, 10**6, 10**4))
    numbered = lambda encoder, x, cache, console: torch.arange(len(x)).float().unsqueeze(1) + next(seen)  # noqa: E731
    monkeypatch.setattr(fed_chest, "cached", numbered)
    options = Namespace(encoder=None, features=2, cache=None, out=tmp_path)
    chests = fed_chest.Chests(options, Path(os.environ[DATA]), Console(stderr=True))
    adults, children = chests.studies()
    for study in (adults, children):
        for problem in (study.problem(0), *study.pseudo):
            learned, judged = rows_of(problem)
            assert learned
            assert judged
            assert not learned & judged
        assert not rows_of(study.pseudo[0])[1] & rows_of(study.problem(0))[1]
    assert len(rows_of(adults.problem(0))[1]) == 1000
    assert len(rows_of(children.problem(0))[1]) == 624


def test_every_table_has_its_hospitals_and_numbers_in_common_units() -> None:
    studies = fed_tables.studies(Path(os.environ[DATA]))
    assert len(studies) == 3 + 1 + 4
    for study in studies:
        problem = study.problem(0)
        target = problem.targets[0]
        assert target.name not in problem.cohorts
        assert all(target.name not in each.cohorts and target.name != each.targets[0].name for each in study.pseudo)
        for examples in (target.examples, *problem.cohorts.values()):
            assert examples.z.isfinite().all()
            assert float(examples.z.abs().max()) <= 6
        assert np.bincount(target.examples.y.numpy()).min() >= 2
