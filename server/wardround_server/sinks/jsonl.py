"""events.jsonl: one JSON object a line, on the disk before the next round begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wardround.errors import StorageError
from wardround_server.events import Event
from wardround_server.sinks import Tell

FILE = "events.jsonl"


@contextmanager
def sink(folder: Path, settings: Mapping[str, Any]) -> Iterator[Tell]:
    """Append to the run's events.jsonl. Raises: StorageError."""
    path = folder / FILE
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})", do="check the disk") from None

    def tell(event: Event) -> None:
        try:
            file.write(event.line() + "\n")
            file.flush()
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})", do="make room, resume") from None

    with file:
        yield tell
