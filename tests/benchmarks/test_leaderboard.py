"""The leaderboard: one rule for all, a run that goes on, a page that says what is worth it and what is empty."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from tests.benchmarks.test_fed_studies import federation, small_study

import leaderboard
import leaderboard_page
from encoded import narrowed
from heat_map import heat_map, signed
from hospitals import Measurement, Study
from leaderboard_scores import BASELINE, LOCAL, Board, verdict
from leaderboard_sets import SETS, DataSet, Sources
from public_rule import CELLS, IMAGES, TABLES, by_rule
from real_data import DATA
from rows import NONE, Trial
from tables import Estimate, Store
from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.errors import ConfigError
from wardround.experience.row import Described
from wardround.experience.rule import FEWEST_COMPONENTS, components
from wardround.experience.rule import by_rule as fedavg_by_rule

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("features", [IMAGES, TABLES, CELLS])
def test_the_rule_gives_every_method_one_setting_and_all_pay_alike(features: Any) -> None:
    rows = by_rule(features)
    assert {row.algorithm for row in rows if row.kind == "federated"} == set(ALGORITHMS.built_in)
    for row in rows:
        assert len(row.exact) <= 1
        assert len(row.private) <= 1
        for trial in row.private:
            assert trial.clip_norm == features.clip_norm
            agreement = federation(("a", "b"), row.algorithm, replace(trial, embedding=4), 8.0)
            assert agreement.algorithm.answers_per_round * agreement.rounds.rounds == 20


@given(st.integers(1, 2000), st.integers(1, 10**6), st.floats(0.01, 100), st.floats(1, 10))
def test_more_patients_or_epsilon_never_mean_fewer_components(most: int, n: int, epsilon: float, more: float) -> None:
    kept = components(most, n, epsilon)
    assert min(most, FEWEST_COMPONENTS) <= kept <= most
    assert components(most, int(n * more), epsilon) >= kept
    assert components(most, n, epsilon * more) >= kept


def a_set(name: str, *studies: Study) -> DataSet:
    return DataSet(name, "what it is", "simulated", TABLES, lambda sources: list(studies))


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, sets: list[DataSet], *more: str) -> dict[str, Any]:
    for module in (leaderboard, leaderboard_page):
        monkeypatch.setattr(module, "SETS", sets)
    wanted = ["--algorithm", LOCAL, BASELINE, "discriminant", "raw pixels"]
    where = ["--data", str(folder), "--out", str(folder / "out"), "--page", str(folder / "page")]
    leaderboard.main([*where, *wanted, "--epsilon", NONE, "8", "--seeds", "2", *more])
    return Store(folder / "out").rows()


def only(algorithm: str, classes: Any, name: str, trial: Trial, epsilon: float) -> Federation:
    if name != algorithm:
        raise ConfigError(f"{name} cannot do this")
    return federation(classes, name, trial, epsilon)


def test_a_run_fills_what_is_missing_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    able = small_study()
    unable = replace(small_study(), federation=partial(only, "fedavg"))
    sets = [a_set("able", able), a_set("unable", unable)]
    cells = run(tmp_path, monkeypatch, sets)
    assert len(cells) == 2 * 2 * (4 + 2)  # local training and the floor cost nobody anything
    assert all(len(scores) == 3 for cell in cells.values() for scores in cell.get("scores", {}).values())
    assert cells["unable/8/discriminant/0"]["reason"].startswith("discriminant cannot do this")
    page = (tmp_path / "page" / "leaderboard.md").read_text()
    assert "* discriminant: discriminant cannot do this" in page
    assert "(unable)" in page
    for picture in ("leaderboard.svg", "leaderboard-methods.svg"):
        assert f"({picture})" in page
        ElementTree.fromstring((tmp_path / "page" / picture).read_text())

    def again(*_: object, **__: object) -> None:
        raise AssertionError("this is known already")

    monkeypatch.setattr(Measurement, "scores", again)
    assert run(tmp_path, monkeypatch, sets) == cells
    monkeypatch.setattr(leaderboard, "by_rule", by_rule_with_another_rate)
    assert len(list(leaderboard.missing(leaderboard.cells(options())[0], Store(tmp_path / "out")))) == 4


def by_rule_with_another_rate(features: Any) -> Any:
    return by_rule(replace(features, rate=7.0))


def options() -> Any:
    class Options:
        set, epsilon, seeds, algorithm = ["able"], [NONE], 2, [BASELINE, "discriminant"]

    return Options


def test_a_method_that_breaks_leaves_its_cell_missing_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured = Measurement.scores

    def broken(self: Measurement, *args: Any) -> Any:
        if self.row.algorithm == "discriminant":
            raise RuntimeError("a shape [is wrong]")
        return measured(self, *args)

    monkeypatch.setattr(Measurement, "scores", broken)
    cells = run(tmp_path, monkeypatch, [a_set("one", small_study())])
    assert not any("discriminant" in key for key in cells)
    assert f"one/8/{BASELINE}/1" in cells
    assert "RuntimeError: a shape [is wrong]" in " ".join(capsys.readouterr().err.split())


def test_no_time_left_means_the_page_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not run(tmp_path, monkeypatch, [a_set("one", small_study())], "--minutes", "0")
    assert "0 of " in (tmp_path / "page" / "leaderboard.md").read_text()


@pytest.mark.parametrize("wrong", [["--set", "nobody"], ["--algorithm", "nobody"], ["--seeds", "1"]])
def test_a_wrong_option_is_refused_in_a_sentence(
    wrong: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        leaderboard.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--page", str(tmp_path), *wrong])
    assert stopped.value.code == 2
    assert wrong[-1] in capsys.readouterr().err


def board(values: dict[tuple[str, str], float]) -> Board:
    """By data set and row: what two seeds find, a hundredth apart, at every epsilon."""
    cells = {
        f"{dataset}/{column}/{row}/{seed}": {"scores": {"t": [value + 0.01 * seed] * 3}, "cpu_s": 1.0}
        for (dataset, row), value in values.items()
        for column in (NONE, "8")
        for seed in range(2)
    }
    sets, rows = (list(dict.fromkeys(each)) for each in zip(*values, strict=True))
    return Board(cells, sets, rows, (NONE, "8"))


scores = st.floats(0.3, 0.9).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(scores, scores, scores), min_size=4, max_size=6), scores, scores)
def test_what_is_chosen_for_a_data_set_does_not_depend_on_what_was_measured_there(
    found: list[tuple[float, float, float]], better: float, worse: float
) -> None:
    names = (LOCAL, BASELINE, "discriminant")
    values = {(f"s{at}", row): value for at, each in enumerate(found) for row, value in zip(names, each, strict=True)}
    place = ("8", 5)
    before = board(values).elsewhere("s0", place)
    assert before in names[1:]
    changed = board(values | {("s0", BASELINE): better, ("s0", "discriminant"): worse})
    assert changed.elsewhere("s0", place) == before
    worth = changed.worth("s0", place)
    assert worth is not None
    assert worth.mean == pytest.approx((better if before == BASELINE else worse) - values["s0", LOCAL])


def test_a_difference_is_ahead_only_beyond_its_interval() -> None:
    assert [verdict(Estimate(*each)) for each in ((0.05, 0.04), (0.05, 0.06), (-0.05, 0.01), (0.0, 0.0))] == [
        "ahead",
        "level",
        "behind",
        "level",
    ]


def test_a_heat_map_has_a_number_in_every_cell_that_is_known() -> None:
    cells = {("<a> & b", "left", "1"): Estimate(0.05, 0.01), ("c", "right", "1"): Estimate(-0.30, 0.5)}
    drawing = heat_map("T", "n", ["<a> & b", "c"], {"left": ["1"], "right": ["1", "2"]}, cells)
    root = ElementTree.fromstring(drawing)
    written = {text.text: text.get("class", "") for text in root.iter(f"{SVG}text")}
    assert "sure" in written["+5.0"]
    assert "sure" not in written["-30.0"]
    assert "<a> & b" in written
    colours = [box.get("fill") for box in root.iter(f"{SVG}rect")]
    assert len(colours) == 1 + 2 * 3
    assert colours.count("none") == 4
    assert signed(-0.0001) == "0.0"


def test_the_sets_are_many_and_their_names_serve_as_keys() -> None:
    names = [each.name for each in SETS]
    assert len(set(names)) == len(names) >= 10
    assert not any("/" in name for name in names)
    assert sum(each.hospitals == "real" for each in SETS) >= 10


@pytest.mark.parametrize(
    ("features", "task"),
    [
        (IMAGES, {"kind": "image", "image_size_px": 28}),
        (TABLES, {"kind": "table", "columns": 9}),
        (CELLS, {"kind": "image", "image_size_px": 28, "labels": "mask"}),
    ],
)
@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_recommend_falls_back_on_the_same_rule(features: Any, task: dict[str, Any], epsilon: float | None) -> None:
    row = next(each for each in by_rule(features) if each.name == "FedAvg + fine-tune")
    (trial,) = row.exact if epsilon is None else row.private
    found = fedavg_by_rule(
        Described.model_validate({"labels": "one", "classes": 2, "hospitals": (900, 900), "epsilon": epsilon, **task})
    )
    names = ("algorithm.name", "outer.learning_rate", "rounds.rounds", "privacy.clip_norm")
    said = [found[name] for name in names]
    clip = trial.clip_norm if epsilon else said[3]
    assert said == [row.algorithm, trial.learning_rate, trial.rounds, clip] and not trial.settings


def test_fewer_components_are_the_first_ones() -> None:
    study = small_study()
    whole, kept = narrowed(study, None)
    assert (whole, kept) == (study, 2)


@pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")
@pytest.mark.parametrize("dataset", [each for each in SETS if each.features is TABLES], ids=lambda each: each.name)
def test_nobody_learns_from_a_target(dataset: DataSet, tmp_path: Path) -> None:
    sources = Sources(Path(os.environ[DATA]), None, tmp_path, Console(stderr=True))
    studies = dataset.studies(sources)
    assert studies
    for study in studies:
        problem = study.problem(0)
        for target in problem.targets:
            assert target.name not in problem.cohorts
            assert target.examples.z.isfinite().all()
            assert float(target.examples.z.abs().max()) <= 10
            assert len(set(target.examples.y.tolist())) == len(target.classes)
