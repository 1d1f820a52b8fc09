"""Experience is made of runs that were run once, and judged by runs that nothing was chosen by."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.benchmarks.test_fed_studies import small_study
from tests.shared.experience.test_regression import a_run

import experience
import experience_converted
import experience_judged
import experience_tasks
from experience import Done, agreement, described, means, methods, plan
from experience_judged import BEST, OURS, Left, default, least_alike, on_average, public
from experience_tasks import Known
from leaderboard_sets import DataSet
from public_rule import TABLES
from real_data import DATA, Site
from tables import Store
from wardround.algorithms import ALGORITHMS
from wardround.experience.advice import DEFAULT
from wardround.experience.file import read
from wardround.experience.row import Row
from wardround.task import Task

real = pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")


def site(name: str, patients: int, seed: int) -> Site:
    x = torch.randn(patients, 3, generator=torch.Generator().manual_seed(seed))
    label = tuple("ab"[each % 2] for each in range(patients))
    x[:, 0] += torch.tensor([2.0 * (each == "b") for each in label])
    return Site(name, x, label, np.arange(patients))


def known(patients: int = 40) -> Known:
    task = Task(label_column="y", classes=("a", "b"), kind="table", features=("c0", "c1", "c2"))
    return Known("made-up", "made up", task, (site("one", patients, 0), site("two", patients, 1)), site("new", 30, 2))


def test_every_algorithm_that_can_be_private_is_run_and_the_plan_is_always_the_same() -> None:
    task = known()
    found = plan(task, 8.0)
    assert {each["algorithm.name"] for each in found} == set(ALGORITHMS.built_in)
    assert {row.algorithm for row in methods(task)} == set(ALGORITHMS.built_in)
    assert found == plan(task, 8.0) and found != plan(task, 3.0)
    assert found[0] == {**DEFAULT, "model.family": "logistic"}
    assert len(plan(known(400), 8.0)) < len(found)  # of many patients, nothing that takes ten times as long
    for settings in (*found, *plan(task, 1.0)):
        agreement(task, settings, 8.0)


def test_a_run_is_run_once_whatever_settings_a_version_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def measured(known: Known, settings: Any, epsilon: float, draw: int) -> Row:
        ran.append(draw)
        kept = experience.settings_for(agreement(known, settings, epsilon))
        del kept["outer.momentum"]  # as if it had come later
        return Row(task=described(known, epsilon), settings=kept, scores={5: 0.5 + draw / 10}, source=known.source)

    monkeypatch.setattr(experience, "measured", measured)
    first, other = plan(known(), 8.0)[:2]
    assert len(list(Done(tmp_path / "rows").run(known(), first, 8.0, draws=2))) == 2
    again = Done(tmp_path / "rows")
    assert [row.scores[5] for row in again.run(known(), first, 8.0, draws=3)] == [0.5, 0.6, 0.7]
    assert len(list(again.run(known(), other, 8.0, draws=1))) == len(list(again.run(known(), first, 3.0, draws=1))) == 1
    assert ran == [0, 1, 2, 0, 0]
    (mean, *_) = means(read(tmp_path / "rows").rows)
    assert mean.runs == 3 and mean.scores == {5: 0.6}


def test_a_run_says_what_was_agreed_and_what_came_out() -> None:
    settings = {**DEFAULT, "model.family": "logistic", "rounds.rounds": 5.0}
    row = experience.measured(known(), settings, 8.0, 0)
    assert row.task.hospitals == (40, 40) and row.task.columns == 3 and row.source == "made-up"
    assert set(row.scores) == {0, 1, 5} and row.scores[5] > 0.6
    assert {key: row.settings[key] for key in settings} == settings
    assert "outer.rule" not in row.settings and row.task.balance == (0.5, 0.5)


def test_ways_of_choosing_see_nothing_of_what_is_left_out() -> None:
    rows = [
        a_run(score, rate, name=name, hospitals=(size,), kind=kind).model_copy(update={"source": source})
        for source, kind in (("a", "image"), ("b", "image"), ("c", "table"))
        for size in (100, 200)
        for name, rate, score in (("fedavg", 4.0, 0.6), ("reptile", 8.0, 0.8), ("ridge", 8.0, 0.4))
    ]
    task = rows[0].task
    assert on_average(task, rows)["algorithm.name"] == "reptile"
    assert default(task, rows)["outer.learning_rate"] == DEFAULT["outer.learning_rate"]
    assert public(task, rows)["algorithm.name"] == "fedavg"
    left = {each.name: each for each in experience_judged.left_out(rows, [known()], [8.0])}
    assert "made-up" in left and {row.task.kind for row in left["every table"].rows} == {"image"}


def test_how_far_is_far_is_where_advice_was_worth_most() -> None:
    def cell(alike: float, ahead: float) -> dict[str, Any]:
        return {"alike": alike, "points": {OURS: 50 + ahead, "default": 50.0}}

    cells = [cell(0.9, 3.0), cell(0.8, -1.0), cell(0.6, 2.0), cell(0.3, -5.0), cell(0.1, 1.0)]
    assert least_alike(cells) == 0.6
    assert least_alike([]) == 0.0


def test_what_is_left_out_is_judged_once_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = known()
    own = [
        Row(
            task=described(task, 8.0),
            settings=experience.settings_for(agreement(task, each, 8.0)),
            scores={5: 0.7},
            source="made-up",
        )
        for each in plan(task, 8.0)[:3]
    ]
    others = [
        row.model_copy(update={"source": source, "task": row.task.model_copy(update={"columns": columns})})
        for row in own
        for source, columns in (("x", 5), ("y", 9))
    ]
    asked: list[str] = []

    def score(fresh: Done, known: Known, settings: Any, epsilon: float) -> float:
        asked.append(settings["algorithm.name"])
        return 0.7

    monkeypatch.setattr(experience_judged, "score", score)
    store, console = Store(tmp_path), Console(quiet=True)

    def judged() -> Sequence[dict[str, Any]]:
        left = Left("made-up", others, [(task, 8.0)])
        return list(experience_judged.judge(left, [*own, *others], Done(tmp_path / "fresh"), store, 1, console))

    (cell,) = judged()
    assert {OURS, BEST, "default", "random forest", "best on average"} <= set(cell["points"])
    count = len(asked)
    assert judged()[0]["points"] == cell["points"] and len(asked) == count
    other = {**cell, "left": "x"}
    text = experience_judged.tables([cell, other])
    assert "behind the best known" in text and "+0.0 ± 0.0" in text


def test_cells_of_the_leaderboard_are_rows(tmp_path: Path) -> None:
    study = small_study()
    dataset = DataSet("lung genes", "", "real", TABLES, lambda sources: [study])
    store = Store(tmp_path)
    cell: dict[str, object] = {"scores": {"small: new": [0.5, 0.6, 0.7], "another: new": [0.1, 0.1, 0.1]}}
    store.put("lung genes/8/reptile/0", cell)
    store.put("lung genes/8/reptile/1", {"scores": {"small: new": [0.7, 0.8, 0.9]}})
    store.put("lung genes/none/fomaml/0", cell)
    store.put("lung genes/3/fomaml/0", {"reason": "it cannot"})
    found = list(experience_converted.converted(dataset, [study], store))
    assert [(row.algorithm, row.task.epsilon) for row in found] == [("fomaml", None), ("reptile", 8.0)]
    assert found[1].scores == {1: 0.6, 5: 0.7, 20: 0.8} and found[1].runs == 2 and found[1].source == "lung"
    assert found[1].task.hospitals == (30, 30)
    other = small_study(("b", "c"))
    assert list(experience_converted.converted(dataset, [other], store)) == []


@real
def test_every_task_of_real_tables_can_be_run() -> None:
    found = list(experience_tasks._tables(Path(os.environ[DATA])))
    assert len({each.name for each in found}) == len(found) > 15
    for each in found:
        for settings in plan(each, 1.0):
            agreement(each, settings, 1.0)
        assert min(len(set(cohort.y.tolist())) for cohort in [each.new(0)]) == 2
