"""The Omniglot benchmark, on drawings that are made up, and once on the real ones."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.chosen import UNITS
from torch import Tensor

import omniglot
from characters import CHARACTERS, DRAWINGS, SIZE_PX, TURNS, Omniglot
from omniglot import RECIPES, Budget, Learner, State, train
from wardround.algorithms import ALGORITHMS
from wardround.errors import ConfigError, DataError

EPISODIC = [name for name, tasks in UNITS.items() if "episodes" in tasks]


def numbered(characters: int) -> Omniglot:
    """The mean of a drawing says whose it is, however it is turned; its first row says how it is turned."""
    numbers = torch.arange(characters * DRAWINGS).view(characters, DRAWINGS, 1, 1)
    drawings = numbers.expand(-1, -1, SIZE_PX, SIZE_PX).clone().float()
    drawings[:, :, 0] += SIZE_PX
    drawings[:, :, 1] -= SIZE_PX
    return Omniglot(drawings)


def scribbles(characters: int = 12) -> Omniglot:
    return Omniglot(torch.rand(characters, DRAWINGS, SIZE_PX, SIZE_PX).round())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Episodes of five classes, so that a step takes milliseconds."""
    for name, recipe in RECIPES.items():
        few = {"local_steps": 2, "local_batches": 1, "adapt_steps": 2}
        settings = recipe.settings | {key: few[key] for key in few if key in ALGORITHMS[name].model_fields}
        monkeypatch.setitem(RECIPES, name, replace(recipe, settings=settings, ways=5, shots=1, queries=1, batch=1))


def test_every_method_whose_task_can_be_an_episode_has_a_recipe() -> None:
    assert set(RECIPES) == set(EPISODIC)


def test_a_method_without_episodes_has_none() -> None:
    with pytest.raises(ConfigError, match="fedavg"):
        Learner.of("fedavg", 5)


@given(ways=st.integers(2, 12), shots=st.integers(1, 5), queries=st.integers(1, 15), seed=st.integers(0, 1000))
def test_an_episode_has_classes_of_one_character_and_turn_and_no_drawing_twice(
    ways: int, shots: int, queries: int, seed: int
) -> None:
    support, query = numbered(4).episode(ways, shots, queries, torch.Generator().manual_seed(seed))
    assert (len(support.y), len(query.y)) == (ways * shots, ways * queries)
    x, y = torch.cat([support.x, query.x]), torch.cat([support.y, query.y])
    number = x.mean((1, 2, 3)).round().long()
    turned = torch.stack([x.squeeze(1).rot90(-turns, (1, 2))[:, 0, 2:-2].mean(1) > number for turns in range(TURNS)])
    assert (turned.sum(0) == 1).all()
    character, turns = number // DRAWINGS, turned.int().argmax(0)
    classes = {(int(k), int(c), int(t)) for k, c, t in zip(y, character, turns, strict=True)}
    assert len(classes) == len({k for k, _, _ in classes}) == len({(c, t) for _, c, t in classes}) == ways
    for k in range(ways):
        assert len(set(number[y == k].tolist())) == shots + queries


def test_characters_are_trained_on_or_validated_with_or_tested_with() -> None:
    parts = Omniglot(torch.arange(CHARACTERS)).split()
    assert [len(part.drawings) for part in parts] == [1100, 100, 423]
    assert len({int(each) for part in parts for each in part.drawings}) == CHARACTERS


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", EPISODIC)
def test_every_method_takes_a_step_and_is_tested(name: str) -> None:
    learner = Learner.of(name, 5)
    theta = learner.start()
    slope = learner.slope(theta, scribbles(), torch.Generator().manual_seed(0))
    assert slope.shape == theta.shape and bool(slope.isfinite().all()) and bool(slope.any())
    assert not any(part.any() for part in (*learner.loss.head(theta), *learner.loss.head(slope)))
    found = learner.accuracies(theta, scribbles(), omniglot.Test(ways=3, shots=2, queries=2, episodes=2))
    assert len(found) == 2 and all(0 <= each <= 1 for each in found)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", ["fomaml", "maml", "reptile"])
