"""The ledger on a bad day: a full disk, torn and cut files, flipped bytes, an exchanged file, two daemons at once.

In each it either holds what it held, or says that it does not; it never goes on with less than was spent.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest
from tests.client.privacy import ledgers

from wardround.accountant import Answers
from wardround.errors import StorageError
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Budget, Ledger

reserve = partial(ledgers.reserve, rows=(Answers(20.0, 1.0, 1),), budget=Budget(epsilon=100.0, delta=1e-3))
ROUNDS = 4
Held = tuple[list[tuple[int, str, str]], dict[int, bytes]]  # entries, replies


class Cut(Exception):
    """Ends a transaction in its middle."""


def reply(round: int) -> bytes:
    return random.Random(round).randbytes(6000)


def answer(ledger: Ledger, round: int) -> bytes:
    return ledger.release(reserve(ledger, round), reply(round), norm=1.0, layout="w 4")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger of ROUNDS released rounds."""
    path = tmp_path_factory.mktemp("ledger") / "ledger.sqlite"
    with closing(Ledger(path)) as ledger:
        for number in range(ROUNDS):
            answer(ledger, number)
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copy(whole, tmp_path / "ledger.sqlite"))


def held(path: Path) -> Held:
    with closing(sqlite3.connect(path)) as db:
        entries = db.execute("SELECT seq, body, digest FROM entries ORDER BY seq").fetchall()
        return entries, dict(db.execute("SELECT seq, reply FROM replies").fetchall())


def damage_is_told(path: Path) -> bool:
    """Whether opening or verifying says that something is wrong. Anything but a StorageError fails the test."""
    try:
        with closing(Ledger(path)) as ledger:
            return ledger.verify() is not None
    except StorageError as error:
        assert "Next: " in str(error)
        return True


# The disk.


def test_a_price_is_written_so_that_a_power_cut_does_not_lose_it(path: Path) -> None:
    """P28: "Reserve the whole round's price and fsync BEFORE the first answer is computed"."""
    with closing(Ledger(path)) as ledger:
        pragma = {name: ledger._chain._db.execute(f"PRAGMA {name}").fetchone()[0] for name in
                  ("journal_mode", "synchronous", "fullfsync")}  # fmt: skip
    extra = 3
    assert pragma == {"journal_mode": "delete", "synchronous": extra, "fullfsync": 1}


