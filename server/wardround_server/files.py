"""Files that are whole or not there, and folders that one process holds."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround.errors import FederationError, StorageError


class Held(FederationError):
    """Another process works in the folder."""


def write_atomically(path: Path, blob: bytes, *, mode: int = 0o644) -> None:
    """Replace a file in one step, durably. Raises: OSError; the previous file is then still whole."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)  # the rename itself lives in the folder
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def locked(folder: Path, *, otherwise: str, do: str, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a folder for this process (flock(2)); the system lets go when the process dies.

    Waits up to `patience_s` for another process to let go.

    Raises: Held, saying `otherwise` and `do`, when another process holds it; StorageError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})", do="check the disk") from None
    with lock:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > until:
                    raise Held(otherwise, do=do) from None
                time.sleep(0.1)
        yield
