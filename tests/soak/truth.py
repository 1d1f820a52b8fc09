"""What must hold whatever was killed, kept beside the ledger and computed without it, from what was seen to leave."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.soak.worker import Place, request_sha256, run_name

from wardround.accountant import Answers, epsilon, merged, rows_for
from wardround.errors import StorageError
from wardround.wire import peek_reply
from wardround_client.consent.agreement import Agreement
from wardround_client.privacy.ledger import Ledger

# P35: "time, run, round, coordinator, bundle hash, tensor layout, norm, bytes, SHA-256, price, epsilon after".
RECEIPT = {
    *("time", "run", "round", "coordinator", "bundle_sha256", "layout", "norm", "bytes", "sha256"),
    *("rows", "epsilon_after", "question"),
}


class Violation(Exception):
    """The promise was broken."""


class Truth:
    """The promise of one home's ledger, checked against the file after each kill.

    Args:
        path: the ledger.
        agreement: under which every round is asked.
        delta: the hospital's.
    """

    def __init__(self, path: Path, agreement: Agreement, delta: float) -> None:
        self._path, self._agreement, self._delta = path, agreement, delta
        self._rows: list[tuple[int, str, str]] = []  # every entry that was ever seen: seq, body, digest
        self._spent = 0.0
        self._digest = "0" * 64
        self.reserved: dict[Place, int] = {}
        self.released: dict[Place, str] = {}
        self.replies: dict[Place, str] = {}  # SHA-256 of what left
        self.repeated = 0
        self._computed: set[Place] = set()

    def saw_computing(self, place: Place) -> None:
        """A worker has begun to look at patients."""
        self._computed.add(place)

    def saw_reply(self, place: Place, reply: bytes) -> None:
        """Bytes left the hospital. Raises: Violation, when others left before for the same round."""
        _must(peek_reply(reply).refusal is None, f"{place} was refused: {peek_reply(reply).refusal}")
        self.repeated += place in self.replies
        digest = hashlib.sha256(reply).hexdigest()
        _must(self.replies.setdefault(place, digest) == digest, f"two noises left for {place}")

    @property
    def entries(self) -> int:
        """How many entries the chain has."""
        return len(self._rows)

    def check(self) -> None:
        """After a kill. Raises: Violation."""
        try:
            with closing(Ledger(self._path)) as ledger:
                broken, spent = ledger.verify(), ledger.spent(self._delta)
        except StorageError as error:
            raise Violation(f"the ledger does not open: {error}") from None
        _must(broken is None, f"the ledger is broken at entry {broken}")
        with closing(sqlite3.connect(self._path)) as db:
            rows = db.execute("SELECT seq, body, digest FROM entries ORDER BY seq").fetchall()
        _must(rows[: len(self._rows)] == self._rows, "an entry was lost or changed")
        for seq, text, digest in rows[len(self._rows) :]:
            self._digest = hashlib.sha256(f"{self._digest}\n{text}".encode()).hexdigest()
            _must(digest == self._digest, f"the chain is broken at entry {seq}")
            self._learn(seq, json.loads(text))
        self._rows = rows
        self._check_money(spent)
        for place in self._computed:
            _must(place in self.reserved, f"{place} was computed, and its price is not on the disk")
        for place, digest in self.replies.items():
            _must(self.released.get(place) == digest, f"a reply left for {place} that is not in the ledger")

    def _learn(self, seq: int, body: dict[str, Any]) -> None:
        place = int(body["run"].removeprefix("run-")), body["round"]
        _must(body["run"] == run_name(place[0]), f"a run called {body['run']!r}")
        _must(body["rows"] == [[r.noise_multiplier, r.sampling_rate, r.count] for r in self._price(place)], "a price")
        if body["kind"] == "reserved":
            _must(place not in self.reserved, f"{place} was reserved twice")
            _must(body["request_sha256"] == request_sha256(self._agreement, place), f"another request for {place}")
            self.reserved[place] = seq
        else:
            _must(place not in self.released, f"{place} was released twice")
            _must(self.reserved.get(place) == body["reservation"], f"{place} was released without a reservation")
            _must(body.keys() >= RECEIPT, f"the receipt of {place} lacks {RECEIPT - body.keys()}")
            self.released[place] = body["sha256"]

    def _check_money(self, spent: float) -> None:
        _must(spent == self._price_of(self.reserved), f"epsilon {spent} is not the price of what was reserved")
        _must(spent >= self._price_of(self.replies), f"epsilon {spent} is less than the price of what left")
        _must(spent >= self._spent, f"epsilon fell from {self._spent} to {spent}")
        self._spent = spent

    def _price_of(self, places: Iterable[Place]) -> float:
        return epsilon(merged(row for place in places for row in self._price(place)), self._delta)

    def _price(self, place: Place) -> tuple[Answers, ...]:
        return rows_for(self._agreement.calibration, self._agreement.schedule[place[1]])


def _must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