def test_wherever_the_disk_fills_up_a_round_is_written_whole_or_not_at_all(whole: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    outcomes = set()
    size = whole.stat().st_size
    for room in [*range(0, 12_000, 600), *range(size - 600, size + 14_000, 1400)]:
        path = Path(shutil.copy(whole, tmp_path / f"{room}.sqlite"))
        ledger = Ledger(path)
        left = None
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # what the kernel says at the limit: file too large
        try:
            left = answer(ledger, ROUNDS)
        except StorageError as error:
            assert "disk" in str(error) and "nothing left this hospital" in str(error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        kinds = [entry.kind for entry in ledger.entries()[2 * ROUNDS :]]
        outcomes.add((*kinds, left is not None))
        assert ledger.stored_reply("run", ROUNDS, "a" * 64) == left
        assert ledger.verify() is None
        assert answer(ledger, ROUNDS) == reply(ROUNDS), "there is room again"
        ledger.close()
        assert not damage_is_told(path)
    assert outcomes == {(False,), ("reserved", False), ("reserved", "released", True)}


# The files.


def in_transaction(path: Path, copy: Path, *, spilled: bool) -> None:
    """Copy a ledger and its journal in the middle of a release; spilled: half of it stands in the file already."""
    with closing(Ledger(path)) as ledger:
        reserve(ledger, ROUNDS)
        if spilled:
            ledger._chain._db.execute("PRAGMA cache_size = 1")
        with pytest.raises(Cut), ledger._chain.writing():
            body = ledger.entries()[-1].body
            ledger._chain.append(dict(body), random.Random(1).randbytes(100_000))
            for suffix in ("", "-journal"):
                shutil.copy(f"{path}{suffix}", f"{copy}{suffix}")
            raise Cut
    assert (copy.read_bytes() != path.read_bytes()) == spilled


@pytest.mark.parametrize("kept", [1.0, 0.99, 0.5, 0.1, 0.01, 0.0])
def test_a_crash_leaves_a_torn_journal_and_every_entry(path: Path, tmp_path: Path, kept: float) -> None:
    """The file is touched only after its journal is on the disk: a torn journal belongs to an untouched file."""
    copy = tmp_path / "copy.sqlite"
    in_transaction(path, copy, spilled=False)
    journal = Path(f"{copy}-journal")
    journal.write_bytes(journal.read_bytes()[: int(journal.stat().st_size * kept)])
    assert not damage_is_told(copy)
    assert held(copy) == held(path)


def test_a_journal_undoes_what_it_was_written_for(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.sqlite"
    in_transaction(path, copy, spilled=True)
    assert not damage_is_told(copy)
    assert held(copy) == held(path)


@pytest.mark.parametrize("seed", range(8))
def test_a_journal_that_somebody_damaged_or_removed_hides_no_loss(path: Path, tmp_path: Path, seed: int) -> None:
    copy, rng = tmp_path / "copy.sqlite", random.Random(seed)
    in_transaction(path, copy, spilled=True)
    journal = Path(f"{copy}-journal")
    data = bytearray(journal.read_bytes())
    if seed == 0:
        journal.unlink()
    elif seed < 4:
        journal.write_bytes(data[: rng.randrange(len(data))])
    else:
        data[rng.randrange(len(data))] ^= 0xFF
        journal.write_bytes(data)
    assert damage_is_told(copy) or held(copy)[0][: 2 * ROUNDS + 1] == held(path)[0]


def test_a_file_that_was_cut_off_anywhere_is_told(whole: Path, path: Path) -> None:
    data = whole.read_bytes()
    rng = random.Random(3)
    for size in [0, 1, 15, 16, 99, 100, 512, *range(4096, len(data), 4096), *rng.sample(range(len(data)), 30)]:
        path.write_bytes(data[:size])
        assert damage_is_told(path), f"{size} of {len(data)} bytes"


COLUMNS = {
    "entries.seq": "UPDATE entries SET seq = seq + 100 WHERE seq = {seq}",
    "entries.body": "UPDATE entries SET body = {flipped} WHERE seq = {seq}",
    "entries.body as bytes": "UPDATE entries SET body = CAST(body AS BLOB) WHERE seq = {seq}",
    "entries.body not text": "UPDATE entries SET body = CAST(x'ff' || body AS TEXT) WHERE seq = {seq}",
    "entries.digest": "UPDATE entries SET digest = {flipped} WHERE seq = {seq}",
    "replies.seq": "UPDATE replies SET seq = seq + 1 WHERE seq = {seq}",
    "replies.reply": "UPDATE replies SET reply = {flipped} WHERE seq = {seq}",
    "replies.reply cut": "UPDATE replies SET reply = substr(reply, 1, 10) WHERE seq = {seq}",
    "replies, one of no entry": "INSERT INTO replies (seq, reply) VALUES (1000, x'00')",
    "sqlite_sequence.seq": "UPDATE sqlite_sequence SET seq = seq + 1",
}


@pytest.mark.parametrize("seq", [2, 2 * ROUNDS])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_change_in_any_column_is_told(path: Path, column: str, seq: int) -> None:
    name = column.partition(".")[2].partition(" ")[0]
    flipped = f"CAST(substr({name}, 1, 20) || char(unicode(substr({name}, 21, 1)) + 1) || substr({name}, 22) AS TEXT)"
    if name == "reply":
        flipped = "CAST(x'00' || substr(reply, 2) AS BLOB)"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        for (trigger,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f"DROP TRIGGER {trigger}")
        assert db.execute(COLUMNS[column].format(seq=seq, flipped=flipped)).rowcount == 1
    assert damage_is_told(path)


def test_a_flipped_byte_anywhere_in_the_file_is_told_or_changes_nothing(whole: Path, path: Path) -> None:
    data, before, rng = whole.read_bytes(), held(whole), random.Random(11)
    told = 0
    for position in [*range(0, 100, 3), *rng.sample(range(len(data)), 300)]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        if damage_is_told(path):
            told += 1
        else:
            assert held(path) == before, f"byte {position}"
    assert told > 100


# The hand of a person.


def test_a_daemon_notices_that_its_ledger_was_exchanged(path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path / "backup")
    with closing(Ledger(path)) as ledger:
        answer(ledger, ROUNDS)
        (tmp_path / "backup").replace(path)  # another file under the same name
        with pytest.raises(StorageError, match="exchanged"):
            reserve(ledger, ROUNDS + 1)
        with pytest.raises(StorageError, match="exchanged"):
            ledger.stored_reply("run", ROUNDS, "a" * 64)
        path.unlink()
        with pytest.raises(StorageError, match="cannot be used"):
            reserve(ledger, ROUNDS + 1)


def test_a_daemon_notices_an_older_copy_that_is_written_into_its_file(path: Path, tmp_path: Path) -> None:
    older = path.read_bytes()
    with closing(Ledger(path)) as ledger:
        answer(ledger, ROUNDS)
        with path.open("r+b") as file:
            file.write(older)
            file.truncate()
        with pytest.raises(StorageError):
            reserve(ledger, ROUNDS + 1)


def test_an_empty_file_is_damage_and_never_a_new_budget(path: Path) -> None:
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="is empty or no ledger"):
        Ledger(path)


def test_a_chain_of_entries_that_mean_nothing_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    with closing(Ledger(path)) as ledger, pytest.raises(StorageError, match="broken at entry 1"):  # noqa: SIM117
        with ledger._chain.writing():
            ledger._chain.append({"kind": "released", "run": "run", "round": 0})
    assert damage_is_told(path)


# Two at once.

SPENDER = """
import sys
from pathlib import Path
from wardround.errors import BudgetExceeded
from wardround.accountant import Answers
from wardround_client.privacy.ledger import Budget, Ledger
path, run = Path(sys.argv[1]), sys.argv[2]
ledger = Ledger(path)
print("ready", flush=True)
sys.stdin.readline()
for number in range(1000):
    try:
        ledger.reserve(run=run, round=number, request_sha256="a" * 64, federation="f" * 64, coordinator="c",
            question="gradient", bundle_sha256="b" * 64, rows=[Answers(8.0, 1.0, 1)], budget=Budget(2.0, 1e-3))
    except BudgetExceeded:
        break
print(number, flush=True)
"""


def test_two_processes_together_never_pass_the_budget(tmp_path: Path) -> None:
    """P36: "The budget belongs to the cohort, not to a run"."""
    path = tmp_path / "ledger.sqlite"
    spenders = [
        subprocess.Popen(
            [sys.executable, "-c", SPENDER, str(path), run], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for run in ("spring", "autumn")
    ]
    try:
        for spender in spenders:
            assert spender.stdout is not None and spender.stdout.readline() == "ready\n"
        rounds = [int(spender.communicate("go\n", timeout=600)[0]) for spender in spenders]
    finally:
        for spender in spenders:
            spender.kill()
            spender.communicate()
    with closing(Ledger(path)) as ledger:
        assert ledger.spent(1e-3) <= 2.0
        assert sum(rounds) == len(ledger.entries()) == sum(row.count for row in ledger.history())
        alone = Ledger(None)
        with pytest.raises(Exception, match="over all runs"):
            for _ in range(sum(rounds) + 1):
                ledgers.reserve(alone, len(alone.entries()), rows=(Answers(8.0, 1.0, 1),), budget=Budget(2.0, 1e-3))
        assert len(alone.entries()) == sum(rounds), "and together they may spend all of it"
        assert ledger.verify() is None


def test_a_home_whose_ledger_is_gone_gets_no_fresh_budget(tmp_path: Path) -> None:
    toml = '[hospital]\nname = "north"\ndeclared_patients = 60\n'
    home = tmp_path / "home"
    Hospital.create(home, toml).ledger.close()
    Hospital.open(home).ledger.close()
    (home / "ledger.sqlite").unlink()
    with pytest.raises(StorageError, match="is gone"):
        Hospital.open(home)
    assert not (home / "ledger.sqlite").exists()
