"""Real `wardround` processes for the stories: started, awaited by what they print, and always ended."""

from __future__ import annotations

import io
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

from tests.story import zygote

from wardround import cli

COMMAND = [str(Path(sys.executable).with_name("wardround"))]
"""The installed program: for what proves starts, ends, kills and limits."""
LIMIT_S = 600.0
"""Ends a test that hangs; no promise is about it, and a busy machine may take a while."""


def environment() -> dict[str, str]:
    """This process's environment with one thread a process and no telemetry."""
    return os.environ | {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}


@cache
def forked() -> str:
    """A program that is `wardround` without its imports, for what is there for something else to be tried on it."""
    return zygote.launcher(environment())


def wardround(*arguments: object, expect: int = 0) -> str:
    """Run a command to its end and return what it printed. Asserts its exit code, and that no traceback was shown."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=environment(),
        timeout=LIMIT_S,
        check=False,
    )
    shown = f"$ wardround {' '.join(map(str, arguments))}\n{done.stdout}\n{done.stderr}"
    assert done.returncode == expect, shown
    assert "Traceback" not in done.stderr + done.stdout, shown
    return done.stdout if expect == 0 else done.stdout + done.stderr


def typed(*arguments: object, expect: int = 0) -> str:
    """The command line within this process, so that torch is imported once -> what it said, on both streams."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = cli.run([str(argument) for argument in arguments])
    shown = f"$ wardround {' '.join(map(str, arguments))}\n{said.getvalue()}"
    assert code == expect, shown
    assert "Traceback" not in shown, shown
    return " ".join(said.getvalue().split())  # as one line: a terminal's width is no matter here


class Process:
    """A long-running command, `wardround` or another; its lines are read as they come."""

    def __init__(
        self, *arguments: object, cwd: Path, command: Sequence[str] = COMMAND, env: Mapping[str, str] | None = None
    ) -> None:
        self._name = Path(command[0]).name
        self.arguments = arguments
        self.log: list[str] = []
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._popen = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment() | dict(env or {}),
            cwd=cwd,
            start_new_session=True,  # so that kill -9 can take its children along
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._popen.stdout is not None
        with self._popen.stdout:
            for line in self._popen.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def wait_for(self, wanted: Callable[[str], bool], what: str, timeout_s: float = LIMIT_S) -> str:
        """The first new line that is wanted. Fails when the process ends before, or after the timeout."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {what} from {self} in {timeout_s} s; it said:\n{self.text}") from None
            if line is None:
                self._lines.put(None)
                raise AssertionError(f"{self} ended ({self._popen.wait(LIMIT_S)}) before {what}; it said:\n{self.text}")
            self.log.append(line)
            if wanted(line):
                return line

    def wait_for_event(self, wanted: Callable[[dict[str, Any]], bool], what: str, timeout_s: float = LIMIT_S) -> Any:
        """The first new JSON line that is wanted."""
        found: list[Any] = []

        def look(line: str) -> bool:
            if line.startswith("{") and wanted(event := json.loads(line)):
                found.append(event)
            return bool(found)

        self.wait_for(look, what, timeout_s)
        return found[0]

    def kill(self) -> None:
        """kill -9, children too."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """TERM, then the exit code."""
        if self._popen.poll() is None:
            self._popen.terminate()
        return self.wait()

    def wait(self, timeout_s: float = LIMIT_S) -> int:
        """The exit code, once the process has ended by itself and what it said last has been read."""
        code = self._popen.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._popen.pid, number)
        except ProcessLookupError:
            return
        self._popen.wait(LIMIT_S)

    @property
    def text(self) -> str:
        """Everything that it has said so far."""
        while not self._lines.empty():
            line = self._lines.get()
            if line is None:
                self._lines.put(None)
                break
            self.log.append(line)
        return "".join(self.log)

    def __str__(self) -> str:
        return f"{self._name} " + " ".join(map(str, self.arguments))


@contextmanager
def running(cwd: Path, program: str = COMMAND[0]) -> Iterator[Callable[..., Process]]:
    """A function that starts processes; all that still run at the end are killed."""
    started: list[Process] = []

    def start(*arguments: object, command: Sequence[str] = (program,), **options: Any) -> Process:
        started.append(Process(*arguments, cwd=cwd, command=command, **options))
        return started[-1]

    try:
        yield start
    finally:
        for process in reversed(started):
            process.kill()
