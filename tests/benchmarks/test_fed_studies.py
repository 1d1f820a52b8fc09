"""The tables of hospitals: everybody is judged alike, nothing is measured twice, and no target is learned from."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor

import cross_modality
import fed_ham
import fed_heart
import federated
import hospitals
import study
from hospitals import Measurement, Problem, Study, Target, agreed, examples_of, judged, nearest_mean, unchanging
from real_data import DATA, SKIN_COLUMNS, bccd, folder, ham10000, heart
from rows import MAIN, NONE, TRIALS, Row, Trial, rows
from tables import Store
from wardround.algorithms import ALGORITHMS
from wardround.config import Federation, ModelChoice
from wardround.errors import DataError
from wardround.models import build_model
from wardround.task import Task
from wardround_client.cohort.examples import Examples

ROWS = rows((2, 4))
real = pytest.mark.skipif(DATA not in os.environ, reason=f"{DATA} does not say where the public data are")


def data() -> Path:
    return Path(os.environ[DATA])


def patients(seed: int, classes: tuple[str, ...] = ("a", "b"), number: int = 30) -> Examples:
    """Two images each; the first column tells the classes apart."""
    label = [classes[place % len(classes)] for place in range(number) for _ in range(2)]
    z = torch.randn(2 * number, 2, generator=torch.Generator().manual_seed(seed))
    z[:, 0] += 3 * torch.tensor([float(classes.index(each)) for each in label])
    return examples_of(z, label, np.arange(number).repeat(2), classes, np.ones(2 * number, dtype=bool))


def federation(classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
    task = Task(label_column="label", classes=classes, kind="table", features=("x", "y"))
    model = ModelChoice(family="mlp", width=trial.embedding) if trial.embedding else ModelChoice(family="logistic")
    said = agreed(algorithm, trial, epsilon)
    if "adapt_steps" in ALGORITHMS[algorithm].model_fields:
        said["algorithm"]["adapt_steps"] = 5  # what is learned at home is no matter
    return Federation(name="test", task=task, model=model, **said)


def small_study(target: tuple[str, ...] = ("a", "b")) -> Study:
    here = patients(3, target)
    problem = Problem(
        "one+two for new", ("a", "b"), {"one": patients(1), "two": patients(2)}, (Target("new", target, here, here),)
    )
    return Study("small", (0, 1, 5), partial(unchanging, problem), (problem,), federation, build_model)


def small_row(kind: Any = "federated") -> Row:
    trials = tuple(Trial(2, rate) for rate in (0.0001, 1.0, 2.0, 4.0, 8.0, 16.0))
    return Row("reptile", "fedavg", kind, trials, trials)


def test_every_method_has_a_row_and_every_main_row_is_one() -> None:
    assert {row.algorithm for row in ROWS if row.kind == "federated"} == set(ALGORITHMS.built_in)
    assert set(MAIN) <= {row.name for row in ROWS}
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_rows_are_tuned_alike_and_pay_alike(row: Row) -> None:
    tuned = row.kind not in ("local", "floor")
    assert len(set(map(str, row.exact))) == (TRIALS if tuned else 1)
    for trial in row.private:
        agreement = federation(("a", "b"), row.algorithm, trial, 8.0)
        assert agreement.algorithm.answers_per_round * agreement.rounds.rounds == 20


def test_everybody_is_judged_on_the_same_supports_and_no_patient_on_both_sides() -> None:
    examples, seen = patients(0), []
    target = Target("new", ("a", "b"), examples, examples)

    def predictor(number: int, support: Examples) -> Callable[[Tensor], Tensor]:
        def probabilities(z: Tensor) -> Tensor:
            seen.append((number, support.z, z))
            return torch.full((len(z), 2), 0.5)

        return probabilities

    for number in range(2):
        assert judged(partial(predictor, number), target, 5, 3)["macro_auroc"] == 0.5
    first, second = ([each[1:] for each in seen if each[0] == number] for number in range(2))
    assert len(first) == hospitals.DRAWS
    assert all(torch.equal(a, b) for one, two in zip(first, second, strict=True) for a, b in zip(one, two, strict=True))
    assert not torch.equal(first[0][0], first[1][0])
    for support, query in first:
        assert len(support) + len(query) == len(examples.y)


def test_the_nearest_mean_is_found() -> None:
    support = patients(0)
    probabilities = nearest_mean(2, support)(torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert probabilities.argmax(1).tolist() == [0, 1]


@pytest.mark.parametrize("column", [NONE, "8"])
@pytest.mark.parametrize("kind", ["federated", "plain", "unadapted", "local", "central"])
def test_a_run_that_was_stopped_goes_on(
    kind: str, column: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hospitals, "NOISES", 1)
    measurement = Measurement(small_study(), small_row(kind), column, Store(tmp_path))
    done = list(measurement.steps(seeds=2))
    assert len(done) == TRIALS + 2
    for step in done:
        step()
    cell: Any = Store(tmp_path).rows()[measurement.key(1)]
    assert set(cell["scores"]["new"]) == {"0", "1", "5"}
    before = (tmp_path / "results.json").read_bytes()

    def again(*_: object, **__: object) -> None:
        raise AssertionError("this is known already")

    monkeypatch.setattr(Measurement, "_learner", again)
    for step in measurement.steps(seeds=2):
        step()
    assert (tmp_path / "results.json").read_bytes() == before


@pytest.mark.parametrize(("column", "runs"), [(NONE, 1), ("8", hospitals.NOISES)])
def test_a_private_trial_is_judged_at_several_draws_of_noise(
    column: str, runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thetas = []

    def remembered(*args: Any, **options: Any) -> Any:
        learner = federated.learned(*args, **options)
        thetas.append(tuple(learner.theta.tolist()))
        return learner

    monkeypatch.setattr(hospitals, "learned", remembered)
    next(Measurement(small_study(), small_row(), column, Store(tmp_path)).steps(seeds=2))()
    assert len(set(thetas)) == len(thetas) == runs


def test_the_best_trial_is_chosen_and_where_all_are_equal_the_middle_setting(tmp_path: Path) -> None:
    measurement = Measurement(small_study(), small_row(), NONE, Store(tmp_path))
    for number in range(TRIALS):
        values = {"0.1": 0.5, "1.0": 0.5, "10.0": 0.5}
        scores = {"1": values, "5": values | {"10.0": 0.9} if number == 4 else values}
        measurement.store.put(f"trial/one+two for new/none/reptile/{number}", {"scores": {"new": scores}})
    chosen = measurement.chosen()
    assert (chosen["trial"]["learning_rate"], chosen["adapting"]) == (8.0, {"1": "1.0", "5": "10.0"})


def test_what_the_federation_knew_of_a_class_goes_along_to_a_task_with_others() -> None:
    small = small_study(("b", "new", "a"))
    measurement = Measurement(small, small_row(), NONE, Store(Path("unused")))
    problem, trial = small.problem(0), small_row().exact[3]
    learner = measurement._learner(problem, trial)
    moved = measurement._moved(learner, problem, trial, problem.targets[0])
    x = patients(5).z
    before, after = (each.loss.logits(each.theta, x) for each in (learner, moved))
    assert torch.allclose(after, torch.stack([before[:, 1], torch.zeros(len(x)), before[:, 0]], 1))


def test_a_command_prints_a_table_and_says_what_was_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hospitals, "NOISES", 1)
    options = study.parser("small", "", encoder=False).parse_args(
        ["--data", str(tmp_path), "--rows", "reptile", "--epsilon", "8", "--seeds", "2", "--out", str(tmp_path / "out")]
    )
    study.run(options, lambda folder, console: [small_study()], [small_row()])
    printed = capsys.readouterr().out
    assert "### small: new, 1 shot a class" in printed
    assert "| reptile | " in printed
    assert "learning_rate" in (tmp_path / "out" / "settings.md").read_text()
    assert (tmp_path / "out" / "small-new.svg").read_text().startswith("<svg")


def test_a_method_that_such_tasks_cannot_have_is_left_out_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = Row("relation", "relation", "federated", (Trial(2),), (Trial(2),))

    def of_several(classes: tuple[str, ...], algorithm: str, trial: Trial, epsilon: float) -> Federation:
        if algorithm != "relation":
            return federation(classes, algorithm, trial, epsilon)
        task = Task(label_column="label", classes=classes, kind="table", features=("x", "y"), labels="several")
        return Federation(
            name="test", task=task, model=ModelChoice(family="logistic"), **agreed(algorithm, trial, epsilon)
        )

    given = ["--data", str(tmp_path), "--rows", "relation", "local", "--epsilon", "none", "--seeds", "2"]
    options = study.parser("small", "", encoder=False).parse_args([*given, "--out", str(tmp_path / "out")])
    local = replace(small_row("local"), name="local")
    study.run(options, lambda folder, console: [replace(small_study(), federation=of_several)], [refused, local])
    told = capsys.readouterr()
    assert "small, relation, none: algorithm relation needs images of one class" in " ".join(told.err.split())
    assert "| local |" in told.out and "| relation |" not in told.out


@pytest.mark.parametrize("wrong", [["--rows", "nobody"], ["--epsilon", "-1"], ["--epsilon", "much"], ["--seeds", "1"]])
def test_a_wrong_option_is_refused_in_a_sentence(wrong: list[str], tmp_path: Path) -> None:
    arguments = ["--data", str(tmp_path), "--rows", "reptile", "--out", str(tmp_path / "out"), *wrong]
    with pytest.raises(SystemExit) as stopped:
        study.run(
            study.parser("small", "", encoder=False).parse_args(arguments), lambda *_: [small_study()], [small_row()]
        )
    assert stopped.value.code == 2


def test_without_data_a_command_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATA, raising=False)
    with pytest.raises(DataError, match="--data"):
        folder(None)


@real
def test_a_lesion_is_at_one_hospital() -> None:
    sites = ham10000(data())
    lesions = [set(site.patient.tolist()) for site in sites]
    assert sum(map(len, lesions)) == len(set.union(*lesions)) == 7470


@real
def test_nobody_learns_from_a_target_of_skin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbered = lambda encoder, x, cache, console: torch.arange(len(x)).float().unsqueeze(1)  # noqa: E731
    monkeypatch.setattr(fed_ham, "cached", numbered)
    options = Namespace(encoder=None, features=2, cache=None, out=tmp_path, size=28, table=False)
    ham = fed_ham.Ham(options, data(), Console(stderr=True))
    lesion_of = ham.lesion[np.arange(len(ham.lesion))]
    for each in ham.studies():
        for problem in (each.problem(1), *each.pseudo):
            learned = np.concatenate([lesion_of[cohort.z[:, 0].long()] for cohort in problem.cohorts.values()])
            for target in problem.targets:
                assert not np.isin(lesion_of[target.examples.z[:, 0].long()], learned).any()
                assert len(target.raw.z) == len(target.examples.z)
        if each.name.startswith("new hospital"):
            name = each.name.removeprefix("new hospital ")
            assert all(name not in problem.cohorts and name != problem.targets[0].name for problem in each.pseudo)


@real
def test_a_lesion_s_table_says_what_a_referral_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fed_ham, "cached", lambda encoder, x, cache, console: torch.zeros(len(x), 2))
    options = Namespace(encoder=None, features=2, cache=None, out=tmp_path, size=128, table=True)
    ham = fed_ham.Ham(options, data(), Console(stderr=True))
    table = ham.z[:, 2:-2]
    assert table.shape[1] == len(SKIN_COLUMNS)
    assert table.isfinite().all()
    assert table.mean(0).abs().max() < 0.7
    assert (ham.z[:, -2] == 1).all()
    assert 0.9 < float(ham.z[:, -1].mean()) < 1


@real
def test_hearts_have_a_pressure_and_a_pulse() -> None:
    for site in heart(data()):
        assert float(site.x[:, [3, 4, 7]].min()) > 0
    assert [len(each.pseudo) for each in fed_heart.studies(data())] == [3] * 8


@real
def test_a_smear_is_kept_for_one_kind_of_cell() -> None:
    site = bccd(data())
    assert len({(patient, label) for patient, label in zip(site.patient.tolist(), site.label, strict=True)}) == len(
        set(site.patient.tolist())
    )


@real
def test_a_modality_that_is_held_out_teaches_nobody() -> None:
    names = {site.name: site for site in cross_modality.hospitals(data())}
    for plan in cross_modality.PLANS.values():
        assert not set(plan.learn) & set(plan.judged)
        assert set(plan.stand_ins) <= set(plan.learn) <= set(names)
    chests = {"CXR", "pneumonia", "no pneumonia"}
    assert not chests & {label for name in cross_modality.PLANS["chest"].learn for label in names[name].label}
    assert cross_modality.brought(names["mednist"].x[:2]).shape == (2, 3, 28, 28)
