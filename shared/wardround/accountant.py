"""What answers cost, and how much noise a price affords. Everything here is computed from public numbers.

A row is `Answers`: a noise multiplier, a Poisson sampling rate and how often, which is Opacus' own history format.

* Rate 1: a composition of Gaussian mechanisms IS one Gaussian mechanism, of sensitivity over noise
  mu = sqrt(sum count / noise_multiplier^2) (Dong, Roth and Su, "Gaussian differential privacy", 2022, corollary 3.3),
  and its epsilon at a delta is exact (Balle and Wang, "Improving the Gaussian mechanism", 2018, theorem 8). This is an
  equality. What under-reports, and is not used anywhere, is the central limit theorem that APPROXIMATES subsampled
  Gaussians by such a mu.
* Rate below 1: the upper bound of Opacus' PRV accountant (Gopi et al., "Numerical composition of differential privacy",
  2021). Where it fails, is not finite or would need an excessive grid, Opacus' RDP accountant, which is looser but
  never hangs. `epsilon_and_method` says which it was.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

from scipy.special import log_ndtr

from wardround.config import Privacy
from wardround.errors import ConfigError
from wardround.schedule import QUESTIONS, RoundPlan, Schedule

Method = Literal["gaussian", "prv", "rdp"]

LARGEST_PRV_GRID = 1 << 22  # points; about a second
_SLACK = 1e-6  # a run is calibrated a hair below its epsilon, so that re-adding the same rows never passes it
_SLACK_PRV = 2e-3  # PRV answers wobble by less than this between neighbouring counts
_TIGHT = 0.99  # a calibrated run spends at least this share of its epsilon
# Where a sampled calibration looks, and how often it may ask the accountants: the bound on its time. Less noise than
# the least is nobody's wish, and a run that would afford it gets the least.
_LEAST_SIGMA, _MOST_SIGMA, _MOST_PRICES = 0.01, 1e7, 60


@dataclass(frozen=True)
class Answers:
    """`count` answers of one kind: noise of noise_multiplier x sensitivity, patients sampled at sampling_rate."""

    noise_multiplier: float
    sampling_rate: float
    count: int

    def __post_init__(self) -> None:
        if not (self.noise_multiplier > 0 and math.isfinite(self.noise_multiplier)):
            raise ValueError(f"a noise multiplier of {self.noise_multiplier}")
        if not (0 < self.sampling_rate <= 1 and self.count >= 0):
            raise ValueError(f"{self.count} answers at sampling rate {self.sampling_rate}")


@dataclass(frozen=True)
class Calibration:
    """The rate at which training answers sample patients, and the noise multiplier of each question that a run asks.

    Each is of the sensitivity of what is asked: the cohort's own affair (`wardround.questions.Cohort`).
    """

    sampling_rate: float
    noise: Mapping[str, float] = field(hash=False)

    def noise_multiplier(self, question: str) -> float:
        """Of that question; infinite where the run never asks it."""
        return self.noise.get(question, math.inf)

    def least_noise(self) -> float:
        """The least noise multiplier that the run ever uses."""
        return min(self.noise.values(), default=math.inf)


def merged(rows: Iterable[Answers]) -> tuple[Answers, ...]:
    """The same answers, one row a kind, in a canonical order: equal histories get equal prices to the last bit."""
    counts: dict[tuple[float, float], int] = {}
    for row in rows:
        key = (row.noise_multiplier, row.sampling_rate)
        counts[key] = counts.get(key, 0) + row.count
    return tuple(Answers(*key, count) for key, count in sorted(counts.items()) if count)


def epsilon(rows: Iterable[Answers], delta: float) -> float:
    """The price of all rows together, at delta. Raises: ValueError, if delta is not in (0, 1)."""
    return epsilon_and_method(rows, delta)[0]


def epsilon_and_method(rows: Iterable[Answers], delta: float) -> tuple[float, Method]:
    """The price, and how it was computed: "gaussian" is exact, "prv" and "rdp" are upper bounds."""
    if not 0 < delta < 1:
        raise ValueError(f"a delta of {delta} is not in (0, 1)")
    return _price(merged(rows), delta)


@lru_cache(maxsize=65_536)
def _price(rows: tuple[Answers, ...], delta: float) -> tuple[float, Method]:
    if not rows:
        return 0.0, "gaussian"
    mu = gaussian_mu(rows)
    subsampled = [row for row in rows if row.sampling_rate < 1]
    if not subsampled:
        return gaussian_epsilon(mu, delta), "gaussian"
    history = [(row.noise_multiplier, row.sampling_rate, row.count) for row in subsampled]
    if mu:
        history.append((1 / mu, 1.0, 1))
    return _subsampled(history, delta)


def gaussian_mu(rows: Iterable[Answers]) -> float:
    """Sensitivity over noise of the one Gaussian that all rows of sampling rate 1 amount to."""
    return math.sqrt(math.fsum(row.count / row.noise_multiplier**2 for row in rows if row.sampling_rate == 1))


def gaussian_delta(mu: float, eps: float) -> float:
    """Balle and Wang 2018, theorem 8: the least delta of a Gaussian mechanism at eps >= 0."""
    upper = math.exp(log_ndtr(mu / 2 - eps / mu))
    return float(upper - math.exp(eps + log_ndtr(-mu / 2 - eps / mu)))


@lru_cache(maxsize=65_536)
def gaussian_epsilon(mu: float, delta: float) -> float:
    """The least epsilon of a Gaussian mechanism at delta, rounded up."""
    if mu == 0 or gaussian_delta(mu, 0.0) <= delta:
        return 0.0
    # Mironov 2017, proposition 3 with the best order: an upper end that is always valid.
    high = mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta))
    return _least(lambda eps: gaussian_delta(mu, eps) <= delta, 0.0, high)


def gaussian_mu_for(eps: float, delta: float) -> float:
    """The largest mu whose epsilon at delta is at most eps."""
    high = 1.0
    while gaussian_delta(high, eps) <= delta:
        high *= 2
    # Larger 1 / mu is more noise: the least inverse that keeps the promise.
    return 1 / _least(lambda inverse: gaussian_delta(1 / inverse, eps) <= delta, 1 / high, 1e12)


def _least(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The least x in [low, high] at which a monotone condition holds, from above, to a relative 1e-13."""
    for _ in range(200):
        middle = math.sqrt(low * high) if low > 0 and high / low > 4 else (low + high) / 2
        if holds(middle):
            high = middle
        else:
            low = middle
        if high - low <= 1e-13 * high:
            break
    return high


