"""An event sink of another package sees a real run, and one that fails or hangs costs the run nothing."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.recipes import follow
from tests.server.conftest import FakeHospital, FakeTransport, a_federation

from wardround.errors import ConfigError, StorageError
from wardround.models import build_model
from wardround_server import sinks
from wardround_server.checkpoint import Checkpointer
from wardround_server.events import Event, RoundEnded, RunEnded, whole_lines
from wardround_server.rounds import run
from wardround_server.sinks import SINKS, Sinks


def play(folder: Path, wanted: Mapping[str, Mapping[str, Any]]) -> list[Event]:
    """A run of two hospitals whose events go to these sinks."""
    federation = a_federation(rounds=2)
    transport = FakeTransport(*(FakeHospital(name, federation) for name in ("anna", "bert")))
    with Sinks(folder, wanted) as told:
        events = run(federation, build_model(federation), transport, Checkpointer(folder), run_name="spring")
        return [told.tell(event) for event in events]


def test_a_sink_of_another_package_sees_every_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "package").mkdir()
    follow("A new event sink", tmp_path / "package", monkeypatch)
    assert "counts" in SINKS.names
    play(tmp_path / "run", {"counts": {"file": "answers.txt"}})
    assert (tmp_path / "run" / "answers.txt").read_text().splitlines() == ["0 2", "1 2", "2 2"]


def test_what_is_written_is_read_again_as_it_was(tmp_path: Path) -> None:
    events = play(tmp_path, {})
    assert [event for _, event in whole_lines(tmp_path / "events.jsonl")] == events
    assert all(event.time for event in events)
    assert "round 1 of 3: 2/2 replied" in (tmp_path / "run.log").read_text()


@contextmanager
def _failing(folder: Path, settings: Mapping[str, Any]) -> Iterator[Callable[[Event], None]]:
    def tell(event: Event) -> None:
        if isinstance(event, RoundEnded):
            raise OSError("no such tracker \x1b[2J")

    yield tell


@pytest.mark.parametrize("how", ["it fails at the beginning", "it fails at a round", "its package is gone"])
def test_a_sink_that_fails_costs_no_round_and_is_named_once(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, Any] = {"it fails at a round": _failing, "it fails at the beginning": lambda *_: 1 / 0}
    getitem = type(SINKS).__getitem__
    if how in made:
        monkeypatch.setattr(
            type(SINKS), "__getitem__", lambda kind, name: made[how] if name == "odd" else getitem(kind, name)
        )
    assert isinstance(play(tmp_path, {"odd": {}})[-1], RunEnded)
    lines = (tmp_path / "run.log").read_text().splitlines()
    assert len([line for line in lines if "event sink odd failed" in line]) == 1
    assert "\x1b" not in "".join(lines)


def test_a_sink_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = threading.Event()

    @contextmanager
    def hanging(folder: Path, settings: Mapping[str, Any]) -> Iterator[Callable[[Event], None]]:
        yield lambda event: print(hangs.wait())

    getitem = type(SINKS).__getitem__
    monkeypatch.setattr(
        type(SINKS), "__getitem__", lambda kind, name: hanging if name == "odd" else getitem(kind, name)
    )
    monkeypatch.setattr(sinks, "LAST_WORDS_S", 0.1)
    with caplog.at_level(logging.WARNING):
        begun = time.monotonic()
        assert isinstance(play(tmp_path, {"odd": {}})[-1], RunEnded)
    hangs.set()
    assert time.monotonic() - begun < 60
    assert "left behind" in caplog.text


def test_a_run_whose_events_cannot_be_written_stops(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").mkdir()
    with pytest.raises(StorageError, match=r"events\.jsonl"):
        play(tmp_path, {})


def test_an_unknown_sink_is_named_with_those_that_are_there() -> None:
    with pytest.raises(ConfigError, match=r"unknown event sink 'mlflw'.*jsonl, log, mlflow, progress"):
        SINKS["mlflw"]
