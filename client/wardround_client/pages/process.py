"""The process in which a page's work is done (`work`), and what it sends back; it imports nothing that is heavy."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from importlib import import_module
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

from wardround.errors import WardroundError
from wardround_client.service.log_file import logging_to

LOG = "page.log"
BUG = "An error of this program; page.log in the hospital's home has its details."
log = logging.getLogger(__name__)


class Tell(Protocol):
    """How a process says how far it is, in words and, where it is known, in numbers."""

    def __call__(self, progress: str, done: int = 0, total: int = 0) -> None:
        """total: 0 where nobody knows."""
        ...


def do(pipe: Connection, home: Path, named: tuple[str, str], arguments: tuple[object, ...]) -> None:
    """Call a function by its module and name, and send what becomes of it: ("done", its result), ("failed", why) or
    ("stopped", None); before that ("tell", how far it is) as often as it likes.
    """
    said: tuple[str, Any] = ("stopped", None)
    with suppress(KeyboardInterrupt):
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background command inherits it ignored
        os.setsid()  # Ctrl-C at the terminal is for the page, which then stops this once
        said = _outcome(pipe, home, named, arguments)
    with suppress(OSError):
        pipe.send(said)


def _outcome(pipe: Connection, home: Path, named: tuple[str, str], arguments: tuple[object, ...]) -> tuple[str, Any]:
    def tell(progress: str, done: int = 0, total: int = 0) -> None:
        try:
            pipe.send(("tell", (progress, done, total)))
        except OSError:  # the page was killed: as if it had been stopped
            raise KeyboardInterrupt from None

    try:
        with logging_to(home, name=LOG):
            try:
                return "done", getattr(import_module(named[0]), named[1])(home, *arguments, tell)
            except WardroundError as error:
                return "failed", str(error)
            except Exception:
                log.exception("%s", named[1])
                return "failed", BUG
    except WardroundError as error:  # of the log
        return "failed", str(error)