def test_over_all_numberings_of_the_classes_the_head_s_part_has_a_mean_of_zero(name: str) -> None:
    """So leaving it out takes noise away, and nothing else."""
    learner = Learner.of(name, 5)
    theta = learner.start()
    parts = scribbles().episode(5, 1, 2, torch.Generator().manual_seed(5))

    def numbered_from(first: int) -> Tensor:
        support, query = (replace(part, y=(part.y + first) % 5) for part in parts)
        cohort = omniglot.Episodes(lambda: iter([(support, query)]))
        delta = learner.algorithm.inner(theta, cohort, learner.loss)
        return torch.cat([part.flatten() for part in learner.loss.head(delta)])

    each = torch.stack([numbered_from(first) for first in range(5)])
    assert each.norm(dim=1).min() > 100 * each.mean(0).norm()


@pytest.mark.usefixtures("small")
def test_the_slope_of_a_step_is_the_mean_of_its_episodes_whatever_the_batch() -> None:
    learner, data = Learner.of("prototypical", 5), scribbles()
    theta, generator = learner.start(), torch.Generator().manual_seed(3)
    alone = torch.stack([learner.slope(theta, data, generator) for _ in range(3)])
    both = replace(learner, recipe=replace(learner.recipe, batch=3))
    assert torch.allclose(both.slope(theta, data, torch.Generator().manual_seed(3)), alone.mean(0), atol=1e-6)


@pytest.mark.usefixtures("small")
def test_equal_drawings_are_told_from_others_without_training() -> None:
    learner = Learner.of("prototypical", 5)
    same = Omniglot(scribbles(8).drawings[:, :1].expand(-1, DRAWINGS, -1, -1))
    assert learner.accuracies(learner.start(), same, omniglot.Test(5, 1, 4, episodes=3)) == [1.0] * 3


@pytest.mark.usefixtures("small")
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    learner, data, budget, file = Learner.of("prototypical", 5), scribbles(), Budget(0, 4), tmp_path / "checkpoint"

    def validate(theta: Tensor) -> float:
        return float(theta[0])

    def steps(state: State, count: int) -> State:
        (*_, last) = islice(train(learner, state, budget, data=data, seed=1, validate=validate), count)
        return last

    whole = steps(State.load(file, learner), 4)
    steps(State.load(file, learner), 2).save(file, learner)
    rest = steps(State.load(file, learner), 4)
    assert (whole.step, rest.step) == (4, 4)
    assert torch.equal(whole.theta, rest.theta)
    assert [(step, accuracy) for _, step, accuracy in rest.curve] == [(4, float(rest.theta[0]))]
    assert list(train(learner, rest, budget, data=data, seed=1, validate=validate)) == []


@pytest.mark.usefixtures("small")
def test_a_checkpoint_of_another_recipe_is_refused(tmp_path: Path) -> None:
    learner, file = Learner.of("prototypical", 5), tmp_path / "checkpoint"
    State.load(file, learner).save(file, learner)
    with pytest.raises(ConfigError, match="another recipe"):
        State.load(file, Learner.of("prototypical", 6))


def test_missing_data_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no Omniglot.*--data"):
        Omniglot.read(tmp_path / "omni28bits.npz")


def test_more_shots_than_drawings_are_refused(tmp_path: Path) -> None:
    options = omniglot.options_of(["--shots", "1", "6", "--out", str(tmp_path)])
    with pytest.raises(ConfigError, match="1 to 5"):
        omniglot.measured("prototypical", options, scribbles(), Console(quiet=True))


@pytest.mark.usefixtures("small")
def test_one_command_trains_tests_and_goes_on(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--algorithm", "prototypical", "--episodes", "20", "--data", str(shared_data), "--out", str(tmp_path)]
    omniglot.main([*arguments, "--steps", "1", "--json"])
    row = json.loads(capsys.readouterr().out)
    assert row["steps"] == 1 and row["accuracy"]["5-way 5-shot"]["mean"] > 0.4
    omniglot.main([*arguments, "--steps", "3"])
    table = capsys.readouterr().out
    assert table == (tmp_path / "table.md").read_text() and "| prototypical |" in table
    (row,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert [step for _, step, _ in row["curve"]] == [1, 3]
    assert "<svg" in (tmp_path / "prototypical-0.svg").read_text()
