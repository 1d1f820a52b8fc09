"""What takes long and is started on a page: one thing at a time, in a process of its own, watched, and stopped.

The process does what the command does, and is stopped as Ctrl-C stops that: what is done is kept. It ends with the
page's command; a tab that is closed changes nothing.
"""

from __future__ import annotations

import os
import secrets
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Literal

from wardround.errors import ConfigError, StorageError
from wardround.web.views import Site
from wardround_client.intake.workers import processes
from wardround_client.pages.process import do


@dataclass
class Work:
    """kind: of a page. what: in words. total: 0 where nobody counts. result: its function's. when: it ended, UTC.

    key: stands for it in a form.
    """

    kind: str
    what: str
    state: Literal["runs", "stops", "stopped", "failed", "done"] = "runs"
    progress: str = "begins"
    done: int = 0
    total: int = 0
    error: str = ""
    when: str = ""
    result: Any = field(default=None, repr=False)
    key: str = field(default_factory=secrets.token_hex)
    process: ForkServerProcess | None = field(default=None, repr=False)
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.state in ("runs", "stops")


@dataclass
class Bench:
    """The last one of each kind."""

    last: dict[str, Work] = field(default_factory=dict)

    @property
    def running(self) -> Work | None:
        """The only one that has not ended."""
        return next((work for work in self.last.values() if work.runs), None)


def start(site: Site, home: Path, kind: str, what: str, function: Callable[..., Any], *arguments: object) -> None:
    """Start it: `function(home, *arguments, tell)`, a module's own. Raises: ConfigError, while something runs;
    StorageError.
    """
    bench = site.kept(Bench)
    if bench.running:
        raise ConfigError(f"something runs already: {bench.running.what}", do="wait for its end, or stop it")
    context = processes()
    ours, theirs = context.Pipe(duplex=False)
    named = function.__module__, function.__qualname__
    process = context.Process(target=do, args=(theirs, home, named, arguments), name=kind)
    try:
        process.start()
    except OSError as error:
        raise StorageError(
            f"no process can be started ({error.strerror or error})", do="close other programs, and press again"
        ) from None
    theirs.close()
    bench.last[kind] = work = Work(kind, what, process=process)
    site.keep(bench)
    threading.Thread(target=_watch, args=(work, ours), name=kind, daemon=True).start()


def stop(site: Site, key: str, *, at_once: bool = False) -> Work:
    """Stop what runs, or, when that was done, end it at once, whatever it is doing.

    key: of the one that is meant; another may have begun since somebody looked. Raises: ConfigError, when it does not
    run.
    """
    work = site.kept(Bench).running
    if work is None or work.process is None or work.key != key:
        raise ConfigError("what was to be stopped does not run any more", do="look at what became of it")
    if at_once and work.state == "stops":
        work.process.kill()
    elif not at_once and work.state == "runs" and work.process.pid is not None:
        work.state = "stops"
        with suppress(ProcessLookupError):
            os.kill(work.process.pid, signal.SIGINT)
    return work


def end(site: Site) -> None:
    """The page ends: stop what runs, and wait until what is done is kept."""
    work = site.kept(Bench).running
    if work is None or work.process is None:
        return
    if work.state == "runs":
        stop(site, work.key)
    try:
        work.ended.wait()
    except KeyboardInterrupt:  # nobody wants to wait for it
        work.process.kill()
        raise


def _watch(work: Work, pipe: Connection) -> None:
    said: tuple[str, Any] | None = None
    with pipe, suppress(EOFError, OSError):
        while said is None:
            match pipe.recv():
                case "tell", (progress, done, total):
                    work.progress, work.done, work.total = str(progress), int(done), int(total)
                case kind, what:
                    said = str(kind), what
    assert work.process is not None
    work.process.join()
    work.when = f"{datetime.now(UTC):%Y-%m-%d %H:%M}"
    match said:
        case "done", result:
            work.result, work.state = result, "done"
        case "failed", why:
            work.error, work.state = str(why), "failed"
        case None if work.state == "runs":
            work.error = "It ended without a word: it was killed, or the machine had not enough memory."
            work.state = "failed"
        case _:
            work.state = "stopped"
    work.ended.set()
