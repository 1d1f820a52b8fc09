"""kill -9, again and again, at random moments of a round; after each, everything that was promised is checked."""

from __future__ import annotations

import os
import random
import selectors
import signal
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.truth import Truth, Violation
from tests.soak.worker import COMPUTING, OPENED, REPLY, Place, frames, make_home, work

from wardround_client.privacy.ledger import Ledger

# In which phase of its round a worker was killed. "in" the reservation or release: a transaction was open on the disk.
PHASES = (
    "while opening",
    "before the reservation",
    "in the reservation",
    "between reservation and release",
    "in the release",
    "after the release, before it was sent",
    "after it was sent",
)
_PATIENCE_S = 60.0
_WARM_UP_ROUNDS = 6


@dataclass
class _Worker:
    pid: int
    pipe: int
    deadline: float
    delay_s: float
    buffer: bytearray = field(default_factory=bytearray)
    last: bytes = b""
    place: Place | None = None
    answered: int = 0
    opened_at: float = 0.0
    killed: bool = False


class Soak:
    """One home, killed often.

    Args:
        home: the folder that is made for it.
        seed: of the moments of the kills, the pairs and the retries.
        ledger_class: what the workers use as their ledger; the checks always use the real one.
    """

    def __init__(self, home: Path, seed: int, ledger_class: type[Ledger] = Ledger) -> None:
        self._rng = random.Random(seed)
        self._warm = make_home(home)
        self._agreement = self._warm.approvals.preview(home / "federation.toml")
        self._journal = home / "ledger.sqlite-journal"
        self._ledger_class = ledger_class
        self.truth = Truth(home / "ledger.sqlite", self._agreement, self._warm.config.delta)
        self.kills, self.pairs = 0, 0
        self.phases: Counter[str] = Counter()
        self._start: Place = (0, 0)

    def run(self, kills: int) -> None:
        """Kill so many processes. Raises: Violation, at the first broken promise."""
        window_s = self._pace()
        while self.kills < kills:
            pair = self._rng.random() < 0.2
            crew = [self._fork(self._rng.uniform(0, window_s)) for _ in range(2 if pair else 1)]
            self._until_killed(crew)
            self.pairs += pair
            interrupted = self._journal.exists()
            self.truth.check()
            if not pair:  # of two, one may have tidied up after the other
                self.phases[self._phase(crew[0], interrupted)] += 1
            self._start = self._next(max((worker.place for worker in crew if worker.place), default=self._start))

    def _pace(self) -> float:
        """Seconds in which a worker answers three rounds here: the window of the kills. Its own kill counts, too."""
        worker = self._fork(_PATIENCE_S)
        self._until_killed([worker], enough=_WARM_UP_ROUNDS)
        window_s = (time.monotonic() - worker.opened_at) * 3 / _WARM_UP_ROUNDS
        self.truth.check()
        self._start = worker.place or self._start
        return window_s

    def _fork(self, delay_s: float) -> _Worker:
        """A new process, as warm as this one; SQLite's connections are opened in it."""
        mine, its = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(mine)
                work(self._warm, self._agreement, self._ledger_class, self._start, its)
            except BaseException:  # shown by the parent's check: this process should only ever end by the signal
                traceback.print_exc(file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(1)
        os.close(its)
        now = time.monotonic()
        # Some are killed while they open the ledger, at a moment counted from the fork; the others in their rounds.
        if self._rng.random() < 0.1:
            return _Worker(pid, mine, deadline=now + delay_s / 6, delay_s=_PATIENCE_S)
        return _Worker(pid, mine, deadline=now + _PATIENCE_S, delay_s=delay_s)

    def _until_killed(self, crew: list[_Worker], enough: int = sys.maxsize) -> None:
        """Read what the workers send until each was killed in its moment, or has answered enough."""
        try:
            with selectors.DefaultSelector() as selector:
                for worker in crew:
                    selector.register(worker.pipe, selectors.EVENT_READ, worker)
                while selector.get_map():
                    waiting = [worker.deadline for worker in crew if not worker.killed]
                    timeout_s = max(0.0, min(waiting) - time.monotonic()) if waiting else None
                    for key, _ in selector.select(timeout_s):
                        self._read(key.data, selector)
                    for worker in crew:
                        if not worker.killed and (time.monotonic() >= worker.deadline or worker.answered >= enough):
                            worker.killed = True
                            os.kill(worker.pid, signal.SIGKILL)
        finally:
            self._bury(crew)

    def _read(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        if data := os.read(worker.pipe, 1 << 16):
            worker.buffer += data
            self._hear(worker)
        else:
            selector.unregister(worker.pipe)
            if not worker.killed:
                raise Violation(f"a worker ended by itself at {worker.place}")

    def _bury(self, crew: list[_Worker]) -> None:
        for worker in crew:
            os.kill(worker.pid, signal.SIGKILL)  # a zombie by now, unless a promise was broken meanwhile
            os.waitpid(worker.pid, 0)
            os.close(worker.pipe)
            self.kills += 1

    def _hear(self, worker: _Worker) -> None:
        for what, place, payload in frames(worker.buffer):
            worker.last = what
            if what == OPENED:
                worker.opened_at = time.monotonic()
                worker.deadline = min(worker.deadline, worker.opened_at + worker.delay_s)
                continue
            worker.place = place
            if what == COMPUTING:
                self.truth.saw_computing(place)
            elif what == REPLY:
                worker.answered += 1
                self.truth.saw_reply(place, payload)

    def _phase(self, worker: _Worker, interrupted: bool) -> str:
        """From what it said last, and from what of it is on the disk."""
        opening, before, reserving, between, releasing, stored, sent = PHASES
        if worker.place is None:
            return opening
        if worker.last == REPLY:
            return sent
        if worker.place in self.truth.released:
            return stored
        if worker.place in self.truth.reserved:
            return releasing if interrupted and worker.last == COMPUTING else between
        return reserving if interrupted else before

    def _next(self, place: Place) -> Place:
        """Where the coordinator goes on: mostly it asks again, and sometimes it gives the round or the run up."""
        run, number = place
        fate = self._rng.random()
        if fate < 0.8:  # also a few rounds that were answered long ago, which must get the same bytes
            first = max(0, number - self._rng.randint(0, 3))
            asked = all((run, earlier) in self.truth.reserved for earlier in range(first, number))
            return run, first if asked else number
        if fate < 0.9 and number + 1 < len(self._agreement.schedule):
            return run, number + 1
        return run + 1, 0
