"""What all pages work on, and when they have changed."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from wardround.web.views import Site
from wardround_server.home import Home
from wardround_server.sinks.jsonl import FILE as EVENTS

ASK_S = 5.0
NAVIGATION = (("/", "Overview"), ("/hospitals", "Hospitals"))


class Desk:
    """One coordinator's home.

    Args:
        home: with a coordinator.toml.
        named: agreements that the command was given, beside the federation.toml of the home.
    """

    def __init__(self, home: Home, named: Sequence[Path] = ()) -> None:
        self.home = home
        address = home.config().address
        self.agreements = list(dict.fromkeys([home.folder / "federation.toml", *named]))
        self.site = Site(__package__, lambda: f"coordinator {address}", NAVIGATION, self._state)

    def runs(self) -> list[Path]:
        """Folders of runs, the newest first."""
        folders = [folder for folder in (self.home.folder / "runs").glob("*") if folder.is_dir()]
        return sorted(folders, key=_written, reverse=True)

    def _state(self) -> str:
        files = [self.home.folder / name for name in ("hospitals.json", "coordinator.toml", "up.json")]
        files += [*self.agreements, *(folder / EVENTS for folder in self.runs())]
        # Who is connected stands in no file: it is asked again now and then.
        return f"{self.site.written(files)} {time.monotonic() // ASK_S}"


def _written(folder: Path) -> float:
    try:
        return (folder / EVENTS).stat().st_mtime
    except OSError:
        return 0.0
