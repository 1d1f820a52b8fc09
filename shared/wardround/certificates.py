"""When certificates end, and saying so in time: 30 days, 7 days and a day before, once each."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from cryptography import x509

WARN_DAYS = (30, 7, 1, -1)  # the last: it has ended


def ends_of(pem: bytes) -> list[datetime]:
    """When each certificate of a PEM file ends. Raises: ValueError, when it holds none."""
    return [certificate.not_valid_after_utc for certificate in x509.load_pem_x509_certificates(pem)]


def days_left(end: datetime, at: datetime | None = None) -> int:
    """Whole days until then; negative, once it is over."""
    return (end - (at or datetime.now(UTC))).days


def until(end: datetime, at: datetime | None = None) -> str:
    """For a person: "2027-03-01, in 30 days"."""
    days = days_left(end, at)
    how = f"ENDED, {-days - 1} full days ago" if days < 0 else f"in {days} days"
    return f"{end:%Y-%m-%d}, {how}"


class Countdown:
    """What has to be said now of some ends, and was not said before."""

    def __init__(self) -> None:
        self._said: dict[tuple[str, datetime], int] = {}

    def due(self, ends: Mapping[str, datetime], at: datetime | None = None) -> list[str]:
        """A sentence for each end that came nearer than the next of WARN_DAYS since the last call."""
        lines = []
        for name, end in ends.items():
            passed = [days for days in WARN_DAYS if days_left(end, at) <= days]
            if passed and min(passed) < self._said.get((name, end), max(WARN_DAYS) + 1):
                self._said[name, end] = min(passed)
                lines.append(f"{name} ends on {until(end, at)}")
        return lines