def _subsampled(history: list[tuple[float, float, int]], delta: float) -> tuple[float, Method]:
    """Opacus' accountants on its own history triples."""
    import numpy as np  # Opacus takes a second to import, and most runs never come here.
    from opacus.accountants import PRVAccountant, RDPAccountant
    from opacus.accountants.analysis.prv import PoissonSubsampledGaussianPRV

    # Quietly: rate 1 takes the logarithm of 0, and RDP warns where its best order is the last.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        rdp = RDPAccountant()
        rdp.history = list(history)
        try:
            loose = float(rdp.get_epsilon(delta))
        except (ValueError, OverflowError):  # its sums leave the floating point numbers
            loose = math.inf
        # PRV's error is absolute: a small epsilon needs a finer one, or the error would be most of the answer.
        error = min(0.01, max(0.005 * loose, 1e-4))
        prv = PRVAccountant()
        prv.history = list(history)
        try:
            domain = prv._get_domain(
                prvs=[PoissonSubsampledGaussianPRV(rate, sigma) for sigma, rate, _ in history],
                num_self_compositions=[count for _, _, count in history],
                eps_error=error,
                delta_error=delta / 1000,
            )
            if domain.size <= LARGEST_PRV_GRID:
                # Its bound is its error above the truth; where delta alone is enough, it may be below 0.
                tight = max(float(prv.get_epsilon(delta, eps_error=error)), error)
                if math.isfinite(tight) and tight <= loose:
                    return tight, "prv"
        except (RuntimeError, ValueError, OverflowError, FloatingPointError, IndexError):
            pass  # Opacus says that its grid does not carry this case; RDP does.
    if not math.isfinite(loose):
        raise ConfigError("an epsilon that no accountant can compute", do="ask for more noise or fewer rounds")
    return loose, "rdp"


