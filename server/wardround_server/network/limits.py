"""How much the coordinator takes, from whom, and how fast: every number of docs/coordinator-limits.md in one place.

A *stranger* is a connection on which nothing signed by a registered hospital has come yet; all others are known.
"""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from wardround.errors import StorageError
from wardround.files import private_folder, write_atomically

# Connections.
RESERVED_FILES = 192  # of the process's descriptors, for the database, logs, processes and what Python opens
NEW_A_SECOND, NEW_AT_ONCE = 100.0, 400.0  # handshakes of one address; what comes faster is shut at once
A_HOSPITAL = 16  # connections of one hospital; the oldest idle one goes first
HANDSHAKE_S = 5.0
HEAD_S = 10.0  # from the first byte of a request's head to its last
SILENT_STRANGER_S, SILENT_HOSPITAL_S = 10.0, 75.0  # without any request
LEAST_BYTES_A_SECOND, GRACE_S = 8_192, 15.0  # of a body, and of a hospital that reads what it asked for
HEAD_BYTES = 16_384
REQUESTS_OF_A_STRANGER = 20  # on one connection, all refused

# Requests of one hospital. An idle node makes 4.25 a second at most; a round adds about 10 and two for every 5 MB.
REQUESTS_A_SECOND, REQUESTS_AT_ONCE = 12.0, 90.0
LONGEST_WAIT_S = 2.0  # a request that is too early is held back so long, and then refused (429)
IN_PROGRESS = 4
FAREWELL_S = 10.0  # a hospital that goes waits so long for the runs to hear of its replies
SMALL_BYTES = 16_384  # a request's body, where nothing else is said
TREE_BYTES = 65_536  # of an announcement: the heads of a reply's parts


@dataclass(frozen=True)
class Connections:
    """Bounds on connections. all: known and strangers. strangers: in all. an_address: strangers of one address."""

    all: int = 512
    strangers: int = 256
    an_address: int = 64


def connections(wanted: Connections) -> Connections:
    """What of it this process has descriptors for, once its limit is as high as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard and hard != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        soft = hard
    most = max(16, min(wanted.all, soft - RESERVED_FILES, soft * 3 // 4))
    strangers = max(8, min(wanted.strangers, most // 2))
    return Connections(most, strangers, min(wanted.an_address, strangers))


class Bucket:
    """So many a second, so many at once (a token bucket)."""

    def __init__(self, a_second: float, at_once: float, now: float) -> None:
        self._a_second, self._at_once, self._left, self._seen = a_second, at_once, at_once, now

    def wait_s(self, now: float) -> float:
        """Take one; how long to wait for it. Negative: there is one already."""
        self._left = min(self._at_once, self._left + (now - self._seen) * self._a_second)
        self._seen, self._left = now, self._left - 1.0
        return -self._left / self._a_second

    def give_back(self) -> None:
        """One that was taken is not used."""
        self._left += 1.0

    def is_full(self, now: float) -> bool:
        """Whether nobody took one for so long that it need not be remembered."""
        return self._left + (now - self._seen) * self._a_second >= self._at_once


@contextmanager
def announced_run(home: Path, run_id: int, largest_reply: int) -> Iterator[None]:
    """Say, for as long as a run goes on, how long its hospitals' replies may be. Raises: StorageError."""
    path = _run_file(home, run_id)
    try:
        private_folder(path.parent)
        write_atomically(path, json.dumps({"largest_reply": largest_reply}).encode())
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})", do="check the disk") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def largest_reply(home: Path, run_id: int) -> int | None:
    """Bytes of the longest reply in this run; None, when no such run goes on."""
    try:
        return int(json.loads(_run_file(home, run_id).read_bytes())["largest_reply"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def largest_replies(home: Path) -> int:
    """Bytes of the longest reply in any run that goes on; 0 without one."""
    return max(
        (largest_reply(home, int(file.stem)) or 0 for file in _run_file(home, 0).parent.glob("*.json")), default=0
    )


def forget_runs(home: Path) -> None:
    """No run goes on: the coordinator has just come up."""
    for file in _run_file(home, 0).parent.glob("*.json"):
        file.unlink(missing_ok=True)


def _run_file(home: Path, run_id: int) -> Path:
    return home / "going-on" / f"{run_id}.json"
