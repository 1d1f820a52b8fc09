"""What all pages work on, and when they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from wardround.web.views import Site
from wardround_client.cohort.index import QUARANTINE
from wardround_client.cohort.optout import REGISTER
from wardround_client.config import load_hospital_config
from wardround_client.hospital import Hospital
from wardround_client.office.offer import PROPOSED
from wardround_client.privacy.ledger import LEDGER
from wardround_client.service.control import PAUSED, REFUSAL, SOCKET

NAVIGATION = (
    ("/", "Overview"),
    ("/ledger", "Ledger"),
    ("/patients", "Opt-outs"),
    ("/intake", "Intake"),
    ("/audit", "Audit"),
    ("/home", "At home"),
)


class Desk:
    """What all pages work on: one home, opened anew for each request, so that nothing on a page is of yesterday.

    Args:
        home: the hospital's, which exists.
        named: agreements that the command was given, beside those in the home's folder `proposed`.
    """

    def __init__(self, home: Path, named: Sequence[Path] = ()) -> None:
        self.home, self.named = home, tuple(named)
        self.name = load_hospital_config(home / "hospital.toml").hospital.name
        self.site = Site(__package__, lambda: self.name, NAVIGATION, self._state)

    @contextmanager
    def opened(self) -> Iterator[Hospital]:
        """The hospital. Raises: ConfigError, StorageError."""
        hospital = Hospital.open(self.home)
        try:
            yield hospital
        finally:
            hospital.ledger.close()

    def _state(self) -> str:
        """When the files were written of which the pages tell, and what the daemon says of its link."""
        watched = (LEDGER, f"{LEDGER}-wal", PAUSED, REFUSAL, SOCKET, REGISTER, "hospital.toml", "approved", PROPOSED)
        files = [*(self.home / name for name in watched), self.home / "cohort" / QUARANTINE, *self.named]
        files += [self.home / name for name in ("predictions", "suggestions")]
        files += [*(self.home / PROPOSED).glob("*"), *(self.home / PROPOSED).glob("*/federation.toml")]
        return self.site.written(files)