@lru_cache(maxsize=4096)
def calibrate(schedule: Schedule, privacy: Privacy, *, declared_patients: int, delta: float) -> Calibration:
    """The noise of a whole run that costs at most privacy.epsilon at delta, and at least 0.99 of it.

    A question that does not train costs its share of epsilon, however often it is asked; the training gets what is left
    of the run's epsilon, by composition of everything. A sampled training that could do with less noise than
    _LEAST_SIGMA gets that, and the run costs less.

    Raises: ConfigError, when the shares leave nothing for the training, or no accountant can price what is asked.
    """
    rate, noise, steps = privacy.expected_patients(declared_patients) / declared_patients, {}, 0
    for name in schedule.questions:
        question, times = QUESTIONS[name], schedule.times(name)
        if question.trains:
            steps += times
        else:
            noise[name] = math.sqrt(times) / gaussian_mu_for(question.share(privacy) * privacy.epsilon, delta)
    fixed = [Answers(sigma, 1.0, schedule.times(name)) for name, sigma in noise.items()]
    # Which training question it is does not matter here: each is asked at its own sensitivity.
    training = _training_sigma(fixed, rate, steps, privacy.epsilon, delta)
    return Calibration(rate, {name: noise.get(name, training) for name in schedule.questions})


def _training_sigma(fixed: Sequence[Answers], rate: float, steps: int, eps: float, delta: float) -> float:
    """Noise multiplier of `steps` training answers beside the fixed ones; infinite for none. Raises: ConfigError."""
    if not steps:
        return math.inf
    if rate < 1:
        return _subsampled_sigma(fixed, rate, steps, eps, delta)
    left = gaussian_mu_for(eps * (1 - _SLACK), delta) ** 2 - gaussian_mu(fixed) ** 2
    if left <= 0:
        raise _nothing_left()
    return math.sqrt(steps / left)


def _subsampled_sigma(fixed: Sequence[Answers], rate: float, steps: int, eps: float, delta: float) -> float:
    """Noise multiplier of `steps` subsampled answers beside the fixed ones.

    Regula falsi on (log sigma, log epsilon), which is nearly a straight line; each evaluation is a PRV composition.
    """
    if epsilon(fixed, delta) >= _TIGHT * eps:
        raise _nothing_left()
    target = eps * (1 - _SLACK_PRV)

    least, most = math.log(_LEAST_SIGMA), math.log(_MOST_SIGMA)
    prices = 0

    def price(log_sigma: float) -> float:
        nonlocal prices
        prices += 1
        if prices > _MOST_PRICES or log_sigma > most:
            raise ConfigError(
                f"no noise was found at which {steps:,} answers of a sampling rate of {rate:.3g} cost epsilon {eps:g}",
                do="ask for fewer rounds or steps, or for more patients_per_step",
            )
        return epsilon([*fixed, Answers(math.exp(log_sigma), rate, steps)], delta)

    # Start where an unsampled Gaussian of rate x its signal would be; only a start, the accountant decides.
    guess = math.log(max(0.3, rate * math.sqrt(steps) / gaussian_mu_for(eps, delta)))
    low, high = guess, guess
    price_low = price_high = price(guess)
    while price_low < target:  # too little spent: less noise
        if low == least:
            return _LEAST_SIGMA
        low = max(least, low - 0.5)
        price_low = price(low)
    while price_high > target:
        high, price_high = high + 0.5, price(high + 0.5)
    for attempt in range(60):
        if price_high >= _TIGHT * eps + 0.5 * (target - _TIGHT * eps):
            break
        slope = (math.log(max(price_high, 1e-300)) - math.log(price_low)) / (high - low)
        middle = low + (math.log(target * 0.998) - math.log(price_low)) / slope
        if attempt % 3 == 2 or not low < middle < high:
            middle = (low + high) / 2
        price_middle = price(middle)
        if price_middle <= target:
            high, price_high = middle, price_middle
        else:
            low, price_low = middle, price_middle
    return math.exp(high)


def _nothing_left() -> ConfigError:
    return ConfigError(
        "privacy.statistics_share and privacy.evaluation_share leave nothing of epsilon for the training",
        do="lower the shares",
    )


def rows_for(calibration: Calibration, plan: RoundPlan) -> tuple[Answers, ...]:
    """What one round of the schedule costs: its ledger rows."""
    rate = calibration.sampling_rate if plan.trains else 1.0
    return (Answers(calibration.noise_multiplier(plan.question), rate, plan.times),)


def run_epsilon(calibration: Calibration, schedule: Schedule, upto_round: int, delta: float) -> float:
    """The price of a run's rounds 0 to upto_round, both included: public, and known before the run starts."""
    plans = schedule.rounds[: upto_round + 1]
    return epsilon([row for plan in plans for row in rows_for(calibration, plan)], delta)
