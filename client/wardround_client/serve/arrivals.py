"""Which studies are new: what the PACS answers, when nothing more is added to them."""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from wardround_client.config import Serve
from wardround_client.intake.pacs.archive import UID, Recent
from wardround_client.intake.pacs.line import Line

log = logging.getLogger(__name__)

MOST_ASKED = 50_000
"""Studies that a PACS may answer with at once."""


@dataclass
class Arrivals:
    """By asking the PACS. known: whether a study needs no look. takes: whether a model is for its modalities."""

    line: Line
    settings: Serve
    known: Callable[[str], bool]
    takes: Callable[[tuple[str, ...]], bool]
    _seen: dict[str, tuple[str, float]] = field(default_factory=dict)

    def poll(self, most: int, today: dt.date | None = None) -> list[str]:
        """Ask -> UIDs of studies to which nothing was added for settle_s, at most so many.

        Raises: TroubleError.
        """
        now, today = time.monotonic(), today or dt.date.today()
        days = dt.timedelta(days=self.settings.days)
        # A day more: the clock of a modality may be ahead, and midnight is not the same everywhere.
        first, last = (f"{day:%Y%m%d}" for day in (today - days, today + dt.timedelta(days=1)))
        settled, seen = [], dict[str, tuple[str, float]]()
        for number, recent in enumerate(self.line.ask("recent", first, last)):
            if number >= MOST_ASKED:
                log.warning("the PACS answers with more than %d studies: the rest waits", MOST_ASKED)
                break
            if not self._counts(recent):
                continue
            changed, since = self._seen.get(recent.study, ("", now))
            seen[recent.study] = recent.changed, since if changed == recent.changed else now
            if now - seen[recent.study][1] >= self.settings.settle_s:
                settled.append(recent.study)
        self._seen = seen
        return settled[:most]

    def _counts(self, recent: Recent) -> bool:
        return bool(UID.fullmatch(recent.study)) and self.takes(recent.modalities) and not self.known(recent.study)

    @property
    def settling(self) -> bool:
        """Whether there are studies that are looked at later."""
        return bool(self._seen)
