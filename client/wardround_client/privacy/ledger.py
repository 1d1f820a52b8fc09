"""The hospital's ledger: every price before it is paid, a receipt for every answer that left, over all runs.

One append-only SQLite table, each entry chained to the one before by SHA-256. The order of a round is

    reserve   the whole round's price is on the disk (fsync) before the first answer is computed
    release   the reply and its receipt are on the disk before the reply may leave

so that a crash in between leaves the price spent, and:

* A retry of a released round gets the stored reply byte for byte, never fresh noise.
* A retry of a round that was reserved but not released is computed again under the SAME reservation. That is sound,
  because a reply leaves only after it was stored: without a stored reply, nothing of that reservation was ever seen.
* Two computations of one round at once release one reply: `release` returns the bytes that came first.
* Another request for the same run and round, a round before the run's latest, or a run name that was used under another
  agreement is a `Replay`, and costs nothing.

The chain shows every edit, insertion and removal but one: an older copy of the whole file is a valid ledger. Guard the
file's backups as you guard the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wardround.errors import BudgetExceeded, Replay, StorageError
from wardround_client.privacy.accountant import Answers, epsilon, merged

GENESIS = "0" * 64
_BUSY_S = 30.0
_KEPT_IN_MEMORY = 2  # a simulation's replies of the last rounds; round 0 is always kept

_SCHEMA = """
CREATE TABLE IF NOT EXISTS entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- from 1, without a gap
    body TEXT NOT NULL,                     -- canonical JSON: everything that is hashed
    digest TEXT NOT NULL                    -- SHA-256 of the digest before and the body
);
CREATE TABLE IF NOT EXISTS replies (seq INTEGER PRIMARY KEY REFERENCES entries (seq), reply BLOB NOT NULL);
CREATE TRIGGER IF NOT EXISTS entries_stay BEFORE UPDATE ON entries BEGIN SELECT raise(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS entries_kept BEFORE DELETE ON entries BEGIN SELECT raise(ABORT, 'append only'); END;
CREATE TRIGGER IF NOT EXISTS replies_stay BEFORE UPDATE ON replies BEGIN SELECT raise(ABORT, 'append only'); END;
"""
_KEEP_REPLIES = """
CREATE TRIGGER IF NOT EXISTS replies_kept BEFORE DELETE ON replies BEGIN SELECT raise(ABORT, 'append only'); END;
"""


@dataclass(frozen=True)
class Budget:
    """What the cohort may spend: epsilon at delta over all runs, at most epsilon_per_round in one (None: any)."""

    epsilon: float
    delta: float
    epsilon_per_round: float | None = None


@dataclass(frozen=True)
class Reservation:
    """A round whose price is on the disk. seq: its entry; epsilon_after: of the whole cohort, this round included."""

    seq: int
    run: str
    round: int
    request_sha256: str
    federation: str
    coordinator: str
    rows: tuple[Answers, ...]
    epsilon_after: float


@dataclass(frozen=True)
class Entry:
    """One entry, for display: kind "reserved" or "released", the time (UTC, ISO 8601) and everything that is hashed."""

    seq: int
    kind: str
    time: str
    run: str
    round: int
    body: Mapping[str, Any]
    digest: str


@dataclass
class _Round:
    """What the ledger knows of one round."""

    reservation: Reservation
    released: int | None = None  # seq of the release


class Ledger:
    """A hospital's ledger in a file, or in memory (path None) for a simulation. Threads and processes may share it.

    Args:
        path: the SQLite file; it is made, readable by its owner alone, when it is not there.

    Raises:
        StorageError: the file cannot be opened or is not a ledger, or its chain is broken.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = threading.RLock()
        # What was read so far; the file is the truth, and `_catch_up` reads what is new in it.
        self._seq, self._digest = 0, GENESIS
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._latest: dict[str, int] = {}
        self._federation_of: dict[str, str] = {}
        self._prices: dict[str, list[Answers]] = {}
        with self._guarded():
            if path is not None and not path.exists():
                path.touch(mode=0o600)
            self._db = sqlite3.connect(
                path if path is not None else ":memory:",
                timeout=_BUSY_S,
                isolation_level=None,
                check_same_thread=False,
            )
            # A rollback journal with EXTRA: after COMMIT the entry survives a power cut, its folder entry included.
            self._db.execute("PRAGMA journal_mode = DELETE")
            self._db.execute("PRAGMA synchronous = EXTRA")
            self._db.execute("PRAGMA fullfsync = ON")
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries_kept'").fetchone():
                self._db.executescript("BEGIN IMMEDIATE;" + _SCHEMA + (_KEEP_REPLIES if path else "") + "COMMIT;")
            self._catch_up()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    # What a round asks, in its order.

    def stored_reply(self, run: str, round: int, request_sha256: str) -> bytes | None:
        """The reply that this very request got before; None, when it has none yet.

        Raises:
            Replay: the round was reserved or answered for another request.
            StorageError: the ledger cannot be read.
        """
        with self._reading():
            known = self._rounds.get((run, round))
            if known is None:
                return None
            if known.reservation.request_sha256 != request_sha256:
                raise Replay(
                    f"run {run!r} round {round} was asked before, by another request",
                    allowed="the same request again, byte for byte",
                    do="go on with the next round, or start a new run under a new name",
                )
            return None if known.released is None else self._reply(known)

    def reserve(
        self,
        *,
        run: str,
        round: int,
        request_sha256: str,
        federation: str,
        coordinator: str,
        rows: Sequence[Answers],
        budget: Budget,
    ) -> Reservation:
        """Write the price of a round to the disk, before anything is computed for it.

        The same request gets the same reservation again as long as it was not released.

        Args:
            run: its name; it belongs to one agreement.
            round: its number; a run's rounds only go forward.
            request_sha256: of the request's bytes.
            federation: digest of the agreement under which it is answered.
            coordinator: who asks.
            rows: the price.
            budget: what the hospital allows now.

        Raises:
            BudgetExceeded: the round, or all rounds together, would cost more than allowed; nothing is spent.
            Replay: another request for a round that was reserved before, or a round out of order; nothing is spent.
            StorageError: it could not be made durable; nothing may be computed.
        """
        rows = merged(rows)
        if not rows:
            raise ValueError("a reservation without a price")
        with self._writing():
            known = self._rounds.get((run, round))
            if known is not None:
                self._same(known, request_sha256, rows)
                return known.reservation
            self._in_order(run, round, federation)
            after = self._afford(rows, budget)
            body = {
                "kind": "reserved",
                "time": _now(),
                "run": run,
                "round": round,
                "request_sha256": request_sha256,
                "federation": federation,
                "coordinator": coordinator,
                "rows": [[row.noise_multiplier, row.sampling_rate, row.count] for row in rows],
                "delta": budget.delta,
                "epsilon_after": after,
            }
            self._append(body)
        return self._rounds[run, round].reservation

    def release(self, reservation: Reservation, reply: bytes, *, norm: float, size: int) -> bytes:
        """Store a reply and its receipt, before it may leave.

        Args:
            reservation: what was reserved for it.
            reply: the bytes that will leave.
            norm: L2 norm of the noised answer.
            size: how many numbers it holds.

        Returns:
            The bytes that may leave: `reply`, or what another computation of the same round released before.

        Raises: StorageError, when it could not be made durable; then nothing may leave.
        """
        with self._writing():
            known = self._rounds.get((reservation.run, reservation.round))
            if known is None or known.reservation != reservation:
                raise StorageError("the ledger does not hold the reservation that is released", do="verify the ledger")
            if known.released is not None:
                return self._reply(known)
            seq = self._append(
                {
                    "kind": "released",
                    "time": _now(),
                    "run": reservation.run,
                    "round": reservation.round,
                    "reservation": reservation.seq,
                    "federation": reservation.federation,
                    "coordinator": reservation.coordinator,
                    "bytes": len(reply),
                    "sha256": hashlib.sha256(reply).hexdigest(),
                    "size": size,
                    "norm": norm,
                    "epsilon_after": reservation.epsilon_after,
                }
            )
            self._db.execute("INSERT INTO replies (seq, reply) VALUES (?, ?)", (seq, reply))
            if self._path is None:
                self._forget_old(reservation)
        return reply

    def reply_of(self, run: str, round: int) -> bytes | None:
        """The reply that was released for this round, whatever the request; None without one.

        Raises: StorageError.
        """
        with self._reading():
            known = self._rounds.get((run, round))
            return None if known is None or known.released is None else self._reply(known)

    # What a reader asks.

    def history(self) -> list[Answers]:
        """Every answer that was ever reserved, one row a kind."""
        with self._reading():
            return list(self._history())

    def spent(self, delta: float) -> float:
        """Epsilon of the cohort over all runs, at delta."""
        return epsilon(self.history(), delta)

    def spent_by_run(self, run: str, delta: float) -> float:
        """Epsilon of one run, at delta; 0 for a run that never asked."""
        with self._reading():
            return epsilon(self._prices.get(run, ()), delta)

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        with self._reading():
            return [
                Entry(seq, body["kind"], body["time"], body["run"], body["round"], body, digest)
                for seq, body, digest in (
                    (seq, json.loads(text), digest)
                    for seq, text, digest in self._db.execute("SELECT seq, body, digest FROM entries ORDER BY seq")
                )
            ]

    def verify(self) -> int | None:
        """Recompute the chain and the hash of every stored reply: the first broken seq, or None if all is well.

        Removed last entries show too: SQLite keeps the greatest number that it ever gave.
        """
        with self._guarded(), self._lock:
            digest, expected = GENESIS, 0
            for seq, text, claimed in self._db.execute("SELECT seq, body, digest FROM entries ORDER BY seq"):
                expected += 1
                digest = _chained(digest, text)
                if seq != expected or digest != claimed or not self._reply_fits(seq, text):
                    return expected
            given = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
            if (given[0] if given else 0) != expected:
                return expected + 1
            stray = self._db.execute("SELECT min(seq) FROM replies WHERE seq NOT IN (SELECT seq FROM entries)")
            found = stray.fetchone()[0]
            return None if found is None else int(found)

    # Inside.

    def _same(self, known: _Round, request_sha256: str, rows: tuple[Answers, ...]) -> None:
        if known.reservation.request_sha256 != request_sha256 or known.reservation.rows != rows:
            raise Replay(
                f"run {known.reservation.run!r} round {known.reservation.round} was reserved for another request "
                "or price",
                allowed="the same request again, byte for byte, under an unchanged hospital.toml",
                do="start a new run under a new name",
            )

    def _in_order(self, run: str, round: int, federation: str) -> None:
        if self._federation_of.get(run, federation) != federation:
            raise Replay(
                f"run {run!r} belongs to another federation's agreement", do="start a new run under a new name"
            )
        latest = self._latest.get(run, -1)
        if round < latest:
            raise Replay(
                f"run {run!r} round {round} is over: round {latest} was answered",
                allowed=f"round {latest} again, or a later one",
            )

    def _afford(self, rows: tuple[Answers, ...], budget: Budget) -> float:
        """Epsilon after paying. Raises: BudgetExceeded."""
        if budget.epsilon_per_round is not None:
            alone = epsilon(rows, budget.delta)
            if not alone <= budget.epsilon_per_round:
                raise BudgetExceeded(
                    f"this round would cost epsilon {alone:.4g}",
                    allowed=f"{budget.epsilon_per_round:.4g} a round (budget.epsilon_per_round)",
                    do="spread the run over more rounds, or have the hospital raise the limit",
                )
        after = epsilon((*self._history(), *rows), budget.delta)
        if not (math.isfinite(after) and after <= budget.epsilon):
            before = epsilon(self._history(), budget.delta)
            left = max(0.0, budget.epsilon - before)
            raise BudgetExceeded(
                f"this round would bring the cohort from epsilon {before:.4g} to {after:.4g}",
                allowed=f"{budget.epsilon:.4g} over all runs (budget.epsilon); {left:.4g} is left",
                do="take a run with a smaller epsilon, or have the hospital decide on a larger budget",
            )
        return after

    def _history(self) -> tuple[Answers, ...]:
        return merged(row for rows in self._prices.values() for row in rows)

    def _reply(self, known: _Round) -> bytes:
        found = self._db.execute("SELECT reply FROM replies WHERE seq = ?", (known.released,)).fetchone()
        if found is None:
            raise Replay(
                f"run {known.reservation.run!r} round {known.reservation.round} was answered; its reply is not kept",
                do="go on with the next round",
            )
        return bytes(found[0])

    def _reply_fits(self, seq: int, text: str) -> bool:
        """Whether a release's stored reply is the one of its receipt (in memory, old replies are dropped)."""
        body = json.loads(text)
        found = self._db.execute("SELECT reply FROM replies WHERE seq = ?", (seq,)).fetchone()
        if body["kind"] != "released":
            return found is None
        if found is None:
            return self._path is None
        return bool(hashlib.sha256(found[0]).hexdigest() == body["sha256"] and len(found[0]) == body["bytes"])

    def _forget_old(self, reservation: Reservation) -> None:
        known = self._rounds.get((reservation.run, reservation.round - _KEPT_IN_MEMORY))
        if known is not None and known.released is not None and known.reservation.round > 0:
            self._db.execute("DELETE FROM replies WHERE seq = ?", (known.released,))

    def _append(self, body: dict[str, Any]) -> int:
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
        seq, digest = self._seq + 1, _chained(self._digest, text)
        self._db.execute("INSERT INTO entries (seq, body, digest) VALUES (?, ?, ?)", (seq, text, digest))
        return seq

    def _catch_up(self) -> None:
        """Read entries that are new since the last look, checking the chain. Raises: StorageError."""
        new = self._db.execute("SELECT seq, body, digest FROM entries WHERE seq > ? ORDER BY seq", (self._seq,))
        for seq, text, claimed in new.fetchall():
            digest = _chained(self._digest, text)
            if seq != self._seq + 1 or digest != claimed:
                raise StorageError(
                    f"the ledger {self._path} is broken at entry {self._seq + 1}",
                    do="stop this hospital and find out who changed the file; restore it only with a privacy officer",
                )
            self._learn(seq, json.loads(text))
            self._seq, self._digest = seq, digest

    def _learn(self, seq: int, body: Mapping[str, Any]) -> None:
        key = (body["run"], body["round"])
        if body["kind"] == "released":
            self._rounds[key].released = seq
            return
        rows = tuple(Answers(*row) for row in body["rows"])
        self._rounds[key] = _Round(
            Reservation(
                seq,
                *key,
                body["request_sha256"],
                body["federation"],
                body["coordinator"],
                rows,
                body["epsilon_after"],
            )
        )
        self._latest[body["run"]] = max(body["round"], self._latest.get(body["run"], -1))
        self._federation_of[body["run"]] = body["federation"]
        self._prices[body["run"]] = list(merged([*self._prices.get(body["run"], ()), *rows]))

    @contextmanager
    def _reading(self) -> Iterator[None]:
        with self._guarded(), self._lock:
            self._catch_up()
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction: what others wrote is read first, and what is written is on the disk at the end."""
        with self._guarded(), self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                self._catch_up()
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            self._catch_up()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StorageError(
                f"the ledger {self._path or 'in memory'} cannot be used ({error})",
                do="free disk space, or see who may read and write the file; nothing left this hospital",
            ) from None


def _chained(before: str, text: str) -> str:
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
