"""How far this hospital's clock is from its coordinator's, by the Date header of every answer (RFC 9110, 6.6.1)."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

TOLERATED_S = 300.0  # further apart, and nobody works: a signature could be used again for so long
NOTED_S = 30.0  # from here on it is said; a slow line and whole seconds explain the rest
CORRECTED_S = 2.0


class Clock:
    """This machine's clock, and what is known of the coordinator's.

    Args:
        now: seconds since 1970.
        kept: whether this machine's clock is kept right by NTP; None where nobody can tell.
    """

    def __init__(self, now: Callable[[], float] = time.time, kept: Callable[[], bool | None] | None = None) -> None:
        self._now, self._kept = now, kept or kept_by_ntp
        self.ahead_s: float | None = None

    def hear(self, response: httpx.Response) -> None:
        """Compare the clocks at an answer. Never raises, whatever stands in it."""
        with suppress(ValueError, TypeError, OverflowError):
            told = parsedate_to_datetime(response.headers.get("date", "")).timestamp()
            self.ahead_s = self._now() - told - 0.5  # whole seconds, rounded down

    def for_signatures(self) -> datetime:
        """The time as the coordinator has it, where the two differ by no more than is tolerated; else this machine's.

        Flower takes signatures that are up to 305 s old, but only 5 s of the future.
        """
        shift_s = self.ahead_s or 0.0
        shift_s = shift_s if CORRECTED_S < abs(shift_s) <= TOLERATED_S else 0.0
        return datetime.fromtimestamp(self._now() - shift_s, UTC)

    def sentence(self) -> str:
        """How far the clocks are apart, and which is likely wrong; empty, where they agree or nothing is known."""
        if self.ahead_s is None or abs(self.ahead_s) < NOTED_S:
            return ""
        where = "ahead of" if self.ahead_s > 0 else "behind"
        kept = self._kept()
        blame = ""
        if kept is not None:
            blame = "; this one is kept by NTP" if kept else "; this one is not kept by NTP"
        return f"this hospital's clock is {span(self.ahead_s)} {where} the coordinator's{blame}"


def span(seconds: float) -> str:
    """A length of time for a person, two units at most: "4 min 10 s", "2 days"."""
    left, parts = round(abs(seconds)), list[str]()
    for unit, size in (("days", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {'day' if (unit, count) == ('days', 1) else unit}")
    return " ".join(parts[:2]) or "0 s"


def kept_by_ntp() -> bool | None:
    """Whether the kernel's clock is disciplined (adjtimex(2), Linux); None where it cannot be asked."""
    unsynchronised, status_offset = 0x0040, 40  # STA_UNSYNC; timex.status behind four longs and a padded int
    if ctypes.sizeof(ctypes.c_long) != 8:
        return None
    try:
        timex = ctypes.create_string_buffer(1024)
        if ctypes.CDLL(None, use_errno=True).adjtimex(timex) < 0:
            return None
    except (OSError, AttributeError):
        return None
    status = ctypes.c_int.from_buffer(timex, status_offset).value
    return not status & unsynchronised
