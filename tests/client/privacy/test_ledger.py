"""The ledger: reserve before computing, store before releasing, never a second noise, never a lost cent."""

from __future__ import annotations

import hashlib
import json
import os
import random
import sqlite3
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.client.privacy.ledgers import BUDGET, PRICE, reserve

import wardround_client.privacy.ledger as ledger_module
from wardround.accountant import Answers, epsilon, merged
from wardround.errors import BudgetExceeded, Replay, StorageError
from wardround_client.privacy.chain import Chain
from wardround_client.privacy.ledger import Budget, Ledger, Reservation

DELTA = BUDGET.delta
LAYOUT = "head.weight 1x2, head.bias 1"


def test_a_round_is_reserved_then_released_then_repeated_byte_for_byte() -> None:
    ledger = Ledger(None)
    assert ledger.stored_reply("run", 0, "a" * 64) is None
    reservation = reserve(ledger, 0)
    assert ledger.spent(DELTA) == epsilon(PRICE, DELTA) == reservation.epsilon_after
    assert ledger.release(reservation, b"noise", norm=1.5, layout=LAYOUT) == b"noise"
    assert ledger.stored_reply("run", 0, "a" * 64) == ledger.reply_of("run", 0) == b"noise"
    reserved, released = ledger.entries()
    assert (reserved.kind, released.kind) == ("reserved", "released")
    assert released.body["sha256"] == hashlib.sha256(b"noise").hexdigest()
    assert (released.body["bytes"], released.body["norm"], released.body["layout"]) == (5, 1.5, LAYOUT)
    assert ledger.verify() is None


def test_the_budget_holds_over_all_runs_and_a_refusal_costs_nothing() -> None:
    ledger = Ledger(None)
    for number in range(1000):
        try:
            reserve(ledger, 0, run=f"run{number}")
        except BudgetExceeded as refused:
            assert "left" in str(refused)
            break
    before = ledger.spent(DELTA)
    assert before <= BUDGET.epsilon < epsilon([*ledger.history(), *PRICE], DELTA)
    entries = len(ledger.entries())
    with pytest.raises(BudgetExceeded):
        reserve(ledger, 0, run="another")
    assert (ledger.spent(DELTA), len(ledger.entries())) == (before, entries)


def test_the_limit_of_one_round_holds() -> None:
    ledger = Ledger(None)
    with pytest.raises(BudgetExceeded, match="epsilon_per_round"):
        reserve(ledger, 0, budget=Budget(5.0, DELTA, epsilon_per_round=0.1))
    assert ledger.entries() == []


def test_another_request_for_the_same_round_is_a_replay() -> None:
    ledger = Ledger(None)
    reservation = reserve(ledger, 1)
    for _ in range(2):
        with pytest.raises(Replay):
            ledger.stored_reply("run", 1, "b" * 64)
        with pytest.raises(Replay):
            reserve(ledger, 1, request_sha256="b" * 64)
        ledger.release(reservation, b"noise", norm=0.0, layout=LAYOUT)


def test_an_old_round_another_agreement_and_another_price_are_replays() -> None:
    ledger = Ledger(None)
    reserve(ledger, 4)
    with pytest.raises(Replay, match="is over"):
        reserve(ledger, 3)
    with pytest.raises(Replay, match="another federation"):
        reserve(ledger, 5, federation="e" * 64)
    with pytest.raises(Replay, match="price"):
        reserve(ledger, 4, rows=(Answers(5.0, 1.0, 1),))
    assert len(ledger.entries()) == 1


def test_a_retry_after_a_crash_uses_the_same_reservation(tmp_path: Path) -> None:
    first = Ledger(tmp_path / "ledger.sqlite")
    reservation = reserve(first, 0)
    assert reservation.first
    assert not reserve(first, 0).first
    first.close()  # the process died before it released anything
    second = Ledger(tmp_path / "ledger.sqlite")
    assert reserve(second, 0) == reservation
    assert not reserve(second, 0).first, "or it would be computed twice"
    assert second.spent(DELTA) == epsilon(PRICE, DELTA)
    second.close()


def test_two_computations_of_one_round_release_one_reply(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "ledger.sqlite"), Ledger(tmp_path / "ledger.sqlite")
    a, b = reserve(one, 0), reserve(other, 0)
    assert a == b
    assert (a.first, b.first) == (True, False)
    assert one.release(a, b"first", norm=1.0, layout=LAYOUT) == b"first"
    assert other.release(b, b"second", norm=1.0, layout=LAYOUT) == b"first"
    one.close()
    other.close()


