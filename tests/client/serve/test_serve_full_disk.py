"""The disk fills up at any write of serve's: nothing is lost or doubled, a sentence says so, and it goes on."""

from __future__ import annotations

import builtins
import errno
import io
import logging
import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.client.intake.dicom_files import KEY
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.sent import CT, stored
from tests.client.serve.served import server, study
from tests.client.serve.served import settings as serve_settings

from wardround.errors import StorageError
from wardround.files import PrivateLog
from wardround_client.config import Serve
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.serve.queue import Queue
from wardround_client.serve.reception import Reception

WRITING = ("mkdir", "replace", "rename", "fsync")


class Disk:
    """What is written below a folder is counted, and refused while `full` says so of its number."""

    def __init__(self, below: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.below, self.written = str(below), 0
        self.full: Callable[[int], bool] = lambda number: False
        for name in WRITING:
            monkeypatch.setattr(os, name, self._checked(getattr(os, name)))
        disk, connect, open_file, open_number = self, sqlite3.connect, builtins.open, os.open

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
                if not sql.startswith(("SELECT", "PRAGMA", "BEGIN")) and disk.refuses():
                    raise sqlite3.OperationalError("database or disk is full")
                return super().execute(sql, *values)

            def executemany(self, sql: str, values: Any) -> sqlite3.Cursor:
                if disk.refuses():
                    raise sqlite3.OperationalError("database or disk is full")
                return super().executemany(sql, values)

        def opened(file: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if set(mode) & set("wxa") and str(file).startswith(disk.below):
                disk.write()
            return open_file(file, mode, *more, **named)

        def numbered(file: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_CREAT and str(file).startswith(disk.below):
                disk.write()
            return open_number(file, flags, *more, **named)

        monkeypatch.setattr(sqlite3, "connect", lambda *a, **named: connect(*a, factory=Connection, **named))
        monkeypatch.setattr(builtins, "open", opened)
        monkeypatch.setattr(io, "open", opened)
        monkeypatch.setattr(os, "open", numbered)

    def refuses(self) -> bool:
        self.written += 1
        return self.full(self.written)

    def write(self) -> None:
        if self.refuses():
            raise OSError(errno.ENOSPC, "No space left on device")

    def _checked(self, of: Callable[..., Any]) -> Callable[..., Any]:
        def checked(what: Any, *more: Any, **named: Any) -> Any:
            if isinstance(what, int) or str(what).startswith(self.below):  # a file that is open is one of ours
                self.write()
            return of(what, *more, **named)

        return checked


@pytest.fixture
def disk(home: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Under a home with two studies in its PACS."""
    study(FolderPacs.folder / "new", 2, images=2)
    serve_settings(home, {"url": "http://127.0.0.1:9"}, write=["sr", "heatmap", "fhir"])
    return Disk(home, monkeypatch)


def again(home: Path, disk: Disk, full: Callable[[int], bool]) -> None:
    """As it was, with another disk."""
    shutil.rmtree(home / "serve", ignore_errors=True)
    for place in (FolderPacs.folder / "stored").iterdir():
        shutil.rmtree(place)
    disk.written, disk.full = 0, full


def check(home: Path) -> None:
    """All is in the PACS once, and here nothing is left."""
    kinds = sorted((str(each.StudyInstanceUID), str(each.Modality)) for each in FolderPacs.stored())
    one, two = "1.2.826.9.1", "1.2.826.9.2"
    assert kinds == [(one, "OT"), (one, "SR"), (two, "OT"), (two, "OT"), (two, "SR")]
    for place in (FolderPacs.folder / "stored").iterdir():
        assert len({file.read_bytes() for file in place.iterdir()}) == 1, "what is sent again is the same"
    found = Queue(home / "serve" / "queue.sqlite")
    assert found.counts() == {"sent": 2}
    found.close()
    assert not list((home / "serve" / "results").iterdir()) and not list((home / "serve" / "fetched").iterdir())


def test_a_disk_that_fills_up_anywhere(home: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert server(home, monkeypatch).run(once=True)
    check(home)
    writes = disk.written

    @settings(max_examples=10, derandomize=True, database=None, deadline=None)
    @given(st.integers(1, writes), st.integers(1, writes))
    def anywhere(first: int, many: int) -> None:
        again(home, disk, lambda number: first <= number < first + many)
        for _ in range(many + 2):
            try:
                assert server(home, monkeypatch).run(once=True)
                return check(home)
            except StorageError as error:
                assert str(home) in str(error) and "make room" in error.do
        raise AssertionError("it does not go on")

    anywhere()


def test_it_goes_on_by_itself_and_says_so(home: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    running = server(home, monkeypatch)
    said = list[str]()

    def idle(timeout: float | None = None) -> bool:
        if running.queue.counts() == {"sent": 2}:
            running.stop.set()
        return running.stop.is_set()

    monkeypatch.setattr(running, "_say", said.append)
    monkeypatch.setattr(running.stop, "wait", idle)
    disk.written, disk.full = 0, lambda number: number < 15
    running.run()
    check(home)
    assert "No space left" in said[0] or "disk is full" in said[0]
    assert "the disk takes files again" in said
    assert all(line.startswith(("the disk", "a result")) for line in said[1:]), "once is enough"


def test_a_sender_is_told_to_try_again(home: Path, disk: Disk) -> None:
    (image,) = (FolderPacs.folder / "new" / "1.2.826.9.1").iterdir()
    for at in range(12):
        reception = Reception(home / "sent", Serve(), Pseudonyms(KEY), lambda: False, lambda *line: None)
        disk.written, disk.full = 0, (at + 1).__eq__
        status = stored(reception, image, CT, "1.2.826.9.1.1.0")
        kept = [path for path in (home / "sent").rglob("*") if path.is_file()]
        assert status == (0x0000 if disk.written <= at else 0xA700)
        assert status == 0xA700 or [path.read_bytes() for path in kept] == [image.read_bytes()]
        disk.full = lambda number: False
        shutil.rmtree(home / "sent")
        if status == 0x0000:
            return
    raise AssertionError("it is never kept")


def test_a_log_on_a_full_disk_shows_nobody_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(text: str) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    log = PrivateLog(tmp_path / "serve.log")
    with monkeypatch.context() as patched:
        patched.setattr(log, "stream", SimpleNamespace(write=full, flush=lambda: None, tell=lambda: 0, seek=full))
        log.handle(logging.makeLogRecord({"msg": "a result is in the PACS"}))
    log.close()
    assert capsys.readouterr() == ("", "")
