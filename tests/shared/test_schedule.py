from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.chosen import fitting

from wardround.config import Federation, Rounds
from wardround.schedule import Schedule
from wardround.task import Task

TASK = Task(label_column="finding", classes=("none", "nodule", "mass"))


def schedule(rounds: int, every: int, name: str = "reptile", steps: int = 1) -> Schedule:
    choice = fitting(name, local_steps=steps)
    return Schedule.of(
        Federation(name="a", task=TASK, algorithm=choice, rounds=Rounds(rounds=rounds, evaluate_every=every))
    )


@given(st.integers(1, 50), st.integers(0, 10))
def test_rounds_are_numbered_without_gaps_and_start_with_statistics(rounds: int, every: int) -> None:
    plan = schedule(rounds, every)
    assert [r.number for r in plan.rounds] == list(range(len(plan)))
    assert plan[0].question == "statistics"
    assert [r.question for r in plan.rounds].count("statistics") == 1
    assert sum(r.question == "gradient" for r in plan.rounds) == rounds
    assert plan.times("confusion") == (rounds // every if every else 0)


def test_an_evaluation_follows_the_round_that_it_judges() -> None:
    assert [r.question for r in schedule(4, 2).rounds] == [
        "statistics", "gradient", "gradient", "confusion", "gradient", "gradient", "confusion",
    ]  # fmt: skip


def test_fomaml_asks_once_more_than_it_steps() -> None:
    assert schedule(1, 0, "fomaml", 3)[1].times == 4
    assert schedule(1, 0, "reptile", 3)[1].times == 3
