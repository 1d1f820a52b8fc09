"""Classes under other names: what is declared is true of the lesions, and nobody learns from those that judge."""

from __future__ import annotations

import os
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

import fed_ham
from other_names import DRAWS, LOOKS, LOOKS_DRAWS, ROWS, Known, Skin, arrived, looked_at, measured, publish, starts
from real_data import DATA
from tables import TABLE, Store

real = pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")


@pytest.fixture(scope="module")
def skin(tmp_path_factory: pytest.TempPathFactory) -> Skin:
    """Features that say which image it is, and nothing else."""
    numbered = lambda encoder, x, cache, console: torch.arange(2 * len(x)).view(2, -1).T.float()  # noqa: E731
    options = Namespace(size=28, table=False, encoder=None, features=2, cache=None, out=tmp_path_factory.mktemp("skin"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(fed_ham, "cached", numbered)
        patched.setattr(fed_ham, "_small", lambda images: torch.zeros(len(images), 1))
        return Skin(options, Path(os.environ[DATA]), Console(stderr=True))


@real
@pytest.mark.parametrize("stand_ins", [False, True])
def test_who_judges_is_learned_from_by_nobody_and_is_called_what_is_declared(skin: Skin, stand_ins: bool) -> None:
    theirs = np.array(skin.label)
    names = set()
    for place in skin.places(stand_ins=stand_ins):
        problem = place.study.problem(0)
        names.add(place.study.name)
        learned = set(torch.cat([cohort.z[:, 0] for cohort in problem.cohorts.values()]).tolist())
        for target in problem.targets:
            words, judged = place.words[target.name], target.examples.z[:, 0].long()
            assert not learned & set(judged.tolist())
            own = [target.classes[label] for label in target.examples.y.tolist()]
            for name, true in zip(own, theirs[judged.numpy()].tolist(), strict=True):
                assert true in words.like[name] if words.related else not words.like[name]
            assert all((target.examples.y == label).any() for label in range(target.examples.classes))
            if not words.related and len(problem.classes) == 4:
                assert not {*theirs[judged.numpy()]} & {*problem.classes}, "a disease that nobody had seen"
    assert len(names) == (8 if stand_ins else 4)


@real
def test_a_cell_is_measured_once_and_goes_on_where_a_number_is_missing(
    skin: Skin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("other_names.judged", lambda *of, draws: {"balanced_accuracy": 0.5, "macro_auroc": 0.5})
    place, store = next(skin.places(stand_ins=False)), Store(tmp_path)
    for seed in range(2):
        measured(store, place, "none", seed, [1])
    rows = store.rows()
    assert len(rows) == 2 * sum((len(ROWS) + 1) - (not words.related) for words in place.words.values())
    monkeypatch.setattr("other_names.arrived", lambda *of: pytest.fail("everything is known"))
    measured(store, place, "none", 0, [1])
    publish(store)
    table = (tmp_path / TABLE).read_text()
    assert "| declared map | 50.00 ± 0.00 | 0.00 ± 0.00 |" in table
    assert LOOKS.capitalize() in table and list(DRAWS) == [1, 5, 20]


@real
def test_what_is_right_is_counted(skin: Skin) -> None:
    """By a model that knows the truth, and by one that swaps two classes."""
    place = next(skin.places(stand_ins=False))
    problem = place.study.problem(0)
    target = next(each for each in problem.targets if each.name == "renamed")
    words, theirs = place.words["renamed"], problem.classes
    label = {number: theirs.index(name) for number, name in enumerate(skin.label)}

    order = list(range(len(theirs)))

    class Oracle:
        def unadapted(self) -> None: ...

        def probabilities(self, fitted: None, z: torch.Tensor) -> torch.Tensor:
            true = torch.tensor([order[label[int(number)]] for number in z[:, 0]])
            return torch.nn.functional.one_hot(true, len(theirs)).float() * 0.93 + 0.01

    known = Known(Oracle(), theirs, lambda classes: pytest.fail("no model is needed"))  # type: ignore[arg-type]
    counts = looked_at(known, words, target, 20, 0)
    assert counts["right"] == counts["said"] == counts["true"] == counts["told"] == counts["classes"] > 0
    assert looked_at(known, words, target, 1, 0)["said"] == 0
    order[:2] = 1, 0
    swapped = looked_at(known, words, target, 20, 0)
    assert swapped["said"] - swapped["right"] == 2 * LOOKS_DRAWS, "two classes in five supports"


@real
def test_a_head_of_zeros_knows_nothing_and_a_map_starts_there(skin: Skin) -> None:
    place = next(skin.places(stand_ins=False))
    known, words = arrived(place.study, "none"), place.words["merged in two"]
    zeros, declared, scores, alone = (starts(row, known, words, tuple(words.like)) for row in ROWS)
    assert not zeros.loss.head(zeros.theta)[0].any() and zeros.scores is None
    assert declared.loss.head(declared.theta)[0].any() and declared.scores is None
    assert torch.equal(scores.theta, zeros.theta) and scores.usual_start == "scores"
    assert not torch.equal(alone.loss.scale, zeros.loss.scale)
