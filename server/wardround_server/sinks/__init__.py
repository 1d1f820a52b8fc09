"""What happens to a run's events: a sink a file, or another package's entry point `wardround.sinks`.

A sink is a function `sink(folder, settings)`: a context manager around the run, which gives what is called with each
event. folder: the run's own. settings: what `[sinks.NAME]` of coordinator.toml says, which switches the sink on.
Two are always on: `jsonl`, from which a run is followed and reported, and `log`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

from wardround.plugins import Kind
from wardround.text import shown
from wardround_server.events import Event

Tell = Callable[[Event], None]
Sink = Callable[[Path, Mapping[str, Any]], AbstractContextManager[Tell]]
SINKS: Kind[Sink] = Kind("event sink", "wardround_server.sinks", "sink", "wardround.sinks")
ALWAYS = ("jsonl", "log")
LAST_WORDS_S = 10.0  # how long a sink may take for what is left when the run is over
_logger = logging.getLogger(__name__)  # `log` is the name of a sink


class Sinks:
    """The sinks of one run, as a context manager. wanted: sink -> its settings, beside those that are always on.

    Each of the wanted works in a thread of its own: one that fails is named once in the run's log and gets no further
    event, one that hangs is left behind, and the run goes on.

    Raises: StorageError, at the beginning and from `tell`, when the run's events cannot be written.
    """

    def __init__(self, folder: Path, wanted: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        self._folder = folder
        self._wanted = {name: settings for name, settings in (wanted or {}).items() if name not in ALWAYS}
        self._stack = ExitStack()
        self._tells: list[Tell] = []
        self._threads: list[_Apart] = []

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._tells = [stack.enter_context(SINKS[name](self._folder, {})) for name in ALWAYS]
            self._stack = stack.pop_all()
        self._threads = [_Apart(name, self._folder, settings) for name, settings in self._wanted.items()]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for thread in self._threads:
                thread.finish()

    def tell(self, event: Event) -> Event:
        """Give an event to every sink -> the event, with its time."""
        event = event.stamped()
        for tell in self._tells:
            tell(event)
        for thread in self._threads:
            thread.events.put(event)
        return event


class _Apart(threading.Thread):
    """A sink that can neither stop nor delay the run."""

    def __init__(self, name: str, folder: Path, settings: Mapping[str, Any]) -> None:
        super().__init__(name=f"sink-{name}", daemon=True)
        self.events: SimpleQueue[Event | None] = SimpleQueue()
        self._sink, self._folder, self._settings = name, folder, settings

    def run(self) -> None:
        try:
            with SINKS[self._sink](self._folder, self._settings) as tell:
                for event in iter(self.events.get, None):
                    tell(event)
        except Exception as error:  # another's code
            kind, text = type(error).__name__, shown(error, 500)
            _logger.warning("event sink %s failed and gets no further event: %s: %s", self._sink, kind, text)

    def finish(self) -> None:
        """Let it handle what is left, for a while."""
        self.events.put(None)
        self.join(LAST_WORDS_S)
        if self.is_alive():
            _logger.warning("event sink %s is busy %g s after the run: it is left behind", self._sink, LAST_WORDS_S)
