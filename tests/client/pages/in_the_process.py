"""What the tests run in a page's process: it does well, waits, fails and dies. Nothing heavy is imported."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from wardround.errors import DataError
from wardround_client.pages.process import Tell


def counts(home: Path, tell: Tell) -> str:
    tell("halves", 1, 2)
    return home.name


def waits(home: Path, tell: Tell) -> None:
    tell("waits")
    threading.Event().wait()


def interrupted(home: Path, tell: Tell) -> str:
    os.kill(os.getpid(), signal.SIGINT)
    return "nothing came of it"


def listens_to_nobody(home: Path, tell: Tell) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waits(home, tell)


def fails(home: Path, tell: Tell) -> None:
    raise DataError("the <b>disc</b> is \x1b[2J upside down", do="turn it")


def breaks(home: Path, tell: Tell) -> None:
    raise RuntimeError("secret of a traceback")


def dies(home: Path, tell: Tell) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
