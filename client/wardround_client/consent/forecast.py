"""What a run would cost this hospital, before it starts: from public numbers and the ledger, never from data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from wardround.accountant import Answers, epsilon, epsilon_and_method, rows_for
from wardround.text import counted
from wardround_client.consent.agreement import Agreement
from wardround_client.privacy.ledger import Budget


@dataclass(frozen=True)
class Forecast:
    """Epsilons at the hospital's delta.

    alone: of the runs by themselves. before, after: of the cohort without them and with them; composition is tight, so
    after is less than the sum. rounds: of all runs. affordable: how many of these, from the first, the budget lets
    through. method: how `after` was computed (`accountant.epsilon_and_method`). runs: how many.
    """

    alone: float
    before: float
    after: float
    budget: float
    delta: float
    rounds: int
    affordable: int
    method: str
    runs: int = 1

    @property
    def left(self) -> float:
        """Epsilon that the cohort may still spend, before the run."""
        return max(0.0, self.budget - self.before)

    def sentence(self) -> str:
        """For a person."""
        what, its = ("this run", "its") if self.runs == 1 else (f"these {self.runs} runs", "their")
        if self.affordable < self.rounds:
            return (
                f"does NOT fit: {what} would bring the cohort to epsilon {self.after:.2f} of {self.budget:g}; "
                f"{self.left:.2f} is left, enough for {self.affordable} of {its} {counted(self.rounds, 'round')}"
            )
        cost = self.after - self.before
        return f"{what} will cost this hospital epsilon {cost:.2f} of the {self.left:.2f} left"


def forecast(agreement: Agreement, history: Sequence[Answers], budget: Budget, runs: int = 1) -> Forecast:
    """Price whole runs on top of what was spent, and find the round at which the budget would refuse.

    Args:
        agreement: whose run.
        history: everything that the ledger holds (`Ledger.history`).
        budget: the hospital's.
        runs: how many, one after the other.
    """
    rounds = runs * [rows_for(agreement.calibration, plan) for plan in agreement.schedule.rounds]

    def after(number: int) -> float:
        return epsilon([*history, *(row for rows in rounds[:number] for row in rows)], budget.delta)

    limit = budget.epsilon_per_round
    cheap = next((n for n, rows in enumerate(rounds) if limit and epsilon(rows, budget.delta) > limit), len(rounds))
    low, high = 0, cheap  # prices only grow: the greatest number of rounds that the budget carries
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if after(middle) <= budget.epsilon else (low, middle - 1)
    run = [row for rows in rounds for row in rows]
    total, method = epsilon_and_method([*history, *run], budget.delta)
    return Forecast(
        alone=epsilon(run, budget.delta),
        before=epsilon(history, budget.delta),
        after=total,
        budget=budget.epsilon,
        delta=budget.delta,
        rounds=len(rounds),
        affordable=low,
        method=method,
        runs=runs,
    )
