"""The figures of docs/privacy.md: what the example's run costs St. Anna, and what it can tell about one patient.

    python benchmarks/privacy_example.py

Everybody is in each step of the example, so the whole run is one Gaussian mechanism of sensitivity over noise mu, and
its trade-off curve is exact (Dong, Roth and Su, "Gaussian differential privacy", 2022, section 2.3): whoever may accuse
a share alpha of the others wrongly finds at most Phi(Phi^-1(alpha) + mu) of the members, and the privacy loss of a
member is N(mu^2 / 2, mu^2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import norm

from wardround import accountant
from wardround.config import Federation
from wardround.models import build_model
from wardround.schedule import Schedule
from wardround.toml import loads
from wardround.wire import reply_bytes
from wardround_server.home import FEDERATION_TOML
from wardround_simulation.federation import changed
from wardround_simulation.membership.roc import gaussian_tpr

DECLARED = 400
DELTA = 1 / (10 * DECLARED + 1)
EPSILON = 3.0
BUDGET = 8.0
FALSE_ACCUSATIONS = 1e-3


@dataclass(frozen=True)
class Curve:
    """What an attacker can do at most against a Gaussian mechanism of sensitivity over noise mu."""

    mu: float

    @property
    def coin_flip(self) -> float:
        """How often a guess about a coin flip, in or out, is right."""
        return float(norm.cdf(self.mu / 2))

    @property
    def found(self) -> float:
        """The share of members that is found with FALSE_ACCUSATIONS."""
        return gaussian_tpr(self.mu, FALSE_ACCUSATIONS)

    def grows(self, factor: float, *, member: bool = True) -> float:
        """The share of members (or others) whose odds grow by more than this factor."""
        mean = self.mu**2 / 2 if member else -(self.mu**2) / 2
        return float(norm.sf((math.log(factor) - mean) / self.mu))


def example() -> tuple[Federation, Schedule, accountant.Calibration]:
    """The coordinator's own example agreement at epsilon 3, at a hospital of 400 declared patients."""
    federation = changed(loads(FEDERATION_TOML, Federation, name="federation.toml"), privacy={"epsilon": EPSILON})
    schedule = Schedule.of(federation)
    calibration = accountant.calibrate(schedule, federation.privacy, declared_patients=DECLARED, delta=DELTA)
    return federation, schedule, calibration


def posterior(prior: float, log_factor: float) -> float:
    """The belief of someone at `prior` whose odds are multiplied by exp(log_factor)."""
    odds = prior / (1 - prior) * math.exp(log_factor)
    return odds / (1 + odds)


def figures() -> dict[str, str]:
    """What is said -> how docs/privacy.md writes it."""
    federation, schedule, calibration = example()
    model = build_model(federation, Path())
    rows = [row for plan in schedule.rounds for row in accountant.rows_for(calibration, plan)]
    mu = accountant.gaussian_mu(rows)
    curve = Curve(mu)
    told = {
        "digest": federation.digest,
        "noise on the screen": f"statistics {calibration.noise_multiplier('statistics'):.4g}, "
        f"gradient {calibration.noise_multiplier('gradient'):.4g}",
        "delta": f"delta {DELTA:.4g}",
        "rounds": f"{len(schedule)} replies",
        "noise multiplier of the statistics": f"{calibration.noise_multiplier('statistics'):.2f}",
        "noise multiplier of a gradient": f"{calibration.noise_multiplier('gradient'):.2f}",
        "sensitivity over noise": f"{mu:.3f}",
        "epsilon of the first round": f"{accountant.epsilon(rows[:1], DELTA):.2f}",
        "at worst, from 1 %": f"{posterior(0.01, EPSILON):.1%}".replace("%", " %"),
        "at worst, from 50 %": f"{posterior(0.5, EPSILON):.1%}".replace("%", " %"),
        "worse than the worst, of 10,000": f"{1e4 * curve.grows(math.exp(EPSILON)):.0f} in 10,000",
        "in the middle, from 1 %": f"{posterior(0.01, mu**2 / 2):.1%}".replace("%", " %"),
        "odds doubled, members": f"{curve.grows(2):.0%}".replace("%", " %"),
        "odds doubled, others": f"{curve.grows(2, member=False):.0%}".replace("%", " %"),
        "odds tenfold, members": f"{curve.grows(10):.1%}".replace("%", " %"),
        "found, of 1,000": f"finds {1000 * curve.found:.0f} of 1,000",
        "which of two records": f"{Curve(2 * mu).coin_flip:.1%}".replace("%", " %"),
        "which of two records, epsilon": f"epsilon {accountant.gaussian_epsilon(2 * mu, DELTA):.1f}",
    }
    before = 4 * rows
    fifth = sum(accountant.epsilon([*before, *rows[: number + 1]], DELTA) <= BUDGET for number in range(len(rows)))
    told["rounds of a fifth run"] = f"first {fifth} of its 41 rounds"
    told["bytes that leave"] = f"{sum(map(reply_bytes, schedule.answer_sizes(federation, model))):,} bytes"
    for runs in (2, 3, 4, 5):
        told[f"epsilon of {runs} runs"] = f"{accountant.gaussian_epsilon(mu * math.sqrt(runs), DELTA):.2f}"
    for eps in (1, 3, 8):
        curve = Curve(accountant.gaussian_mu_for(eps, DELTA))
        found = 1000 * curve.found
        told[f"row of epsilon {eps}"] = (
            f"| {eps} | {curve.coin_flip:.1%} | {found:.0f} | {curve.grows(2):.0%} |".replace("%", " %")
        )
    return told


def main() -> None:
    """Print them."""
    for name, value in figures().items():
        print(f"{name:36} {value}")


if __name__ == "__main__":
    main()