def test_threads_and_connections_share_one_budget(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    Ledger(path).close()
    refused = []

    def spend(name: str) -> None:
        ledger = Ledger(path)
        for number in range(12):
            try:
                ledger.release(reserve(ledger, number, run=name), name.encode(), norm=0.0, layout=LAYOUT)
            except BudgetExceeded:
                refused.append(name)
        ledger.close()

    threads = [threading.Thread(target=spend, args=(name,)) for name in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ledger = Ledger(path)
    assert refused
    assert ledger.spent(DELTA) <= BUDGET.epsilon
    assert len(ledger.entries()) == 2 * (36 - len(refused))
    assert ledger.verify() is None
    ledger.close()


def test_many_may_open_a_new_ledger_at_once(tmp_path: Path) -> None:
    path, together = tmp_path / "ledger.sqlite", threading.Barrier(8)

    def first(run: str) -> Reservation:
        together.wait(timeout=300)
        with closing(Ledger(path)) as ledger:
            return reserve(ledger, 0, run=run, rows=(Answers(50.0, 1.0, 1),))

    with ThreadPoolExecutor(8) as pool:
        reserved = list(pool.map(first, "abcdefgh"))
    with closing(Ledger(path)) as ledger:
        assert sorted(reservation.seq for reservation in reserved) == list(range(1, 9))
        assert {entry.run for entry in ledger.entries()} == set("abcdefgh")
    assert list(tmp_path.iterdir()) == [path], "nothing is left of the others' attempts"


def test_a_ledger_of_the_first_form_is_still_paid_for(tmp_path: Path) -> None:
    """The first ledgers named neither question nor bundle; what they spent stays spent."""
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        reserve(ledger, 0)
        body = {name: value for name, value in ledger.entries()[0].body.items()
                if name not in ("question", "bundle_sha256")}  # fmt: skip
    path.unlink()
    with closing(Chain(path, lambda seq, body: None)) as chain, chain.writing():
        chain.append(body)
    with closing(Ledger(path)) as ledger:
        assert ledger.spent(DELTA) == epsilon(PRICE, DELTA)
        assert ledger.verify() is None


def test_entries_can_neither_be_changed_nor_removed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    ledger.release(reserve(ledger, 0), b"noise", norm=0.0, layout=LAYOUT)
    ledger.close()
    assert path.stat().st_mode & 0o077 == 0
    with sqlite3.connect(path) as db:
        for statement in (
            "UPDATE entries SET body = '{}'",
            "DELETE FROM entries",
            "UPDATE replies SET reply = x'00'",
            "DELETE FROM replies",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="append only"):
                db.execute(statement)
    db.close()


TAMPERING = {
    "an edited price": "UPDATE entries SET body = replace(body, '4.0', '9.0') WHERE seq = 3",
    "a removed entry": "DELETE FROM entries WHERE seq = 3",
    "removed last entries": "DELETE FROM entries WHERE seq > 4",
    "an exchanged reply": "UPDATE replies SET reply = x'00' WHERE seq = 4",
    "a removed reply": "DELETE FROM replies WHERE seq = 4",
}


@pytest.mark.parametrize("what", TAMPERING)
def test_tampering_is_found(tmp_path: Path, what: str) -> None:
    path = tmp_path / "ledger.sqlite"
    ledger = Ledger(path)
    for number in range(3):
        ledger.release(reserve(ledger, number), b"noise", norm=0.0, layout=LAYOUT)
    assert ledger.verify() is None
    db = sqlite3.connect(path, isolation_level=None)
    for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        db.execute(f"DROP TRIGGER {name}")
    db.execute(TAMPERING[what])
    db.close()
    assert ledger.verify() in (3, 4, 5)
    ledger.close()
    if "entry" in what or "price" in what:
        with pytest.raises(StorageError, match="broken at entry 3"):
            Ledger(path)


def test_a_file_that_is_no_ledger_is_a_clear_error(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(b"this is not a database, but it is long enough to look at" * 50)
    with pytest.raises(StorageError, match="cannot be used"):
        Ledger(path)
    with pytest.raises(StorageError):
        Ledger(tmp_path / "no" / "such" / "folder" / "ledger.sqlite")


def test_a_full_disk_spends_nothing_and_releases_nothing(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite")
    reservation = reserve(ledger, 0)
    pages = ledger._chain._db.execute("PRAGMA page_count").fetchone()[0]
    ledger._chain._db.execute(f"PRAGMA max_page_count = {pages}")  # SQLite's own way to a full disk
    with pytest.raises(StorageError, match="full"):
        ledger.release(reservation, os.urandom(100_000), norm=0.0, layout=LAYOUT)
    assert ledger.stored_reply("run", 0, "a" * 64) is None
    with pytest.raises(StorageError, match="full"):
        for number in range(1, 1000):
            reserve(ledger, number, rows=(Answers(1000.0, 1.0, 1),))
    ledger._chain._db.execute("PRAGMA max_page_count = 1000000")
    assert ledger.release(reservation, b"noise", norm=0.0, layout=LAYOUT) == b"noise"
    assert ledger.verify() is None
    ledger.close()


def test_a_simulation_s_ledger_keeps_few_replies() -> None:
    ledger = Ledger(None)
    for number in range(6):
        ledger.release(reserve(ledger, number, rows=(Answers(50.0, 1.0, 1),)), b"noise", norm=0.0, layout=LAYOUT)
    assert ledger.reply_of("run", 0) == ledger.reply_of("run", 5) == ledger.reply_of("run", 4) == b"noise"
    with pytest.raises(Replay, match="not kept"):
        ledger.reply_of("run", 2)
    assert ledger.verify() is None


def test_a_price_is_computed_before_the_file_is_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It can take seconds, and the accountant remembers it: nobody else's round may wait so long."""
    ledger = Ledger(None)
    reserve(ledger, 0)
    priced: list[tuple[tuple[Answers, ...], bool]] = []

    def spy(rows: Iterable[Answers], delta: float) -> float:
        rows = merged(rows)
        priced.append((rows, ledger._chain._db.in_transaction))
        return epsilon(rows, delta)

    monkeypatch.setattr(ledger_module, "epsilon", spy)
    reserve(ledger, 1)
    assert [locked for _, locked in priced] == [False, True]
    assert priced[0][0] == priced[1][0] == (Answers(4.0, 1.0, 2),)


class LedgerMachine(RuleBasedStateMachine):
    """Any order of reserving, releasing, retrying and restarting."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger(None)
        self.open: dict[tuple[str, int], tuple[str, Reservation]] = {}
        self.released: dict[tuple[str, int], tuple[str, bytes]] = {}

    @rule(
        run=st.sampled_from("ab"),
        number=st.integers(0, 3),
        request=st.sampled_from(["a" * 64, "b" * 64]),
        sigma=st.sampled_from([1.0, 2.0, 5.0]),
    )
    def ask(self, run: str, number: int, request: str, sigma: float) -> None:
        before = len(self.ledger.entries())
        try:
            reservation = reserve(self.ledger, number, run=run, request_sha256=request, rows=(Answers(sigma, 1.0, 1),))
        except (BudgetExceeded, Replay):
            assert len(self.ledger.entries()) == before
            return
        assert self.open.setdefault((run, number), (request, reservation)) == (request, reservation)

    @rule(reply=st.binary(max_size=8), pick=st.randoms(use_true_random=False))
    def release(self, reply: bytes, pick: random.Random) -> None:
        if not self.open:
            return
        key = pick.choice(sorted(self.open))
        request, reservation = self.open[key]
        try:
            left = self.ledger.release(reservation, reply, norm=0.0, layout=LAYOUT)
        except Replay:
            assert key in self.released, "only an old reply, which a ledger in memory does not keep"
            return
        assert self.released.setdefault(key, (request, left)) == (request, left)

    @invariant()
    def replies_stay(self) -> None:
        for (run, number), (request, reply) in self.released.items():
            if number in (0, max(n for r, n in self.open if r == run)):
                assert self.ledger.stored_reply(run, number, request) == reply

    @invariant()
    def the_promise_holds(self) -> None:
        assert self.ledger.spent(DELTA) <= BUDGET.epsilon
        rows = [row for _, reservation in self.open.values() for row in reservation.rows]
        assert self.ledger.spent(DELTA) == epsilon(rows, DELTA)
        assert self.ledger.verify() is None


TestLedgerMachine = LedgerMachine.TestCase
TestLedgerMachine.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


@given(st.sampled_from([0.5, 7.0, 60.0, 3600.0]))
@settings(max_examples=4, deadline=None)
def test_a_receipt_says_no_more_about_how_long_a_round_took_than_its_reply_did(grid_s: float) -> None:
    """Replies leave on this grid, and whoever sees a certificate of the ledger sees no finer one."""
    ledger = Ledger(None)
    ledger.grid_s = grid_s
    ledger.release(reserve(ledger, 0), b"noise", norm=0.0, layout=LAYOUT)
    reserved, released = (datetime.fromisoformat(entry.time) for entry in ledger.entries())
    took = (released - reserved).total_seconds()
    assert took > 0
    assert took % grid_s == pytest.approx(0, abs=1e-6)


def test_the_body_of_an_entry_is_what_a_reader_can_recompute() -> None:
    ledger = Ledger(None)
    reserve(ledger, 0)
    (entry,) = ledger.entries()
    text = json.dumps(entry.body, sort_keys=True, separators=(",", ":"))
    assert entry.digest == hashlib.sha256(f"{'0' * 64}\n{text}".encode()).hexdigest()
