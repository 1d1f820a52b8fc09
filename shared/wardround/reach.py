"""How long an answer of the mechanism can be: a high quantile of what honest hospitals send, from public numbers alone.

A sum over patients, each clipped, has a length; the noise that is added has a known law. What is longer than both
together allow, no honest hospital sends, but for once in 10^9 answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LOG_RARE = 22.0
"""Each of the three tails that a bound adds up is passed with probability e^-22 at most."""
ROUNDING = 1e-3
"""What float32 may add to a length: a delta is a difference of parameters, which may be far longer than it is."""
EXCESS = 1.5
"""An honest hospital has at most so many times the patients that it declares."""


@dataclass(frozen=True)
class Reach:
    """An answer without its noise is at most `signal` long; each of its numbers bears noise of deviation `noise`."""

    signal: float
    noise: float

    @classmethod
    def of_sample(cls, clip_norm: float, noise_multiplier: float, *, declared: int, expected: int) -> Reach:
        """Of a gradient: a sum over a Poisson sample of clipped vectors, divided by the patients expected in it.

        Bernstein's inequality bounds a sample of the patients, who are EXCESS x declared at most.
        """
        patients, rate = EXCESS * declared, expected / declared
        tail = LOG_RARE / 3 + math.sqrt(LOG_RARE**2 / 9 + 2 * LOG_RARE * patients * rate * (1 - rate))
        sampled = min(patients, patients * rate + tail)
        return cls(clip_norm * sampled / expected, clip_norm * noise_multiplier / expected)

    def sum(self, factors: Sequence[float], size: int) -> float:
        """The greatest length of sum_i factors_i answer_i, `size` numbers each, where each may depend on those before.

        Noise of deviation s is s (sqrt size + sqrt(2 t)) long at most, but for e^-t (concentration of a Lipschitz
        function of Gaussians). A signal that follows from earlier answers may point along THEIR noise, so over several
        answers lengths add up; within one, the noise knows nothing of the signal, and they are nearly at right angles.
        """
        tail = math.sqrt(2 * (LOG_RARE + math.log(len(factors))))
        noise = self.noise * (math.sqrt(size) + tail)
        once = math.sqrt(self.signal**2 + 2 * tail * self.signal * self.noise + noise**2)
        lengths, squares = math.fsum(map(abs, factors)), math.sqrt(math.fsum(each * each for each in factors))
        return (1 + ROUNDING) * min(lengths * once, lengths * self.signal + squares * noise)

    def number(self, size: int) -> float:
        """The greatest absolute value among the `size` numbers of one answer."""
        return (1 + ROUNDING) * (self.signal + self.noise * math.sqrt(2 * (LOG_RARE + math.log(2 * size))))


Part = tuple[int, float]
"""Numbers that stand together in an answer, and their greatest length."""
