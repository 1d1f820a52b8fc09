"""Files that are whole or not there, private to their owner whatever the umask; locks; errors of the disk in words."""

from __future__ import annotations

import errno
import fcntl
import logging.handlers
import os
import shutil
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from pathlib import Path
from typing import BinaryIO

from wardround.errors import FederationError, StorageError, WardroundError


class Held(FederationError):
    """Another process works in the folder."""


def open_regular(path: Path, limit_bytes: int) -> BinaryIO:
    """Open a regular file for reading; nothing else opens so.

    A FIFO would wait for ever, a device never ends, and a link to either is either (open(2), O_NONBLOCK).

    Raises: OSError: missing, unreadable, not a regular file (EINVAL), or larger than the limit (EFBIG).
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
    found = os.fstat(file.fileno())
    if stat.S_ISREG(found.st_mode) and found.st_size <= limit_bytes:
        return file
    file.close()
    if stat.S_ISREG(found.st_mode):
        raise OSError(errno.EFBIG, f"larger than {limit_bytes:,} bytes", str(path))
    raise OSError(errno.EINVAL, "not a regular file", str(path))


def read_bounded(path: Path, limit_bytes: int) -> bytes:
    """A regular file's bytes, read once. Raises: OSError, as `open_regular`."""
    with open_regular(path, limit_bytes) as file:
        data = file.read(limit_bytes + 1)  # it may have grown, and some files of the system say that they are empty
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


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, also while another process removes it too, or still writes into it.

    Nothing is done where there is none. Raises: OSError.
    """
    tries = 100
    while os.path.lexists(folder):
        try:
            shutil.rmtree(folder)
        except OSError as error:  # it stops at the first file that went before it, or came after it looked
            tries -= 1
            if not tries or error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise


class PrivateLog(logging.handlers.RotatingFileHandler):
    """A log that only its owner can read, also each new file of a rotation, whatever the umask says."""

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        os.fchmod(stream.fileno(), 0o600)
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """A full disk costs lines of the log, and shows nobody a traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


@contextmanager
def replacing(path: Path, *, mode: int = 0o600, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """A file to write in, which replaces `path` in one step, durably, when the block ends without an error.

    Args:
        path: the file.
        mode: of the file, whatever the umask says.
        scratch: where it is written first, in the same folder. By default a name of this process; under a lock a
            fixed name is better, of which a crash leaves no second.

    Raises: OSError; the previous file is then still whole.
    """
    scratch = scratch or path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomically(path: Path, blob: bytes, *, mode: int = 0o600, scratch: Path | None = None) -> None:
    """Replace a file by these bytes; everything else as `replacing`. Raises: OSError."""
    with replacing(path, mode=mode, scratch=scratch) as file:
        file.write(blob)


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
def locked(file: Path, *, busy: WardroundError | None, patience_s: float = 0.0) -> Iterator[None]:
    """Hold a file for this process (flock(2)); the system lets go when the process dies.

    Args:
        file: made when it is absent, with its folder, for its owner alone.
        busy: raised where another process holds it for longer than `patience_s`; None waits as long as it takes.
        patience_s: how long to wait for another process to let go.

    Raises: `busy`; StorageError, when the file cannot be made.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise cannot_write(file, error) from None
    try:
        until = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
                break
            except BlockingIOError:
                if busy and time.monotonic() > until:
                    raise busy from None
                time.sleep(0.1)
        yield
    finally:
        os.close(lock)


def cannot_write(path: Path, error: OSError, do: str = "run the same command again") -> StorageError:
    """What the disk said, and what a person does about that; `do` says what comes after."""
    return StorageError(f"{path}: cannot be written ({error.strerror or error})", do=f"{remedy(error)}, then {do}")


def remedy(error: OSError) -> str:
    """What a person does about an error of the disk."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "make room on the disk"
        case errno.EROFS:
            return "make the file system writable, or choose another folder"
        case errno.EACCES | errno.EPERM:
            return "correct the owner and the permissions"
        case errno.ENOENT | errno.ENOTDIR | errno.EEXIST | errno.EISDIR:
            return "correct the path"
        case _:
            return "check the disk"
