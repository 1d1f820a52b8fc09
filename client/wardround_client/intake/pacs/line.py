"""An archive in a process of its own: it may hang, crash or fill its memory, and ends with the one that started it.

What lies in the spool goes with the one that started it, however that ends.
"""

from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from wardround.errors import WardroundError
from wardround.files import remove_folder
from wardround_client.config import Pacs
from wardround_client.intake.pacs.archive import Archive
from wardround_client.intake.pacs.trouble import Trouble, TroubleError, trouble
from wardround_client.intake.workers import bound_memory, processes

STALLED = 3
"""Exit status of a process whose PACS went silent."""

PIECE = 1 << 16
"""Bytes that must arrive in each read_timeout_s."""


class Line:
    """The process, started when it is needed first, and again after it ended.

    Args:
        archive: which protocol.
        settings: of it.
        home: the hospital's home.
        folder: where fetched files are put; removed with everything in it when this process dies.
    """

    def __init__(self, archive: type[Archive], settings: Pacs, home: Path, folder: Path) -> None:
        self._arguments = (archive, settings, home, folder)
        self._process: multiprocessing.process.BaseProcess | None = None

    def ask(self, what: str, *arguments: Any, **named: Any) -> Generator[Any, None, None]:
        """Start asking at once; what is yielded comes as it arrives.

        what: a method of `Archive`. Raises, while it is iterated: TroubleError.
        """
        with suppress(OSError):  # it died: `_answers` says so
            self._start()
            self._calls.send((what, arguments, named))
        return self._answers()

    def _answers(self) -> Generator[Any, None, None]:
        ended = False
        try:
            while True:
                try:
                    kind, payload = self._calls.recv()
                except (EOFError, OSError):
                    raise self._died() from None
                if kind == "answer":
                    yield payload
                    continue
                ended = True
                if kind == "trouble":
                    raise TroubleError(payload)
                return
        finally:
            if not ended:  # an answer that nobody waits for any more
                self._stop()

    def _start(self) -> None:
        if self._process is not None and self._process.is_alive():
            return
        self._stop()
        context = processes()  # the same server of processes as the readers': its first user says what it imports
        self._calls, theirs = context.Pipe()
        until, self._until = context.Pipe(duplex=False)
        self._process = context.Process(target=_serve, args=(theirs, until, *self._arguments), daemon=True)
        self._process.start()
        theirs.close()
        until.close()

    def _died(self) -> TroubleError:
        process = self._process
        if process is not None:
            process.join()
        if process is not None and process.exitcode == STALLED:
            return trouble("broken", "the PACS began to answer and then went silent")
        return trouble("broken", "the process that talks to the PACS died", "look for a lack of memory on this machine")

    def _stop(self) -> None:
        if self._process is None:
            return
        self._process.kill()
        self._process.join()
        self._calls.close()
        self._until.close()
        self._process = None

    def close(self) -> None:
        """End the process."""
        self._stop()


class Throttle:
    """Takes as long as a bandwidth demands, in sleeps of at least 50 ms. bytes_per_s: 0 is no limit."""

    def __init__(
        self,
        bytes_per_s: float,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bytes_per_s, self._sleep, self._clock = bytes_per_s, sleep, clock
        self._owed_s = 0.0

    def owes(self, size: int) -> bool:
        """Note that so much arrived. Whether it is time to `pay`."""
        self._owed_s += size / self._bytes_per_s if self._bytes_per_s else 0.0
        return self._owed_s > 0.05

    def pay(self) -> None:
        """Sleep; a sleep that took longer counts for what comes."""
        start = self._clock()
        self._sleep(max(0.0, self._owed_s))
        self._owed_s -= self._clock() - start


class _Watch:
    """Ends the process when nothing arrives for too long; a thread, for a blocked call cannot look at a clock."""

    def __init__(self, settings: Pacs) -> None:
        self._patience_s = settings.read_timeout_s
        self._throttle = Throttle(settings.megabits_per_second * 125_000)
        self._until, self._idle = float("inf"), True
        threading.Thread(target=self._look, daemon=True).start()

    def beat(self, size: int) -> None:
        """Something arrived: take as long as the bandwidth demands, and be patient anew."""
        if self._throttle.owes(size):
            self._until = float("inf")
            self._throttle.pay()
        self._until = float("inf") if self._idle else time.monotonic() + self._patience_s

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Whatever happens inside, and not in `idle`, has to come forward."""
        self._idle = False
        self.beat(0)
        try:
            yield
        finally:
            self._idle, self._until = True, float("inf")

    @contextmanager
    def idle(self) -> Iterator[None]:
        """It is the other process that takes its time."""
        self._idle, self._until = True, float("inf")
        yield
        self._idle = False
        self.beat(0)

    def _look(self) -> None:
        while True:
            time.sleep(min(1.0, self._patience_s / 4))
            if time.monotonic() > self._until:
                os._exit(STALLED)


def _serve(
    calls: Connection, until: Connection, archive_of: type[Archive], settings: Pacs, home: Path, folder: Path
) -> None:
    with suppress(OSError):
        os.setsid()  # a signal to our group is for the others: this one is told by its pipe, and tidies up
    os.umask(0o077)
    threading.Thread(target=_end_with, args=(until, folder), daemon=True).start()
    bound_memory()
    logging.disable(logging.CRITICAL)  # libraries log what a PACS says
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    watch = _Watch(settings)
    answering = Answering(archive_of, settings, home, watch.beat)
    while True:
        try:
            question = calls.recv()
        except EOFError:
            return
        with watch.waiting():
            for answer in answering(*question):
                with watch.idle():
                    calls.send(answer)


class Answering:
    """An archive, asked by name: its answers, and at last ("end", None), or ("trouble", what went wrong)."""

    def __init__(self, archive: type[Archive], settings: Pacs, home: Path, beat: Callable[[int], None]) -> None:
        self._make = partial(archive, settings, home, beat)
        self._archive: Archive | None = None

    def __call__(self, what: str, arguments: Sequence[Any], named: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """what: a method of the archive."""
        try:
            self._archive = self._archive or self._make()
            for answer in getattr(self._archive, what)(*arguments, **named):
                yield "answer", answer
            yield "end", None
        except TroubleError as error:
            yield "trouble", error.trouble
        except WardroundError as error:
            yield "trouble", Trouble("refused", error.what, error.do)
        except OSError as error:
            yield "trouble", _of_disk(error) or _unreadable(error)
        except Exception as error:  # of a library, over what a PACS said
            yield "trouble", _unreadable(error)


def _of_disk(error: OSError) -> Trouble | None:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return Trouble("full", f"what the PACS gives cannot be written ({error.strerror})", "make room on the disk")


def _unreadable(error: Exception) -> Trouble:
    return Trouble("broken", f"the answer of the PACS cannot be read ({type(error).__name__})")


def _end_with(pipe: Connection, folder: Path) -> None:
    wait([pipe])
    with suppress(OSError):
        remove_folder(folder)
    os._exit(1)
