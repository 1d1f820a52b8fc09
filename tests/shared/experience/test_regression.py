"""The regression against scikit-learn's with the same covariance, and against what is known in closed form."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from tests.shared.experience.test_row import a_row

from wardround.experience.regression import Lengths, Points, Process, Space, chance, gain
from wardround.experience.row import Described, Row, Settings

LENGTHS = Lengths()


def task(hospitals: tuple[int, ...] = (100, 200), **change: object) -> Described:
    values = {"kind": "image", "labels": "one", "classes": 3, "image_size_px": 28, "hospitals": hospitals, "epsilon": 8}
    return Described.model_validate(values | change)


def a_run(score: float, rate: float, *, name: str = "fedavg", runs: int = 1, **change: object) -> Row:
    settings = {"algorithm.name": name, "outer.learning_rate": rate, "privacy.clip_norm": 1.0}
    return a_row(task=task(**change), settings=settings, scores={5: score}, runs=runs)  # type: ignore[arg-type]


def some(number: int, seed: int = 0) -> list[Row]:
    drawn = np.random.default_rng(seed)
    return [
        a_run(
            float(drawn.uniform(0.3, 0.9)),
            float(2 ** drawn.uniform(-2, 5)),
            name=str(drawn.choice(["fedavg", "reptile"])),
            runs=int(drawn.integers(1, 4)),
            hospitals=tuple(int(each) for each in drawn.integers(20, 900, 3)),
            epsilon=float(drawn.choice([1.0, 3.0, 8.0])),
        )
        for _ in range(number)
    ]


def test_it_is_scikit_learns_process_with_the_same_covariance() -> None:
    sklearn = pytest.importorskip("sklearn.gaussian_process")
    kernels = pytest.importorskip("sklearn.gaussian_process.kernels")
    rows, asked = some(30), some(7, seed=1)
    process = Process.of(rows, LENGTHS)
    pairs: list[tuple[Described, Settings]] = [(row.task, row.settings) for row in [*rows, *asked]]
    points = process.space.points(pairs)
    known = process.space.kernel(points, points)

    class Given(kernels.Kernel):  # type: ignore[misc, name-defined]
        """The covariance between rows of a table, which are named by their numbers."""

        def __init__(self) -> None:
            """Scikit-learn looks at its signature."""

        def __call__(self, x: object, y: object = None, eval_gradient: bool = False) -> object:
            at = np.asarray(x, int)[:, 0]
            return known[np.ix_(at, at if y is None else np.asarray(y, int)[:, 0])]

        def diag(self, x: object) -> object:
            return np.diag(known)[np.asarray(x, int)[:, 0]]

        def is_stationary(self) -> bool:
            return False

    noise = np.array([LENGTHS.noise / row.runs + 1e-8 for row in rows])
    theirs = sklearn.GaussianProcessRegressor(Given(), alpha=noise, optimizer=None)
    theirs.fit(np.arange(30)[:, None], process.y)
    mean, covariance = theirs.predict(np.arange(30, 37)[:, None], return_cov=True)
    ours, ours_covariance = process.expected(process.space.points(pairs[30:]))
    np.testing.assert_allclose(ours - process.mean, mean, atol=1e-9)
    np.testing.assert_allclose(ours_covariance, covariance, atol=1e-9)
    np.testing.assert_allclose(process.mean_at(process.space.points(pairs[30:])), ours, atol=1e-12)
    assert process.evidence == pytest.approx(theirs.log_marginal_likelihood_value_, rel=1e-9)


def test_the_evidence_is_the_density_of_the_gains() -> None:
    rows = some(12, seed=3)
    process = Process.of(rows, LENGTHS)
    covariance = process.space.kernel(process.points, process.points)
    covariance += np.diag([LENGTHS.noise / row.runs + 1e-8 for row in rows])
    assert process.evidence == pytest.approx(multivariate_normal(np.zeros(12), covariance).logpdf(process.y))


def test_two_runs_in_closed_form() -> None:
    """With one row beside the mean's own, the posterior is a shrunk copy of it."""
    one, other = a_run(0.9, 4.0), a_run(0.5, 4.0, hospitals=(9000,), epsilon=1.0)
    process = Process.of([one, other], replace(LENGTHS, people=0.1, epsilon=0.1, a_s=1e-12))
    total = process.space.lengths
    prior = total.a_o + total.a_t + total.a_s + total.a_b
    mean, covariance = process.expected(process.space.points([(one.task, one.settings)]))
    shrunk = prior / (prior + total.noise + 1e-8)
    middle = (gain(one) + gain(other)) / 2
    assert mean[0] == pytest.approx(middle + shrunk * (gain(one) - middle), abs=1e-6)
    assert covariance[0, 0] == pytest.approx(prior - prior * shrunk, abs=1e-6)


@given(st.integers(2, 20), st.integers(0, 1000))
def test_a_covariance_is_one_and_learning_makes_nothing_less_sure(number: int, seed: int) -> None:
    rows = some(number, seed)
    process = Process.of(rows, LENGTHS)
    points: Points = process.space.points([(row.task, row.settings) for row in some(5, seed + 1)])
    prior = process.space.kernel(points, points)
    _, covariance = process.expected(points)
    assert np.linalg.eigvalsh(prior).min() > -1e-9
    assert np.linalg.eigvalsh(covariance).min() > -1e-6
    assert (np.diag(covariance) <= np.diag(prior) + 1e-9).all()


@given(st.integers(0, 1000))
def test_the_order_of_rows_is_no_matter(seed: int) -> None:
    rows, asked = some(8, seed), some(1, seed + 1)[0]
    found = []
    for order in (rows, rows[::-1]):
        process = Process.of(order, LENGTHS)
        found.append(process.mean_at(process.space.points([(asked.task, asked.settings)]))[0])
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_what_is_far_is_what_is_expected_of_everything() -> None:
    process = Process.of(some(20), LENGTHS)
    far = task(kind="volume", labels="several", classes=250, hospitals=(10**8,) * 50, epsilon=0.001)
    mean, covariance = process.expected(process.space.points([(far, {"algorithm.name": "new"})]))
    assert mean[0] == pytest.approx(process.mean, abs=0.02)
    alike = process.space.tasks_alike(process.space.points([(far, {})]), process.points)
    assert alike.max() < 0.01
    assert covariance[0, 0] > 0.9 * (LENGTHS.a_o + LENGTHS.a_t + LENGTHS.a_s + LENGTHS.a_b)


def test_a_gain_is_above_chance_and_takes_the_nearest_number_of_shots() -> None:
    row = a_row(scores={0: 0.5, 20: 1.0})
    assert chance(row.task, "balanced accuracy") == pytest.approx(1 / 3)
    assert gain(row) == pytest.approx(0.625)
    assert gain(row, 1) == pytest.approx(0.25)
    assert gain(row, 5) == pytest.approx(0.25)
    assert gain(row, 15) == pytest.approx(1.0)


def test_lengths_move_and_rho_stays_below_one() -> None:
    moved = LENGTHS.moved([1.0] * len(asdict(LENGTHS)))
    assert moved.people == pytest.approx(np.e * LENGTHS.people)
    assert moved.rho == 0.98


def test_only_settings_that_differ_are_compared() -> None:
    assert Space.of(some(5), LENGTHS).keys == ("outer.learning_rate",)
