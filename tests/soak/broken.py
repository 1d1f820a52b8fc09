"""Ledgers that each break one sentence of the promise. The soak must find every one of them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from wardround_client.privacy.ledger import Ledger, Reservation


class FreshNoise(Ledger):
    """A retry is computed again, and its new noise leaves."""

    def stored_reply(self, run: str, round: int, request_sha256: str) -> bytes | None:
        return None

    def release(self, reservation: Reservation, reply: bytes, *, norm: float, layout: str) -> bytes:
        super().release(reservation, reply, norm=norm, layout=layout)
        return reply


class SentBeforeStored(Ledger):
    """A reply leaves at once, and is stored when the next round has come."""

    _late: tuple[Reservation, bytes, float, str] | None = None

    def stored_reply(self, run: str, round: int, request_sha256: str) -> bytes | None:
        if self._late is not None:
            reservation, reply, norm, layout = self._late
            super().release(reservation, reply, norm=norm, layout=layout)
        return super().stored_reply(run, round, request_sha256)

    def release(self, reservation: Reservation, reply: bytes, *, norm: float, layout: str) -> bytes:
        self._late = (reservation, reply, norm, layout)
        return reply


class ReservedTooLate(Ledger):
    """The price is written together with the reply, after patients were looked at."""

    def reserve(self, **named: Any) -> Reservation:
        self._named = named
        asked = {name: value for name, value in named.items() if name != "budget"}
        return Reservation(seq=0, delta=named["budget"].delta, epsilon_after=0.0, first=True, **asked)

    def release(self, reservation: Reservation, reply: bytes, *, norm: float, layout: str) -> bytes:
        return super().release(super().reserve(**self._named), reply, norm=norm, layout=layout)


class Refunding(Ledger):
    """A reservation whose answer never left is given back at the next start."""

    def __init__(self, path: Path | None) -> None:
        assert path is not None
        with closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript("""
                BEGIN IMMEDIATE;
                DROP TRIGGER entries_kept;
                DELETE FROM entries WHERE seq = (SELECT max(seq) FROM entries) AND body LIKE '%"kind":"reserved"%';
                UPDATE sqlite_sequence SET seq = (SELECT max(seq) FROM entries);
                CREATE TRIGGER entries_kept BEFORE DELETE ON entries BEGIN SELECT raise(ABORT, 'append only'); END;
                COMMIT;
            """)
        super().__init__(path)


class TornRelease(Ledger):
    """The receipt and the reply are made durable one after the other."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path)
        chain, append = self._chain, self._chain.append

        def append_in_two(body: Any, reply: bytes | None = None) -> None:
            append(body)
            if reply is not None:
                chain._db.execute("COMMIT")
                chain._db.execute("BEGIN IMMEDIATE")
                (seq,) = chain._db.execute("SELECT max(seq) FROM entries").fetchone()
                chain._db.execute("INSERT INTO replies (seq, reply) VALUES (?, ?)", (seq, reply))

        chain.append = append_in_two  # type: ignore[method-assign]


# What the soak says of each.
BROKEN: dict[type[Ledger], str] = {
    FreshNoise: "two noises left",
    SentBeforeStored: "that is not in the ledger|two noises left",
    ReservedTooLate: "its price is not on the disk",
    Refunding: "an entry was lost or changed|its price is not on the disk|is not the price",
    TornRelease: "is broken at entry|was refused",  # whoever comes first: a reader of the ledger, or the round again
}
