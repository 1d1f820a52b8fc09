"""What any price must satisfy, and what a calibrated run of any federation spends."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.chosen import fitting

from wardround.accountant import Answers, calibrate, epsilon, merged, rows_for, run_epsilon
from wardround.algorithms import ALGORITHMS
from wardround.config import Federation, Privacy, Rounds
from wardround.schedule import QUESTIONS, RoundPlan, Schedule
from wardround.task import Task

SIGMAS = st.floats(0.8, 8)
RATES = st.floats(0.003, 0.7)
COUNTS = st.integers(1, 60)
DELTAS = st.sampled_from([1e-3, 2e-4, 1e-5, 1e-7])
UNSAMPLED = st.lists(st.builds(Answers, st.floats(1, 30), st.just(1.0), st.integers(1, 5)), max_size=2)


def no_cheaper(more: Iterable[Answers], less: Iterable[Answers], delta: float) -> None:
    """PRV rounds to a grid that suits each history; two prices may differ by that, a thousandth at most."""
    dear, cheap = epsilon(more, delta), epsilon(less, delta)
    assert dear >= cheap * (1 - 1e-3) - 2e-4, (dear, cheap)


@settings(max_examples=4)
@given(sigma=SIGMAS, rate=RATES, count=COUNTS, more=COUNTS, others=UNSAMPLED, delta=DELTAS)
def test_more_rounds_less_noise_and_larger_samples_are_no_cheaper(
    sigma: float, rate: float, count: int, more: int, others: list[Answers], delta: float
) -> None:
    row = Answers(sigma, rate, count)
    no_cheaper([Answers(sigma, rate, count + more), *others], [row, *others], delta)
    no_cheaper([Answers(sigma * 0.9, rate, count), *others], [row, *others], delta)
    no_cheaper([Answers(sigma, rate * 1.2, count), *others], [row, *others], delta)
    no_cheaper([Answers(sigma, 1.0, count), *others], [row, *others], delta)
    no_cheaper([row, *others], [row], delta)


@given(
    rows=st.lists(st.builds(Answers, st.floats(0.5, 50), st.just(1.0), st.integers(1, 40)), min_size=1, max_size=5),
    factor=st.floats(1.001, 2),
    delta=DELTAS,
)
def test_of_unsampled_answers_that_is_exact(rows: list[Answers], factor: float, delta: float) -> None:
    price = epsilon(rows, delta)
    first, rest = rows[0], rows[1:]
    assert epsilon([Answers(first.noise_multiplier * factor, 1.0, first.count), *rest], delta) <= price
    assert epsilon([*rows, first], delta) >= price
    assert epsilon(rows, delta / factor) >= price


@given(
    rows=st.lists(
        st.builds(Answers, st.sampled_from([0.7, 1.0, 3.0]), st.sampled_from([0.01, 0.5, 1.0]), st.integers(0, 9)),
        max_size=12,
    ),
    seed=st.integers(0, 1000),
)
def test_merging_forgets_the_order_and_loses_no_answer(rows: list[Answers], seed: int) -> None:
    shuffled = random.Random(seed).sample(rows, len(rows))
    assert merged(rows) == merged(shuffled) == merged(merged(rows))
    assert sum(row.count for row in merged(rows)) == sum(row.count for row in rows)
    kinds = [(row.noise_multiplier, row.sampling_rate) for row in merged(rows)]
    assert len(set(kinds)) == len(kinds)


def federation(
    name: str, *, steps: int, rounds: int, every: int, privacy: Privacy, classes: tuple[str, ...] = ("a", "b")
) -> Federation:
    return Federation(
        name="random",
        task=Task(label_column="finding", classes=classes),
        algorithm=fitting(name, local_steps=steps),
        rounds=Rounds(rounds=rounds, evaluate_every=every),
        privacy=privacy,
    )


def spends_what_it_says(schedule: Schedule, privacy: Privacy, declared: int) -> None:
    delta = 1 / (10 * declared + 1)
    calibration = calibrate(schedule, privacy, declared_patients=declared, delta=delta)
    spent = run_epsilon(calibration, schedule, len(schedule) - 1, delta)
    assert 0.99 * privacy.epsilon <= spent <= privacy.epsilon
    rows = [row for plan in schedule.rounds for row in rows_for(calibration, plan)]
    assert epsilon(rows, delta) == spent, "the ledger, which holds these rows, says the same"
    for question in QUESTIONS.built_in:
        assert math.isfinite(calibration.noise_multiplier(question)) == bool(schedule.times(question))
    for plan in schedule.rounds:
        rate = privacy.expected_patients(declared) / declared if plan.trains else 1.0
        assert rows_for(calibration, plan)[0].sampling_rate == rate


@pytest.mark.parametrize("name", ALGORITHMS.built_in)
@settings(max_examples=25)
@given(
    target=st.floats(0.1, 20),
    steps=st.integers(1, 6),
    rounds=st.integers(1, 200),
    every=st.integers(0, 40),
    shares=st.tuples(st.floats(0.02, 0.35), st.floats(0.02, 0.35)),
    declared=st.integers(20, 50_000),
)
def test_a_run_of_every_algorithm_spends_its_epsilon(
    name: str, target: float, steps: int, rounds: int, every: int, shares: tuple[float, float], declared: int
) -> None:
    """P26: "given epsilon for the whole run, solve for sigma"; "k x", "(k+1) x", "1 x (q, sigma)"."""
    statistics, evaluation = shares
    privacy = Privacy(epsilon=target, statistics_share=statistics, evaluation_share=evaluation)
    agreed = federation(name, steps=steps, rounds=rounds, every=every, privacy=privacy)
    schedule = Schedule.of(agreed)
    trains = [plan for plan in schedule.rounds if plan.trains]
    per_round = {
        **dict.fromkeys(
            (
                "fedavg",
                "fedprox",
                "fedrep",
                "mr-mtl",
                "discriminant",
                "meta-augment",
                "meta-weight",
                "generative",
                "reptile",
                "scaffold",
            ),
            steps,
        ),
        **dict.fromkeys(("fomaml", "meta-sgd"), steps + 1),
        "per-fedavg": 2 * steps,
    }.get(name, 1)  # all others: one answer of all episodes together
    assert [plan.times for plan in trains] == [per_round] * rounds
    spends_what_it_says(schedule, privacy, declared)


@pytest.mark.parametrize(
    ("name", "expected", "target", "declared"),
    [("maml", 32, 3.0, 500), ("fomaml", 20, 1.0, 2000), ("reptile", 64, 8.0, 200)],
)
def test_a_subsampled_run_spends_its_epsilon(name: str, expected: int, target: float, declared: int) -> None:
    privacy = Privacy(epsilon=target, patients_per_step=expected)
    agreed = federation(name, steps=2, rounds=30, every=10, privacy=privacy)
    spends_what_it_says(Schedule.of(agreed), privacy, declared)


@settings(max_examples=40)
@given(
    training=st.sampled_from(["gradient", "episode_gradient"]),
    means=st.integers(1, 3),
    rounds=st.integers(1, 60),
    evaluations=st.integers(0, 4),
    target=st.floats(0.2, 15),
    declared=st.integers(20, 20_000),
)
def test_a_run_that_asks_for_class_means_spends_its_epsilon(
    training: str, means: int, rounds: int, evaluations: int, target: float, declared: int
) -> None:
    """A prototypical network's run: statistics, episodes, and the class means in between and at the end."""
    asked = ["statistics", *[training] * rounds, *["class_means"] * means, *["confusion"] * evaluations]
    plans = [RoundPlan(number, question, 1) for number, question in enumerate(asked)]
    spends_what_it_says(Schedule(tuple(plans)), Privacy(epsilon=target), declared)
