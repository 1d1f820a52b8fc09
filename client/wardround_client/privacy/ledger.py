"""The hospital's ledger: every price before it is paid, a receipt for every answer that left, over all runs.

Its entries lie in one chained file (`chain.py`). The order of a round is

    reserve   the whole round's price is on the disk (fsync) before the first answer is computed
    release   the reply and its receipt are on the disk before the reply may leave

so that a crash in between leaves the price spent, and:

* A retry of a released round gets the stored reply byte for byte, never fresh noise.
* A reservation is computed once: `Reservation.first` says so to the one who made it, and to nobody after. A round that
  was reserved and not released gets noise alone, because whether its computation raised, stalled or ran out of memory
  could tell of a patient, and nobody knows how often it would be tried again.
* Two answers to one round at once release one reply: `release` returns the bytes that came first.
* Another request for the same run and round, a round before the run's latest, or a run name that was used under another
  agreement is a `Replay`, and costs nothing.

The chain shows every edit, insertion and removal but one: an OLDER COPY of the whole file, put back while no daemon
runs, is a valid ledger that has forgotten what was spent since. No file can show that by itself. So a privacy officer
writes the chain's head down now and then, outside the hospital's computers (`wardround hospital ledger --verify` prints
it), and asks later whether it is still in the chain (`--contains DIGEST`). An older copy does not hold it. The
coordinator notices most of them too: its requests name the last answer that it has (`wardround_client.one_life`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wardround.accountant import Answers, epsilon, merged
from wardround.errors import BudgetExceeded, Replay, StorageError
from wardround_client.clock import now, now_on_grid
from wardround_client.privacy.chain import Chain

LEDGER = "ledger.sqlite"
_KEPT_IN_MEMORY = 2  # a simulation's replies of the last rounds; round 0 is always kept


@dataclass(frozen=True)
class Budget:
    """What the cohort may spend: epsilon at delta over all runs, at most epsilon_per_round in one (None: any)."""

    epsilon: float
    delta: float
    epsilon_per_round: float | None = None


@dataclass(frozen=True)
class Reservation:
    """A round whose price is on the disk: what `Ledger.reserve` was told.

    seq: its entry. rows: the price. epsilon_after: of the whole cohort at delta, this round included. first: whether
    this call wrote it to the disk; then, and only then, may the round be computed.
    """

    seq: int
    run: str
    round: int
    request_sha256: str
    federation: str
    coordinator: str
    question: str
    bundle_sha256: str
    rows: tuple[Answers, ...]
    delta: float
    epsilon_after: float
    first: bool = field(default=False, compare=False)


@dataclass(frozen=True)
class Adopted:
    """A round that another copy of this ledger paid for: what `Ledger.adopt` books.

    sha256: of the reply that left; empty where nobody saw one and it only may have left.
    """

    run: str
    round: int
    federation: str
    question: str
    rows: tuple[Answers, ...]
    sha256: str = ""


@dataclass(frozen=True)
class Entry:
    """One entry, for display: kind "reserved", "released" or "adopted", time (UTC, ISO 8601) and all that is hashed."""

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

    Attributes:
        grid_s: receipts are timed on a grid of so many seconds after their reservations, as replies leave; 0: as it is.

    Raises:
        StorageError: the file cannot be opened or is not a ledger, or its chain is broken.
    """

    def __init__(self, path: Path | None) -> None:
        self.grid_s = 0.0
        self._in_memory = path is None
        self._rounds: dict[tuple[str, int], _Round] = {}
        self._latest: dict[str, int] = {}
        self._federation_of: dict[str, str] = {}
        self._prices: dict[str, list[Answers]] = {}
        self._adopted: set[tuple[str, int, str]] = set()
        self._chain = Chain(path, self._learn)

    @classmethod
    def of(cls, home: Path) -> Ledger:
        """The ledger of a hospital's home, which was made with the home: a new one would forget what was spent.

        Raises: StorageError, also when it is not there.
        """
        if not (home / LEDGER).exists():
            raise StorageError(
                f"{home / LEDGER} is gone, and with it what this cohort has spent",
                do="restore it from your backup; without one the whole budget counts as spent: take no further part",
            )
        return cls(home / LEDGER)

    def close(self) -> None:
        """Close the file."""
        self._chain.close()

    @property
    def in_memory(self) -> bool:
        """Whether it is a simulation's, and gone with the process."""
        return self._in_memory

    # What a round asks, in its order.

    def stored_reply(self, run: str, round: int, request_sha256: str) -> bytes | None:
        """The reply that this very request got before; None, when it has none yet.

        Raises:
            Replay: the round was reserved or answered for another request.
            StorageError: the ledger cannot be read.
        """
        with self._chain.reading():
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
        question: str,
        bundle_sha256: str,
        rows: Sequence[Answers],
        budget: Budget,
    ) -> Reservation:
        """Write the price of a round to the disk, before anything is computed for it.

        The same request gets the same reservation again, no longer as the first.

        Args:
            run: its name; it belongs to one agreement.
            round: its number; a run's rounds only go forward.
            request_sha256: of the request's bytes.
            federation: digest of the agreement under which it is answered.
            coordinator: who asks.
            question: what is asked.
            bundle_sha256: of the approved bundle under which it is answered.
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
        self._foresee(run, round, rows, budget)
        with self._chain.writing():
            known = self._rounds.get((run, round))
            if known is not None:
                self._same(known.reservation, request_sha256, bundle_sha256, rows)
                return known.reservation
            self._in_order(run, round, federation)
            after = self._afford(rows, budget)
            self._chain.append(
                {
                    "kind": "reserved",
                    "time": now(),
                    "run": run,
                    "round": round,
                    "request_sha256": request_sha256,
                    "federation": federation,
                    "coordinator": coordinator,
                    "question": question,
                    "bundle_sha256": bundle_sha256,
                    "rows": _rows(rows),
                    "delta": budget.delta,
                    "epsilon_after": after,
                }
            )
        return replace(self._rounds[run, round].reservation, first=True)

    def release(self, reservation: Reservation, reply: bytes, *, norm: float, layout: str) -> bytes:
        """Store a reply and its receipt, before it may leave.

        Args:
            reservation: what was reserved for it.
            reply: the bytes that will leave.
            norm: L2 norm of the noised answer.
            layout: which numbers it holds, in their order, with the shape of each tensor (`str` of a `Layout`).

        Returns:
            The bytes that may leave: `reply`, or what another computation of the same round released before.

        Raises: StorageError, when it could not be made durable; then nothing may leave.
        """
        with self._chain.writing():
            known = self._rounds.get((reservation.run, reservation.round))
            if known is None or known.reservation != reservation:
                raise StorageError("the ledger does not hold the reservation that is released", do="verify the ledger")
            if known.released is not None:
                return self._reply(known)
            self._chain.append(
                {
                    "kind": "released",
                    "time": now_on_grid(self._chain.body(known.reservation.seq)["time"], self.grid_s),
                    "run": reservation.run,
                    "round": reservation.round,
                    "reservation": reservation.seq,
                    "federation": reservation.federation,
                    "coordinator": reservation.coordinator,
                    "question": reservation.question,
                    "bundle_sha256": reservation.bundle_sha256,
                    "rows": _rows(reservation.rows),
                    "delta": reservation.delta,
                    "epsilon_after": reservation.epsilon_after,
                    "layout": layout,
                    "norm": norm,
                    "bytes": len(reply),
                    "sha256": hashlib.sha256(reply).hexdigest(),
                },
                reply,
            )
            if self._in_memory:
                self._forget_old(reservation)
        return reply

    def reply_of(self, run: str, round: int) -> bytes | None:
        """The reply that was released for this round, whatever the request; None without one.

        Raises: StorageError.
        """
        with self._chain.reading():
            known = self._rounds.get((run, round))
            return None if known is None or known.released is None else self._reply(known)

    def holds(self, run: str, round: int, sha256: str) -> bool:
        """Whether the reply of this SHA-256 to this round is this ledger's, or was adopted. Raises: StorageError."""
        with self._chain.reading():
            known = self._rounds.get((run, round))
            ours = None if known is None or known.released is None else self._chain.body(known.released)["sha256"]
            return ours == sha256 or (run, round, sha256) in self._adopted

    def adopt(self, rounds: Sequence[Adopted], *, coordinator: str, delta: float) -> None:
        """Count rounds that another copy of this ledger answered as spent, whatever the budget says: they are.

        Raises: StorageError; the rounds before the one that failed are then booked.
        """
        for adopted in rounds:
            with self._chain.writing():
                if (adopted.run, adopted.round, adopted.sha256) in self._adopted:
                    continue
                self._chain.append(
                    {
                        "kind": "adopted",
                        "time": now(),
                        "run": adopted.run,
                        "round": adopted.round,
                        "federation": adopted.federation,
                        "coordinator": coordinator,
                        "question": adopted.question,
                        "rows": _rows(adopted.rows),
                        "delta": delta,
                        "epsilon_after": epsilon((*self._history(), *adopted.rows), delta),
                        "sha256": adopted.sha256,
                    }
                )

    # What a reader asks.

    def history(self) -> list[Answers]:
        """Every answer that was ever reserved, one row a kind."""
        with self._chain.reading():
            return list(self._history())

    def spent(self, delta: float) -> float:
        """Epsilon of the cohort over all runs, at delta."""
        return epsilon(self.history(), delta)

    def price_of_run(self, run: str, round: int, rows: Sequence[Answers], delta: float) -> float:
        """Epsilon of one run, at delta, when this round of it is paid; it may be paid already."""
        with self._chain.reading():
            paid = list(self._prices.get(run, ()))
            more = [] if (run, round) in self._rounds else list(rows)
        return epsilon([*paid, *more], delta)

    def runs_of(self, federation: str) -> frozenset[str]:
        """The runs of this agreement for which anything was ever reserved."""
        with self._chain.reading():
            return frozenset(run for run, digest in self._federation_of.items() if digest == federation)

    def entries(self) -> list[Entry]:
        """All entries, oldest first."""
        return [
            Entry(seq, body["kind"], body["time"], body["run"], body["round"], body, digest)
            for seq, body, digest in self._chain.entries()
        ]

    @property
    def head(self) -> tuple[int, str]:
        """How many entries there are, and the last one's digest, 64 hex digits: what a privacy officer writes down."""
        return self._chain.head

    def find(self, digest: str) -> int | None:
        """The number of the entry whose digest this is, 0 for the head of an empty ledger; None: it is not there."""
        return self._chain.find(digest)

    def verify(self) -> int | None:
        """Recompute the chain and the hash of every stored reply: the first broken seq, or None if all is well.

        Removed last entries show too; an older copy of the whole file does not (module docstring).

        Raises: StorageError.
        """
        return self._chain.verify()

    # Inside.

    def _foresee(self, run: str, round: int, rows: tuple[Answers, ...], budget: Budget) -> None:
        """Price a new round before the file is locked: it can take seconds, and the accountant remembers the price."""
        with self._chain.reading():
            if (run, round) in self._rounds:
                return
            history = self._history()
        epsilon((*history, *rows), budget.delta)

    def _same(self, reserved: Reservation, request_sha256: str, bundle_sha256: str, rows: tuple[Answers, ...]) -> None:
        asked = request_sha256, bundle_sha256, rows
        if asked != (reserved.request_sha256, reserved.bundle_sha256, reserved.rows):
            raise Replay(
                f"run {reserved.run!r} round {reserved.round} was reserved for another request, bundle or price",
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
        reply = None if known.released is None else self._chain.reply(known.released)
        if reply is None:
            raise Replay(
                f"run {known.reservation.run!r} round {known.reservation.round} was answered; its reply is not kept",
                do="go on with the next round",
            )
        return reply

    def _forget_old(self, reservation: Reservation) -> None:
        known = self._rounds.get((reservation.run, reservation.round - _KEPT_IN_MEMORY))
        if known is not None and known.released is not None and known.reservation.round > 0:
            self._chain.forget(known.released)

    def _learn(self, seq: int, body: Mapping[str, Any]) -> None:
        key = (body["run"], body["round"])
        if body["kind"] == "released":
            self._rounds[key].released = seq
            return
        rows = tuple(Answers(*row) for row in body["rows"])
        run = body["run"]
        self._prices[run] = list(merged([*self._prices.get(run, ()), *rows]))
        if body["kind"] == "adopted":
            self._adopted.add((*key, body["sha256"]))
            return
        self._rounds[key] = _Round(
            Reservation(
                seq,
                *key,
                body["request_sha256"],
                body["federation"],
                body["coordinator"],
                body.get("question", ""),  # the first ledgers did not write these two
                body.get("bundle_sha256", ""),
                rows,
                body["delta"],
                body["epsilon_after"],
            )
        )
        self._latest[run] = max(body["round"], self._latest.get(run, -1))
        self._federation_of[run] = body["federation"]


def _rows(rows: Sequence[Answers]) -> list[list[float]]:
    """A price as it stands in an entry: noise multiplier, sampling rate and count of each kind of answer."""
    return [[row.noise_multiplier, row.sampling_rate, row.count] for row in rows]
