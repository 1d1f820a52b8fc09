"""A run whose checkpoint is never on a disk, for runs of a few seconds that nobody resumes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wardround_server.checkpoint import Checkpointer, State


class InMemoryCheckpointer(Checkpointer):
    """Keeps the last state, and touches no disk; one object a run."""

    def __init__(self) -> None:
        super().__init__(Path())
        self.state: State | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Nobody else knows of this run."""
        yield

    def load(self, *, run: str, federation: str) -> State | None:
        """What was kept: nothing, before the first round."""
        return self.state

    def save(self, state: State) -> None:
        """Remember it."""
        self.state = state
