"""Files that are whole or not there, private to their owner whatever the umask, and folders that one process holds."""

from __future__ import annotations

import errno
import fcntl
import logging.handlers
import os
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path

from wardround.errors import FederationError, StorageError


class Held(FederationError):
    """Another process works in the folder."""


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """A regular file's bytes, read once; nothing else can be read so.

    A FIFO would wait for ever, a device never ends, and a link to either is either (open(2), O_NONBLOCK).

    Raises: OSError: missing, unreadable, no regular file (EINVAL), or larger than the limit (EFBIG).
    """
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        data = file.read(limit_bytes + 1)
    if len(data) > limit_bytes:
        raise OSError(errno.EFBIG, f"larger than {limit_bytes:,} bytes", str(path))
    return data


def private_folder(folder: Path) -> None:
    """Make a folder, if it is not there, and shut it to others (0700) whatever the umask says. Raises: OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)


def shut(home: Path) -> list[str]:
    """Take from others what they may do in a home, in all of it -> what was open, relative to the home.

    Links are left alone, and what somebody else owns cannot be mended: it is named too.
    """
    opened = []
    for folder, folders, files in os.walk(home):
        for path in (Path(folder), *(Path(folder, name) for name in (*folders, *files))):
            with suppress(FileNotFoundError):
                mode = path.lstat().st_mode
                if stat.S_ISLNK(mode) or not mode & 0o077:
                    continue
                opened.append(str(path.relative_to(home)))
                with suppress(PermissionError):
                    path.chmod(stat.S_IMODE(mode) & 0o700)
    return opened


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that only its owner can read, also each new file of a rotation, whatever the umask says."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream


def write_atomically(path: Path, blob: bytes, *, mode: int = 0o600, scratch: Path | None = None) -> None:
    """Replace a file in one step, durably.

    Args:
        path: the file.
        blob: what it shall hold.
        mode: of the file, whatever the umask says.
        scratch: where it is written first, in the same folder. By default a name of this process; whoever writes under
            a lock can give it a fixed one, of which a crash leaves no second.

    Raises: OSError; the previous file is then still whole.
    """
    scratch = scratch or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except OSError:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def room_on_disk(folder: Path, wanted_bytes: int = 65_536) -> bool:
    """Whether a file of so many bytes can be written there; found by writing one, for quotas are full disks too."""
    scratch = folder / f".room.{os.getpid()}.tmp"
    try:
        write_atomically(scratch, b"\xff" * wanted_bytes)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    else:
        return True
    finally:
        scratch.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Force a folder to the disk: a new name in it, or a rename, then survives a power cut. Raises: OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
