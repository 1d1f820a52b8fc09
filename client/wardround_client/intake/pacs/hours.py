"""Hours of the day in which a PACS may be asked."""

from __future__ import annotations

import datetime as dt


def within(hours: str, now: dt.time) -> bool:
    """Whether the clock shows a time in HH:MM-HH:MM, which may go over midnight; "" is the whole day."""
    if not hours:
        return True
    start, end = (dt.time.fromisoformat(each) for each in hours.split("-"))
    return start <= now < end if start < end else now >= start or now < end
