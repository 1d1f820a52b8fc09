"""events.jsonl: one JSON object a line, on the disk before the next round begins.

A line that a kill or a full disk cut off becomes a blank one before the next is written, so that whoever reads on from
a byte finds what is there still at its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
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
        file = path.open("a+b", buffering=0)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})", do="check the disk") from None

    def tell(event: Event) -> None:
        try:
            _mend(path)  # not earlier: only now it is known that no other process writes
            line = event.line().encode() + b"\n"
            while line:
                line = line[file.write(line) :]
            os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})", do="make room, resume") from None

    with closing(file):
        yield tell


def _mend(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if not size or os.pread(file.fileno(), 1, size - 1) == b"\n":
            return
        whole = os.pread(file.fileno(), size, 0).rfind(b"\n") + 1
        os.pwrite(file.fileno(), b" " * (size - whole - 1) + b"\n", whole)
