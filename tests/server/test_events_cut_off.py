"""events.jsonl is cut off at any byte, by a kill or a full disk: what was whole is read, and what follows too."""

from __future__ import annotations

import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardround.errors import StorageError
from wardround_server.events import Event, RoundEnded, RunFailed, RunStarted, whole_lines
from wardround_server.runs_seen import RunsSeen
from wardround_server.sinks.jsonl import FILE, sink

events = st.lists(
    st.builds(RunStarted, run=st.text(max_size=5))
    | st.builds(RoundEnded, round=st.integers(0, 9), rejected=st.dictionaries(st.text(max_size=3), st.text(max_size=9)))
    | st.builds(RunFailed, message=st.text(max_size=9)),
    max_size=4,
)


def told(folder: Path, some: list[Event]) -> None:
    with sink(folder, {}) as tell:
        for event in some:
            tell(event)


def read(folder: Path, offset: int = 0) -> list[Event]:
    return [event for _, event in whole_lines(folder / FILE, offset)]


@given(events, events, st.data())
def test_a_kill_at_any_byte_costs_the_line_that_was_written(
    before: list[Event], after: list[Event], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder, seen = Path(name) / "spring", RunsSeen(Path(name))
        told(folder, before)
        content = (folder / FILE).read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        (folder / FILE).write_bytes(content[:cut])
        whole = before[: content[:cut].count(b"\n")]
        assert read(folder) == whole and [event for _, event in seen.news()] == whole
        told(folder, after)
        assert read(folder) == whole + after
        assert read(folder, cut) == after, "as who starts a run reads on"
        assert [event for _, event in seen.news()] == after, "as who has read before does"


@given(events.filter(bool), st.data())
def test_a_disk_that_is_full_at_any_byte_and_has_room_again(some: list[Event], data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        told(folder, some)
        room = data.draw(st.integers(0, (folder / FILE).stat().st_size - 1))
        (folder / FILE).unlink()
        with sink(folder, {}) as tell:
            with no_more_than(room), pytest.raises(StorageError, match=r"cannot be written .* resume"):
                for event in some:
                    tell(event)
            assert (folder / FILE).stat().st_size == room
            whole = read(folder)
            assert whole == some[: len(whole)]
            failed = RunFailed(message="the disk is full")
            tell(failed)  # by the same process, where there is room for so little, or again
        assert read(folder) == [*whole, failed]
        told(folder, some)
        assert read(folder) == [*whole, failed, *some]


@contextmanager
def no_more_than(size: int) -> Iterator[None]:
    """Files of this process (setrlimit(2)): the system writes as much of a line as there is room for."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
