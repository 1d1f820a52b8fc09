"""What all pages work on, and when they have changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

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


T = TypeVar("T")


class Desk:
    """What all pages work on: one home, opened anew for each request, so that nothing on a page is of yesterday.

    Args:
        home: the hospital's, which exists.
        named: agreements that the command was given, beside those in the home's folder `proposed`.
    """

    def __init__(self, home: Path, named: Sequence[Path] = ()) -> None:
        self.home, self.named = home, tuple(named)
        self.name = load_hospital_config(home / "hospital.toml").hospital.name
        self._kept: dict[type, object] = {}
        self.site = Site(__package__, lambda: self.name, NAVIGATION, self._state)

    @contextmanager
    def opened(self) -> Iterator[Hospital]:
        """The hospital. Raises: ConfigError, StorageError."""
        hospital = Hospital.open(self.home)
        try:
            yield hospital
        finally:
            hospital.ledger.close()

    def keep(self, what: object) -> None:
        """Keep one thing of its kind in memory, for as long as the command runs."""
        self._kept[type(what)] = what

    def kept(self, kind: type[T]) -> T:
        """What was kept last; an empty one, where nothing was."""
        found = self._kept.get(kind)
        return found if isinstance(found, kind) else kind()

    def _state(self) -> str:
        """When the files were written of which the pages tell, and what the daemon says of its link."""
        watched = (LEDGER, f"{LEDGER}-wal", PAUSED, REFUSAL, SOCKET, REGISTER, "hospital.toml", "approved", PROPOSED)
        files = [*(self.home / name for name in watched), self.home / "cohort" / QUARANTINE, *self.named]
        files += [self.home / name for name in ("predictions", "suggestions")]
        files += [*(self.home / PROPOSED).glob("*"), *(self.home / PROPOSED).glob("*/federation.toml")]
        return repr([[_written(file) for file in files], [str(each) for each in self._kept.values()]])


def _written(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
