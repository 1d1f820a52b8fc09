"""No reply is longer than an honest one can be: what is longer is cut, and what is no reply at all is refused."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wardround.accountant import Calibration, calibrate
from wardround.config import Federation
from wardround.errors import MessageError
from wardround.models import Model
from wardround.reach import Part
from wardround.schedule import QUESTIONS, RoundPlan, Schedule
from wardround.wire import RoundReply

BEYOND = 10.0
"""A reply so many times too long is damaged, or means harm: nothing that an honest hospital computed is left in it."""


class Bounds:
    """The greatest lengths of one run's replies.

    Args:
        federation: the agreement; its schedule and privacy are what every hospital calibrates its noise by.
        schedule: the agreement's.
        model: with what the algorithm learns beside it.
        deltas: of hospitals whose card names one; others use the usual one, just below 1 / (10 declared patients).
    """

    def __init__(
        self, federation: Federation, schedule: Schedule, model: Model, deltas: Mapping[str, float] | None = None
    ) -> None:
        self._federation, self._schedule, self._model, self._deltas = federation, schedule, model, deltas or {}
        self._known: dict[tuple[int, float], Calibration] = {}

    def calibration(self, hospital: str, declared_patients: int) -> Calibration:
        """The noise of an honest hospital: seconds the first time, if patients are sampled. Raises: ConfigError."""
        key = declared_patients, self._deltas.get(hospital) or 1 / (10 * declared_patients + 1)
        if key not in self._known:
            declared, delta = key
            self._known[key] = calibrate(
                self._schedule, self._federation.privacy, declared_patients=declared, delta=delta
            )
        return self._known[key]

    def parts(self, plan: RoundPlan, hospital: str, declared_patients: int) -> tuple[Part, ...]:
        """Parts of an answer, in their order, with the greatest length of each. Raises: ConfigError."""
        noise = self.calibration(hospital, declared_patients).noise_multiplier(plan.question)
        return QUESTIONS[plan.question].longest(
            self._federation, self._model, noise_multiplier=noise, declared_patients=declared_patients
        )

    def cut(self, plan: RoundPlan, reply: RoundReply) -> tuple[RoundReply, float]:
        """The reply with no part longer than it can be, and the least factor that a part was multiplied by.

        An honest hospital is cut when it has far more patients, or makes more noise, than it said: its direction stays.

        Raises: MessageError, for a part more than BEYOND times too long; ConfigError.
        """
        header, answer, start, least = reply.header, reply.answer.astype(np.float64), 0, 1.0
        for size, longest in self.parts(plan, header.hospital, header.declared_patients):
            part = answer[start : start + size]
            norm = float(np.linalg.norm(part))
            if norm > BEYOND * longest:
                raise MessageError(
                    f"an answer of length {norm:.3g}",
                    allowed=f"at most {longest:.3g}, from public numbers",
                    do="see that the hospital runs what was agreed, with about the patients that it declares",
                )
            if norm > longest:
                part *= longest / norm
                least = min(least, longest / norm)
            start += size
        return (reply, 1.0) if least == 1.0 else (RoundReply(header, answer.astype(np.float32)), least)
