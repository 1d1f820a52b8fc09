"""An independent price of a history of answers: Google's dp-accounting, both neighbours, from above and from below."""

from __future__ import annotations

import logging
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import dp_accounting
from dp_accounting.pld import privacy_loss_distribution as pld
from dp_accounting.rdp import RdpAccountant

from wardround.accountant import Answers


@dataclass(frozen=True)
class Price:
    """Epsilon at a delta. remove, add: from above, when one patient leaves or comes. below: a lower bound on the larger
    of the two. All are of privacy loss distributions; the first two by connecting the dots (Doroshenko et al., "Connect
    the dots: tighter discrete approximations of privacy loss distributions", 2022), which is nearly exact.
    """

    remove: float
    add: float
    below: float

    @property
    def above(self) -> float:
        """What a patient is promised: the worse of the two."""
        return max(self.remove, self.add)


def price(rows: Sequence[Answers], delta: float, *, about: float) -> Price:
    """The price of a history, with a grid that suits an epsilon of `about` so much."""
    steps = sum(row.count for row in rows)
    interval = max(2e-5, about * 1e-3 / math.sqrt(steps))
    above = _composed(rows, interval, pessimistic=True)
    below = _composed(rows, 8 * interval, pessimistic=False)  # a rougher grid: a lower bound, only lower
    return Price(
        remove=above._pmf_remove.get_epsilon_for_delta(delta),
        add=above._pmf_add.get_epsilon_for_delta(delta),
        below=below.get_epsilon_for_delta(delta),
    )


def _composed(rows: Sequence[Answers], interval: float, *, pessimistic: bool) -> pld.PrivacyLossDistribution:
    many = []
    for row in rows:
        one = pld.from_gaussian_mechanism(
            row.noise_multiplier,
            sampling_prob=row.sampling_rate,
            value_discretization_interval=interval,
            pessimistic_estimate=pessimistic,
            use_connect_dots=pessimistic,
        )
        many.append(one.self_compose(row.count))
    return reduce(pld.PrivacyLossDistribution.compose, many)


def rdp(rows: Sequence[Answers], delta: float) -> float:
    """The price by Renyi differential privacy: looser, and computed on quite another road."""
    accountant = RdpAccountant()
    for row in rows:
        event: dp_accounting.DpEvent = dp_accounting.GaussianDpEvent(row.noise_multiplier)
        if row.sampling_rate < 1:
            event = dp_accounting.PoissonSampledDpEvent(row.sampling_rate, event)
        accountant.compose(event, row.count)
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)  # an order whose series does not converge is left out, and that is said each time
    try:
        return float(accountant.get_epsilon(delta))
    finally:
        logger.setLevel(level)


@dataclass(frozen=True)
class History:
    """What a hospital's ledger might hold, and the delta at which it is priced. loose: its RDP price."""

    rows: tuple[Answers, ...]
    delta: float
    loose: float


def history(rng: random.Random) -> History:
    """A random one that costs from 0.05 to 20 or so: one mechanism, several, or whole runs of several federations."""
    while True:
        make = rng.choice([_one, _several, _runs, _runs, _unsampled])
        rows, delta = make(rng), 10 ** rng.uniform(-7, -3)
        loose = rdp(rows, delta)
        if 0.05 < loose < 22:
            return History(rows, delta, loose)


def _sampled(rng: random.Random) -> Answers:
    return Answers(
        math.exp(rng.uniform(-0.7, 2.3)), 10 ** rng.uniform(-3, -0.02), rng.choice([1, 3, 10, 50, 200, 1000])
    )


def _one(rng: random.Random) -> tuple[Answers, ...]:
    return (_sampled(rng),)


def _several(rng: random.Random) -> tuple[Answers, ...]:
    return tuple(_sampled(rng) for _ in range(rng.randint(2, 4)))


def _unsampled(rng: random.Random) -> tuple[Answers, ...]:
    return tuple(Answers(math.exp(rng.uniform(-0.3, 3)), 1.0, rng.randint(1, 30)) for _ in range(rng.randint(1, 3)))


def _runs(rng: random.Random) -> tuple[Answers, ...]:
    """Statistics, training and evaluations of up to three runs, in one ledger."""
    rows: list[Answers] = []
    for _ in range(rng.randint(1, 3)):
        rate = rng.choice([1.0, 10 ** rng.uniform(-2.5, -0.3)])
        steps = rng.choice([5, 20, 100, 400])
        sigma = max(0.6, rate * math.sqrt(steps) * rng.uniform(0.3, 2))
        rows += [
            Answers(math.exp(rng.uniform(1, 3)), 1.0, rng.randint(1, 2)),
            Answers(sigma, rate, steps),
            Answers(math.exp(rng.uniform(1.5, 3)), 1.0, rng.randint(1, 5)),
        ]
    return tuple(rows)
