"""run.log in the run's folder: what happened, in words, with what this process warns of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround.files import PrivateLog
from wardround.logs import OneLine
from wardround_server.events import Event
from wardround_server.sinks import Tell
from wardround_server.words import in_words

FILE, LONGEST = "run.log", 10_000_000


@contextmanager
def sink(folder: Path, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Write to run.log; a disk that is full costs lines of it and nothing else."""
    handler = PrivateLog(folder / FILE, maxBytes=LONGEST, backupCount=1, delay=True)
    handler.setFormatter(OneLine())
    words = logging.Logger("run")  # no part of the tree, so that only run.log has them
    words.addHandler(handler)
    warnings = logging.getLogger("wardround_server")
    warnings.addHandler(handler)

    def tell(event: Event) -> None:
        for line in in_words(event):
            words.info("%s", line)

    try:
        yield tell
    finally:
        warnings.removeHandler(handler)
        handler.close()
