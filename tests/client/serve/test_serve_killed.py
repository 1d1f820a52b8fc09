"""kill -9 at any line of the loop, and a PACS that fails in any way: no result is lost, none is doubled."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pydicom
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.client.serve.served import adapted, served, study
from tests.client.serve.served import settings as serve_settings

from wardround_client.intake.pacs.archive import Found, Recent
from wardround_client.intake.pacs.trouble import trouble
from wardround_client.serve import __file__ as serve_file
from wardround_client.serve import loop
from wardround_client.serve.queue import Queue

HERE = str(Path(serve_file).parent)
STUDIES = 2


class FolderPacs:
    """A PACS that is a folder, and outlives whoever talks to it. ills: what goes wrong with each call in turn."""

    folder: Path
    ills: Path

    def __init__(self, *_: Any) -> None:
        pass

    def recent(self, first: str, last: str) -> Iterator[Recent]:
        self._ill()
        yield from (Recent(path.name, ("CT",), "1") for path in sorted((self.folder / "new").iterdir()))

    def find(self, key: str, value: str) -> Iterator[Found]:
        self._ill()
        for path in sorted((self.folder / "new" / value).iterdir()):
            yield Found(value, f"{value}.1", f"{value}.1.{path.name}", sop_class="1.2.840.10008.5.1.4.1.1.2")

    def fetch(self, found: Sequence[Found], folder: Path, *, whole: bool) -> Iterator[tuple[str, Path | None]]:
        self._ill()
        for each in found:
            path = folder / each.instance
            shutil.copy(self.folder / "new" / each.study / each.instance.rsplit(".", 1)[1], path)
            yield each.instance, path

    def store(self, files: Sequence[Path]) -> Iterator[str]:
        ill = self._ill(tells=True)
        for path in files:
            uid = str(pydicom.dcmread(path).SOPInstanceUID)
            place = self.folder / "stored" / uid
            place.mkdir(parents=True, exist_ok=True)
            (place / f"{len(list(place.iterdir()))}").write_bytes(path.read_bytes())
            if ill == "forgets":
                raise trouble("broken", "it stored it, and did not say so")
            if ill != "silent":
                yield uid

    def _ill(self, *, tells: bool = False) -> str:
        ills = self.ills.read_text().split() if self.ills.exists() else []
        self.ills.write_text(" ".join(ills[1:]))
        ill = ills[0] if ills else "well"
        if ill in ("away", "busy", "broken", "refused", "absent"):
            raise trouble(ill, "it is ill")  # type: ignore[arg-type]
        if ill == "raises":
            raise ValueError("Neu^Person1")
        return ill if tells else ""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, home_with_cohort: Path) -> Path:
    return adapted(tmp_path_factory.mktemp("served"), home_with_cohort)


@pytest.fixture
def fresh(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Path]:
    """A home and a PACS as they were; each call makes others."""
    monkeypatch.setattr(loop, "archive_of", lambda pacs: FolderPacs)
    monkeypatch.setattr(loop, "wait_s", lambda attempt, trouble: 0.0)
    number = 0

    def make() -> Path:
        nonlocal number
        number += 1
        home, pacs = tmp_path / f"home{number}", tmp_path / f"pacs{number}"
        shutil.copytree(made, home)
        for patient in range(STUDIES):
            study(pacs / "new", patient + 1, images=patient + 1)
        (pacs / "stored").mkdir()
        FolderPacs.folder, FolderPacs.ills = pacs, pacs / "ills"
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
    for _ in range(4):  # what failed is tried again when a person says so
        killed_at(home, 0, monkeypatch)
        queue = Queue(home / "serve" / "queue.sqlite")
        queue.again()
        queue.close()
    check(home)
    assert "Person1" not in "".join(path.read_text() for path in home.glob("*.log*"))
