"""kill -9 at any line of the loop, and a PACS that fails in any way: no result is lost, none is doubled."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.serve.folder_pacs import FolderPacs
from tests.client.serve.served import served, study
from tests.client.serve.served import settings as serve_settings

from wardround_client.serve import __file__ as serve_file
from wardround_client.serve.queue import Queue

HERE = str(Path(serve_file).parent)
STUDIES = 2


@pytest.fixture
def fresh(made: Path, tmp_path: Path, folder_pacs: None) -> Callable[[], Path]:
    """A home and a PACS as they were; each call makes others."""
    number = 0

    def make() -> Path:
        nonlocal number
        number += 1
        home, pacs = tmp_path / f"home{number}", tmp_path / f"pacs{number}"
        shutil.copytree(made, home)
        FolderPacs.at(pacs)
        for patient in range(STUDIES):
            study(pacs / "new", patient + 1, images=patient + 1)
        serve_settings(home, {"url": "http://127.0.0.1:9"}, write=["sr", "heatmap"])
        return home

    return make


def killed_at(home: Path, line: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Serve in a fork that is killed at that line of wardround_client/serve -> how many lines it ran, if it ended."""
    ours, theirs = os.pipe()
    if child := os.fork():
        os.close(theirs)
        with os.fdopen(ours) as said:
            text = said.read()
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or status == 0, text
        return int(text) if text else 0
    ran = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal ran
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        if event == "line":
            ran += 1
            if ran == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        sys.settrace(trace)
        served(home, monkeypatch)
        sys.settrace(None)
        os.write(theirs, str(ran).encode())
        os._exit(0)
    except BaseException as error:
        os.write(theirs, repr(error).encode())
        os._exit(1)


def check(home: Path) -> None:
    """Everything is in the PACS, once, whatever was sent how often; and nothing is left here."""
    found = Counter[tuple[str, str]]()
    for place in (FolderPacs.folder / "stored").iterdir():
        sent = {file.read_bytes() for file in place.iterdir()}
        assert len(sent) == 1, "what is sent again is the same, byte for byte"
        data = pydicom.dcmread(next(place.iterdir()))
        found[str(data.StudyInstanceUID), str(data.Modality)] += 1
    assert found == {
        ("1.2.826.9.1", "SR"): 1,
        ("1.2.826.9.2", "SR"): 1,
        ("1.2.826.9.1", "OT"): 1,
        ("1.2.826.9.2", "OT"): 2,
    }
    queue = Queue(home / "serve" / "queue.sqlite")
    assert queue.counts() == {"sent": STUDIES}
    assert not any(work.uid for work in queue.in_state("sent"))
    queue.close()
    for name in ("results", "fetched"):
        assert not list((home / "serve" / name).iterdir())


@pytest.fixture
def lines(fresh: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a run that nobody kills."""
    home = fresh()
    ran = killed_at(home, 0, monkeypatch)
    check(home)
    return ran


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kills=st.lists(st.floats(0, 1), min_size=1, max_size=3))
def test_killed_at_any_line(
    fresh: Callable[[], Path], lines: int, monkeypatch: pytest.MonkeyPatch, kills: list[float]
) -> None:
    home = fresh()
    for part in kills:
        killed_at(home, 1 + int(part * (lines - 1)), monkeypatch)
    assert killed_at(home, 0, monkeypatch)
    check(home)


ILLS = ("well", "away", "busy", "broken", "refused", "absent", "raises", "forgets", "silent")


@settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ills=st.lists(st.sampled_from(ILLS), max_size=8), kill=st.floats(0, 1))
def test_a_pacs_that_fails_in_any_way_loses_nothing(
    fresh: Callable[[], Path], lines: int, monkeypatch: pytest.MonkeyPatch, ills: list[str], kill: float
) -> None:
    home = fresh()
    FolderPacs.ills.write_text(" ".join(ills))
    killed_at(home, 1 + int(kill * (lines - 1)), monkeypatch)
    for _ in range(len(ills) + 2):  # each ill may end one; what failed is tried again when a person says so
        killed_at(home, 0, monkeypatch)
        queue = Queue(home / "serve" / "queue.sqlite")
        queue.again()
        queue.close()
    check(home)
    assert "Person1" not in "".join(path.read_text() for path in home.glob("*.log*"))
