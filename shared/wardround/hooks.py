"""Notices to a command of the site's own: each once, and nothing that the command does reaches the daemon.

The command comes from the site's settings alone, is run without a shell, and finds a JSON object on its standard input.
It has a minimal environment, a process group of its own, and so many seconds and bytes of output, after which the group
is killed; what it left behind in its group is killed when it ends. A process that leaves the group by setsid(2)
outlives it: a command that means to do so is the site's own.

Who makes up new agreements or runs all the time makes MOST_AN_HOUR notices of them and no more.

A notice is marked on the disk before its command starts, and as done when that ends with 0. A command that fails is
run again when the daemon finds the same state of things again, three times in all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import queue
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from wardround.files import read_bounded, write_atomically
from wardround.text import shown

FILE = "notified.json"
MOST_ATTEMPTS, MOST_WAITING, MOST_REMEMBERED, MOST_AN_HOUR = 3, 100, 2000, 100
OUTPUT_BYTES, LAST_S = 65_536, 2.0
_DONE = "done"
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
_LOOK_S = 0.05
log = logging.getLogger(__name__)

Public = str | int | float


class Hook:
    """The command, as a context manager around a daemon's life. Nothing of it raises.

    Args:
        command: program (an absolute path) and arguments; empty: every notice is dropped.
        timeout_s: how long it may take.
        home: where FILE remembers what was told.
        sender: fields of every notice: who tells.
    """

    def __init__(self, command: Sequence[str], timeout_s: float, home: Path, sender: Mapping[str, Public]) -> None:
        self._command, self._timeout_s, self._sender = tuple(command), timeout_s, dict(sender)
        self._memory = _Memory(home / FILE)
        self._waiting: queue.Queue[tuple[str, bytes] | None] = queue.Queue(MOST_WAITING)
        self._begun: deque[float] = deque(maxlen=MOST_AN_HOUR)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="hook", daemon=True)

    def __enter__(self) -> Self:
        if self._command:
            self._thread.start()
            command = hashlib.sha256(json.dumps(self._command).encode()).hexdigest()[:16]
            self.tell("hook-set-up", command)  # so that whoever sets it up sees it work
        return self

    def __exit__(self, *_: object) -> None:
        if self._command:
            self._stop.set()
            with contextlib.suppress(queue.Full):
                self._waiting.put_nowait(None)
            self._thread.join(2 * LAST_S)

    @property
    def wanted(self) -> bool:
        """Whether there is a command."""
        return bool(self._command)

    def tell(self, event: str, key: str, /, **fields: Public) -> None:
        """Have the command told, unless it was told before; returns at once.

        Args:
            event: what kind of thing happened.
            key: which one it was, among those of its kind.
            fields: what else is told; texts are shown as text from outside is.
        """
        known = f"{event} {shown(key)}"
        if not self._command or not self._memory.wants(known):
            return
        told = {name: shown(value) if isinstance(value, str) else value for name, value in fields.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line = json.dumps({"event": event, "time": now, **self._sender, **told}) + "\n"
        try:
            self._waiting.put_nowait((known, line.encode()))
        except queue.Full:  # it is told when it is found again
            log.warning("the hook is %d notices behind: %s is left out for now", MOST_WAITING, known)

    def _work(self) -> None:
        for known, line in iter(self._waiting.get, None):
            if self._stop.is_set():
                return
            try:
                if len(self._begun) == MOST_AN_HOUR and time.monotonic() - self._begun[0] < 3600:
                    log.warning(
                        "the hook was told %d times within an hour: %s is left out for now", MOST_AN_HOUR, known
                    )
                elif self._memory.begins(known):
                    self._begun.append(time.monotonic())
                    self._run(known, line)
            except Exception:  # whatever it is, the daemon goes on, and so do later notices
                log.exception("the hook could not be told of %s", known)

    def _run(self, known: str, line: bytes) -> None:
        wrong = run_bounded(self._command, line, self._timeout_s, self._stop)
        if wrong:
            log.warning("the hook failed at %s: %s", known, wrong)
        else:
            self._memory.ended(known)


class _Memory:
    """What was told: notice -> how often it was tried, or that it is done."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._known: dict[str, int | str] = {}
        with contextlib.suppress(OSError, ValueError, RecursionError):
            read = json.loads(read_bounded(path, 1 << 20))
            if isinstance(read, dict):
                self._known = {key: value for key, value in read.items() if isinstance(value, int) or value == _DONE}

    def wants(self, known: str) -> bool:
        with self._lock:
            tried = self._known.get(known, 0)
            return isinstance(tried, int) and tried < MOST_ATTEMPTS

    def begins(self, known: str) -> bool:
        """Mark another attempt -> whether there is to be one: two of the same may have waited together."""
        if not self.wants(known):
            return False
        with self._lock:
            tried = self._known.pop(known, 0)
            self._keep(known, int(tried) + 1)
        return True

    def ended(self, known: str) -> None:
        with self._lock:
            self._known.pop(known, None)
            self._keep(known, _DONE)

    def _keep(self, known: str, value: int | str) -> None:
        self._known[known] = value  # the newest are last
        for oldest in list(self._known)[:-MOST_REMEMBERED]:
            del self._known[oldest]
        try:
            write_atomically(self._path, json.dumps(self._known).encode())
        except OSError as error:  # a restart then tells it again
            log.warning("%s cannot be written (%s)", self._path, error.strerror)


def run_bounded(command: Sequence[str], given: bytes, timeout_s: float, stop: threading.Event) -> str:
    """Run a command on these bytes, which fit a pipe -> what went wrong, in words; "" when it ended with 0.

    `stop` gives it LAST_S more.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=_ENVIRONMENT,
            cwd="/",
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        return f"it cannot be started ({shown(error)})"
    assert process.stdin is not None and process.stdout is not None
    with process.stdout as output:
        try:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(given)
            said, wrong = _watched(process, output.fileno(), timeout_s, stop)
        finally:
            _kill_group(process)
    if not wrong and process.returncode:
        wrong = f"it ended with {process.returncode}"
    words = shown(said.decode(errors="replace").strip())
    return f"{wrong} ({words})" if wrong and words else wrong


def _watched(
    process: subprocess.Popen[bytes], output: int, timeout_s: float, stop: threading.Event
) -> tuple[bytes, str]:
    """Wait for its end within the bounds -> (the end of its output, what it did wrong)."""
    until, said, size = time.monotonic() + timeout_s, b"", 0
    os.set_blocking(output, False)
    with selectors.DefaultSelector() as selector:
        selector.register(output, selectors.EVENT_READ)
        while True:
            # Not reaped yet: its number, and its group's, stay its own until the group is killed.
            ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
            if selector.select(0 if ended else _LOOK_S):
                with contextlib.suppress(BlockingIOError):
                    block = os.read(output, OUTPUT_BYTES)
                    size += len(block)
                    said = (said + block)[-1000:]
                    if not block:  # nobody holds the other end, and the command may go on
                        selector.unregister(output)
            if ended:
                return said, ""
            if size > OUTPUT_BYTES:
                return said, f"it wrote more than {OUTPUT_BYTES:,} bytes and was killed"
            if stop.is_set():
                until, stop = min(until, time.monotonic() + LAST_S), threading.Event()
            if time.monotonic() > until:
                return said, f"it took longer than {timeout_s:g} s and was killed"


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(LAST_S)
    except subprocess.TimeoutExpired:  # in the kernel's hands, such as a file system that does not answer
        log.warning("process %d of the hook does not die", process.pid)
