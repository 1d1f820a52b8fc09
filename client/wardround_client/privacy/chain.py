"""The file under the ledger: one append-only SQLite table, each entry chained to the one before by SHA-256.

    digest(n) = SHA-256(digest(n - 1), a newline, body(n)),    digest(0) = 64 zeros

A body is canonical JSON, so that a reader in any language can recompute the chain. The last digest is the chain's head:
it stands for every entry before it. Whoever wrote it down can ask years later whether those entries are still there.

What is written is on the disk, through fsync, when `writing` ends; a crash before leaves the file as it was. Threads
and processes may share a file. Each look at it first reads what is new, checks its digests, and checks that the last
entry seen is still there: an older copy, or another file, that is put under a running hospital is noticed at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from wardround.errors import StorageError
from wardround.files import sync_folder

GENESIS = "0" * 64
FORM = 0
"""Of the file, as PRAGMA user_version says it: who changes it so that an older version would misread it adds 1."""
_BUSY_S = 30.0
OFFICER = "stop this hospital and find out who changed the file; restore it only with a privacy officer"

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE entries (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,  -- from 1, without a gap
    body TEXT NOT NULL,                     -- canonical JSON: everything that is hashed
    digest TEXT NOT NULL                    -- SHA-256 of the digest before and the body
);
CREATE TABLE replies (seq INTEGER PRIMARY KEY REFERENCES entries (seq), reply BLOB NOT NULL);
CREATE TRIGGER entries_stay BEFORE UPDATE ON entries BEGIN SELECT raise(ABORT, 'append only'); END;
CREATE TRIGGER entries_kept BEFORE DELETE ON entries BEGIN SELECT raise(ABORT, 'append only'); END;
CREATE TRIGGER replies_stay BEFORE UPDATE ON replies BEGIN SELECT raise(ABORT, 'append only'); END;
"""
_KEEP_REPLIES = """
CREATE TRIGGER replies_kept BEFORE DELETE ON replies BEGIN SELECT raise(ABORT, 'append only'); END;
"""


