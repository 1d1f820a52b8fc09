"""Studies that are sent: a C-STORE SCP (PS3.4 annex B) of our own, in a process of its own."""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError
from wardround.files import private_folder
from wardround_client.config import Pacs, Serve
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.workers import bound_memory, processes
from wardround_client.serve.reception import Reception

MOST_TOLD = 1000
"""Refusals that wait until they are heard; further ones are not told."""


class Receiver:
    """The process.

    Args:
        settings, pacs: of hospital.toml; the certificate and key of [pacs] where `tls` is set.
        home: what relative names of files are relative to.
        folder: where objects go.
        key: of the pseudonyms.

    Raises: ConfigError: the port cannot be opened.
    """

    def __init__(self, settings: Serve, pacs: Pacs, home: Path, folder: Path, key: bytes) -> None:
        context = processes()
        self._calls, theirs = context.Pipe()
        self._full = context.Event()
        self._process = context.Process(
            target=_serve, args=(theirs, self._full, settings, pacs, home, folder, key), daemon=True
        )
        self._process.start()
        theirs.close()
        try:
            why = self._calls.recv()
        except EOFError:
            why = "its process died"
        if why:
            self.close()
            raise ConfigError(f"[serve] listen {settings.listen} cannot be opened ({why})", do="correct it")

    def full(self, yes: bool) -> None:
        """Whether nothing more is taken."""
        self._full.set() if yes else self._full.clear()

    def refused(self) -> list[tuple[str, str]]:
        """What came since and nobody can use: (AE title, reason)."""
        found = []
        with suppress(EOFError, OSError):
            while self._calls.poll():
                found.append(self._calls.recv())
        return found

    @property
    def alive(self) -> bool:
        """Whether it still listens."""
        return self._process.is_alive()

    def close(self) -> None:
        """End it: nobody is answered any more."""
        self._process.kill()
        self._process.join()
        self._calls.close()


def _serve(calls: Connection, full: Any, settings: Serve, pacs: Pacs, home: Path, folder: Path, key: bytes) -> None:
    with suppress(OSError):
        os.setsid()
    os.umask(0o077)
    bound_memory()
    logging.disable(logging.CRITICAL)  # libraries log what a stranger says
    warnings.simplefilter("ignore")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    refused: queue.Queue[tuple[str, str]] = queue.Queue(MOST_TOLD)

    def told(title: str, why: str) -> None:
        with suppress(queue.Full):  # nobody listens while a study is predicted: no sender waits for that
            refused.put_nowait((title[:16], why))

    scratch = folder.with_name("incoming")
    private_folder(scratch)
    for left in scratch.iterdir():
        left.unlink(missing_ok=True)
    tempfile.tempdir = str(scratch)  # objects are not held in memory
    reception = Reception(folder, settings, Pseudonyms(key), full.is_set, told, scratch)
    try:
        from wardround_client.serve.listening import listen  # pynetdicom is an extra

        listen(settings, pacs, home, reception.store)
    except (OSError, ConfigError) as error:
        calls.send(str(error))
        return
    calls.send("")
    threading.Thread(target=_tell, args=(calls, refused), daemon=True).start()
    wait([calls])  # nothing is sent to us: it ends with the one that started it
    os._exit(0)


def _tell(calls: Connection, refused: queue.Queue[tuple[str, str]]) -> None:
    with suppress(OSError):
        while True:
            calls.send(refused.get())
