"""What an audit says: a row an experiment, and one sentence about the whole run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from wardround.errors import AuditFailed


@dataclass(frozen=True)
class AuditRow:
    """One experiment's result.

    name, tests: which, and what it would find. assumes: what is taken for granted of the mechanism.
    claimed_epsilon: the price of what a trial asks, at the run's delta. lower_bound_epsilon: what was shown.
    guesses: how many canary guesses the bound rests on. answers: how many answers were asked for.
    """

    name: str
    tests: str
    assumes: str
    claimed_epsilon: float
    lower_bound_epsilon: float
    guesses: int
    answers: int

    @property
    def holds(self) -> bool:
        """Whether the claim is not refuted."""
        return self.lower_bound_epsilon <= self.claimed_epsilon


@dataclass(frozen=True)
class AuditReport:
    """The result of an audit.

    claimed_epsilon: of the whole run, all its questions together, at delta. confidence: that ALL lower bounds of the
    rows are below the truth, together. seconds: how long it took.
    """

    claimed_epsilon: float
    delta: float
    confidence: float
    rows: tuple[AuditRow, ...]
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether no claim is refuted: neither a row's own, nor the run's by the run."""
        return not self.refuted

    @property
    def refuted(self) -> tuple[str, ...]:
        """Names of the experiments whose lower bound passes their claim."""
        return tuple(row.name for row in self.rows if not row.holds)

    @property
    def lower_bound_epsilon(self) -> float:
        """What the canaries of the whole run show, by the better of its bounds; 0 for a run without training."""
        return max((row.lower_bound_epsilon for row in self.rows if row.name in ("run", "one_run")), default=0.0)

    @property
    def headline(self) -> str:
        """One sentence."""
        return (
            f"Whole run: claimed epsilon {self.claimed_epsilon:.2f} at delta {self.delta:.2g}; "
            f"the audit shows at least {self.lower_bound_epsilon:.2f} ({self.confidence:.0%} confidence)."
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; every number is finite."""
        return {
            "claimed_epsilon": self.claimed_epsilon,
            "lower_bound_epsilon": self.lower_bound_epsilon,
            "delta": self.delta,
            "confidence": self.confidence,
            "holds": self.holds,
            "refuted": list(self.refuted),
            "headline": self.headline,
            "experiments": [{**asdict(row), "holds": row.holds} for row in self.rows],
            "seconds": round(self.seconds, 2),
        }

    def check(self) -> None:
        """Raises: AuditFailed, when a claim is refuted; it names the experiments."""
        if not self.holds:
            found = "; ".join(
                f"{row.name} ({row.tests}): at least {row.lower_bound_epsilon:.2f} where {row.claimed_epsilon:.2f} "
                "is claimed"
                for row in self.rows
                if not row.holds
            )
            raise AuditFailed(
                f"the audit refutes what is claimed of epsilon, with {self.confidence:.0%} confidence: {found}",
                allowed="lower bounds below the claims",
                do="let no round be answered by this installation, and report this",
            )