class Chain:
    """A chained file, or one in memory (path None), which may forget replies.

    Args:
        path: the SQLite file; it is made, readable by its owner alone, when it is not there.
        learn: told each entry once, in order, as soon as it is durable: its number (from 1) and its body.

    Raises:
        StorageError: the file cannot be opened or is not a ledger, or its chain is broken.
    """

    def __init__(self, path: Path | None, learn: Callable[[int, Mapping[str, Any]], None]) -> None:
        self._path, self._learn = path, learn
        self._lock = threading.RLock()
        self._seq, self._digest = 0, GENESIS  # how far the file, which is the truth, was read
        with self._guarded():
            if path is not None and not path.exists():
                _create(path)
            self._db = _connect(path)
            if path is None:
                self._db.executescript(_SCHEMA + "COMMIT;")
            self._file = self._identity()
            if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone():
                raise self._broken("is empty or no ledger: the file was cut off or exchanged")
            self._catch_up()

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """What others wrote is known inside. Raises: StorageError."""
        with self._guarded(), self._lock:
            self._catch_up()
            yield

    @contextmanager
    def writing(self) -> Iterator[None]:
        """One transaction: what others wrote is known inside, and what is appended is on the disk at the end.

        Raises: StorageError; then nothing was appended, or it will be known at the next look.
        """
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

    def append(self, body: Mapping[str, Any], reply: bytes | None = None) -> None:
        """Inside `writing`, once: the next entry, and the reply of a release."""
        text, seq = text_of(body), self._seq + 1
        entry = (seq, text, chained(self._digest, text))
        self._db.execute("INSERT INTO entries (seq, body, digest) VALUES (?, ?, ?)", entry)
        if reply is not None:
            self._db.execute("INSERT INTO replies (seq, reply) VALUES (?, ?)", (seq, reply))

    def reply(self, seq: int) -> bytes | None:
        """Inside `reading` or `writing`: the reply that was stored with entry seq; None, when it is not kept."""
        found = self._db.execute("SELECT reply FROM replies WHERE seq = ?", (seq,)).fetchone()
        return None if found is None else bytes(found[0])

    def body(self, seq: int) -> dict[str, Any]:
        """Inside `reading` or `writing`: what entry seq, which is there, says."""
        found = self._db.execute("SELECT body FROM entries WHERE seq = ?", (seq,)).fetchone()
        body: dict[str, Any] = json.loads(found[0])
        return body

    def forget(self, seq: int) -> None:
        """Inside `writing`, in memory only: drop the reply of entry seq. A file's triggers forbid it."""
        self._db.execute("DELETE FROM replies WHERE seq = ?", (seq,))

    @property
    def head(self) -> tuple[int, str]:
        """How many entries there are, and the last one's digest, 64 hex digits."""
        with self.reading():
            return self._seq, self._digest

    def find(self, digest: str) -> int | None:
        """The number of the entry that has this digest (0 for the 64 zeros); None, when there is none."""
        with self.reading():
            found = self._db.execute("SELECT seq FROM entries WHERE digest = ?", (digest,)).fetchone()
            return int(found[0]) if found else 0 if digest == GENESIS else None

    def entries(self) -> list[tuple[int, dict[str, Any], str]]:
        """Number, body and digest of all entries, oldest first."""
        with self.reading():
            rows = self._db.execute("SELECT seq, body, digest FROM entries ORDER BY seq").fetchall()
        return [(seq, json.loads(text), digest) for seq, text, digest in rows]

    def verify(self) -> int | None:
        """Recompute the chain and the hash of every stored reply: the first broken seq, or None if all is well.

        Removed last entries show too: SQLite keeps the greatest number that it ever gave. Raises: StorageError.
        """
        with self._guarded(), self._lock:
            self._db.execute("BEGIN")  # one moment of the file for the chain; a daemon may go on meanwhile
            try:
                broken, bodies = self._verify_chain()
            finally:
                self._db.execute("ROLLBACK")
            # Replies one by one: reading many megabytes in one transaction would hold up a daemon's next round.
            fits = (self._reply_fits(seq, body) for seq, body in enumerate(bodies, 1))
            return next((seq for seq, good in enumerate(fits, 1) if not good), broken)

    def _verify_chain(self) -> tuple[int | None, list[dict[str, Any]]]:
        """The first broken seq, and the bodies before it."""
        digest = GENESIS
        bodies: list[dict[str, Any]] = []
        for seq, text, claimed in self._db.execute("SELECT seq, body, digest FROM entries ORDER BY seq"):
            digest = chained(digest, text)
            if seq != len(bodies) + 1 or digest != claimed or not text.startswith("{"):
                return len(bodies) + 1, bodies
            bodies.append(json.loads(text))
        given = self._db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'entries'").fetchone()
        if (given[0] if given else 0) != len(bodies):
            return len(bodies) + 1, bodies
        stray = self._db.execute("SELECT min(seq) FROM replies WHERE seq NOT IN (SELECT seq FROM entries)").fetchone()
        return (None if stray[0] is None else int(stray[0])), bodies

    def _reply_fits(self, seq: int, body: Mapping[str, Any]) -> bool:
        """Whether a release's stored reply is the one of its receipt (in memory, old replies are dropped)."""
        reply = self.reply(seq)
        if body["kind"] != "released":
            return reply is None
        if reply is None:
            return self._path is None
        return bool(hashlib.sha256(reply).hexdigest() == body["sha256"] and len(reply) == body["bytes"])

    def _catch_up(self) -> None:
        """Read entries that are new since the last look, checking the chain. Raises: StorageError."""
        if self._identity() != self._file:
            raise self._broken("was exchanged for another file while this program ran")
        rows = self._db.execute(
            "SELECT seq, body, digest FROM entries WHERE seq >= ? ORDER BY seq", (self._seq,)
        ).fetchall()
        if self._seq:  # the last one that was seen must still be there
            if not rows or (rows[0][0], rows[0][2]) != (self._seq, self._digest):
                raise self._broken(f"lost its entry {self._seq} while this program ran")
            del rows[0]
        for seq, text, claimed in rows:
            digest = chained(self._digest, text)
            if seq != self._seq + 1 or digest != claimed:
                raise self._broken(f"is broken at entry {self._seq + 1}")
            try:
                self._learn(seq, json.loads(text))
            except (ValueError, KeyError, TypeError):  # whoever wrote it knew how to chain, and not what an entry is
                raise self._broken(f"is broken at entry {seq}") from None
            self._seq, self._digest = seq, digest

    def _identity(self) -> tuple[int, int]:
        """Device and inode of the file that is at the path now."""
        if self._path is None:
            return 0, 0
        found = self._path.stat()
        return found.st_dev, found.st_ino

    def _broken(self, how: str) -> StorageError:
        return StorageError(f"the ledger {self._path or 'in memory'} {how}", do=OFFICER)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise self._unusable(error, "free disk space, or see who may read and write the file") from None
        except sqlite3.Error as error:  # malformed, or not a database
            raise self._unusable(error, OFFICER) from None
        except OSError as error:
            raise self._unusable(error, "see whether the file and its folder are there and may be used") from None

    def _unusable(self, error: Exception, do: str) -> StorageError:
        return StorageError(
            f"the ledger {self._path or 'in memory'} cannot be used ({error})", do=f"{do}; nothing left this hospital"
        )


def _create(path: Path) -> None:
    """A new ledger, whole or not at all: so an empty file at `path` is damage, never a beginning."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    scratch.unlink(missing_ok=True)
    scratch.touch(mode=0o600)
    try:
        with closing(_connect(scratch)) as db:
            db.executescript(_SCHEMA + _KEEP_REPLIES + "COMMIT;")
        try:
            os.link(scratch, path)  # fails where the name is taken: another process may have been first
        except FileExistsError:
            return
    finally:
        scratch.unlink()
    if os.name == "posix":  # the name itself must survive a power cut
        sync_folder(path.parent)


def _connect(path: Path | None) -> sqlite3.Connection:
    where = path if path is not None else ":memory:"
    db = sqlite3.connect(where, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    (form,) = db.execute("PRAGMA user_version").fetchone()
    if form > FORM:  # before anything is changed
        db.close()
        raise StorageError(
            f"{path} was written by a newer wardround (form {form})",
            allowed=f"form {FORM} and older",
            do="install that version again; nothing was changed",
        )
    # A rollback journal with EXTRA: after COMMIT the entry survives a power cut, its folder entry included.
    db.execute("PRAGMA journal_mode = DELETE")
    db.execute("PRAGMA synchronous = EXTRA")
    db.execute("PRAGMA fullfsync = ON")
    return db


def text_of(body: Mapping[str, Any]) -> str:
    """Canonical JSON. Raises: ValueError, for a number that is not finite."""
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)


def chained(before: str, text: str) -> str:
    """The digest of an entry, from the digest before it and its text."""
    return hashlib.sha256(f"{before}\n{text}".encode()).hexdigest()
