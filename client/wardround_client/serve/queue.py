"""What is to be done, on disk: one line for each study and model, and each of its states is final or goes on.

    waiting   it is to be fetched, where the PACS was asked for it, and predicted
    made      results lie in HOME/serve/results; the PACS has not said that it has them
    sent      it has: nothing is left to do, for ever
    refused   there is nothing that this model can predict, or nobody may
    failed    the PACS does not give the study, or does not take its results, which stay; a person may try again

A study is named by its pseudonym; its UID stands there only while something is to be done.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from wardround.errors import StorageError
from wardround.files import cannot_write

State = Literal["waiting", "made", "sent", "refused", "failed"]
OPEN = ("waiting", "made")
LONGEST_WAIT_S = 900.0
"""Between two tries. What waits for longer was put off by a clock that has been set back since."""

MOST_SET_ASIDE = 10_000
"""Lines of what strangers sent and nobody could use; the oldest go."""

_COLUMNS = "study, model, name, uid, state, reason, patient, attempts, not_before, arrived, ended"
_UNSENT = "(state = 'made' OR state = 'failed' AND patient <> x'')"
_TABLES = (
    f"""CREATE TABLE IF NOT EXISTS work ({_COLUMNS}, PRIMARY KEY (study, model)) WITHOUT ROWID""",
    "CREATE INDEX IF NOT EXISTS open_work ON work (state, not_before)",
    "CREATE TABLE IF NOT EXISTS set_aside (number INTEGER PRIMARY KEY, time, what, reason, detail)",
)


@dataclass(frozen=True)
class Work:
    """One study for one model. study: pseudonym. model: digest; name: as it was called. uid: Study Instance UID, ""
    when nothing is to be done. patient: both pseudonyms, b"" before it was predicted. attempts: without success.
    not_before, arrived, ended: seconds since 1970.
    """

    study: bytes
    model: str
    name: str
    uid: str
    state: State
    reason: str
    patient: bytes
    attempts: int
    not_before: float
    arrived: float
    ended: float

    @property
    def key(self) -> str:
        """The name of its folder of results."""
        return f"{self.study.hex()[:32]}-{self.model[:32]}"


class Queue:
    """The file. Raises: StorageError, by each method too."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._writing():
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None, timeout=30)
            self._db.execute("PRAGMA synchronous = FULL")
            self._db.execute("PRAGMA secure_delete = ON")  # a UID that is over leaves no copy in a free page
            for table in _TABLES:
                self._db.execute(table)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._path, error) from None
        except sqlite3.Error as error:
            raise StorageError(
                f"{self._path}: cannot be used ({error})",
                do="make room on the disk; where it is damaged, restore it: a new one answers recent studies again",
            ) from None

    def add(self, study: bytes, uid: str, models: Mapping[str, str]) -> int:
        """Each model (digest -> name) for a study that is new for it -> how many."""
        now = time.time()
        rows = [(study, model, name, uid, "waiting", "", b"", 0, 0.0, now, 0.0) for model, name in models.items()]
        with self._writing():
            self._db.execute("BEGIN IMMEDIATE")
            with self._db:  # commits
                before = self._db.total_changes
                self._db.executemany(f"INSERT OR IGNORE INTO work VALUES ({', '.join('?' * 11)})", rows)
                return self._db.total_changes - before

    def unknown(self, study: bytes, models: Sequence[str]) -> bool:
        """Whether the study is new for one of these models."""
        known = {each.model for each in self.of_study(study)}
        return any(model not in known for model in models)

    def of_study(self, study: bytes) -> list[Work]:
        """All its lines."""
        return self._found("WHERE study = ? ORDER BY model", study)

    def due(self, state: State, now: float) -> Work | None:
        """The line of that state that is to be done next; None when there is none now."""
        where = "WHERE state = ? AND NOT (not_before > ? AND not_before <= ?) ORDER BY arrived, study, model LIMIT 1"
        found = self._found(where, state, now, now + LONGEST_WAIT_S)
        return found[0] if found else None

    def unsent(self) -> list[Work]:
        """The lines whose results are not in the PACS, and may still go there."""
        return self._found(f"WHERE {_UNSENT}")

    def in_state(self, state: State, most: int = -1) -> list[Work]:
        """The lines of that state, the last ones first."""
        return self._found("WHERE state = ? ORDER BY arrived DESC LIMIT ?", state, most)

    def _found(self, where: str, *values: object) -> list[Work]:
        with self._writing():
            return [Work(*row) for row in self._db.execute(f"SELECT {_COLUMNS} FROM work {where}", values)]

    def open(self) -> int:
        """How many studies are not done."""
        with self._writing():
            asked = "SELECT COUNT(DISTINCT study) FROM work WHERE state IN (?, ?)"
            return int(self._db.execute(asked, OPEN).fetchone()[0])

    def counts(self) -> dict[str, int]:
        """How many lines there are of each state."""
        with self._writing():
            return dict(self._db.execute("SELECT state, COUNT(*) FROM work GROUP BY state ORDER BY state"))

    def reasons(self, state: State) -> dict[str, int]:
        """Why, and how often, for that state; empty reasons apart."""
        asked = "SELECT reason, COUNT(*) FROM work WHERE state = ? AND reason <> '' GROUP BY reason ORDER BY 2 DESC"
        with self._writing():
            return dict(self._db.execute(asked, (state,)))

    def becomes(self, work: Work, state: State, reason: str = "", *, patient: bytes = b"") -> None:
        """On the disk when it returns."""
        over = state not in OPEN and state != "failed"
        self._set(
            work,
            "state = ?, reason = ?, patient = ?, attempts = 0, not_before = 0, uid = ?, ended = ?",
            *(state, reason, patient, "" if over else work.uid, 0.0 if state in OPEN else time.time()),
        )

    def later(self, work: Work, reason: str, not_before: float) -> None:
        """It did not succeed, and is tried again."""
        self._set(work, "attempts = ?, reason = ?, not_before = ?", work.attempts + 1, reason, not_before)

    def tries(self, work: Work, attempts: int) -> None:
        """How often it was begun: on the disk before it may end this process."""
        self._set(work, "attempts = ?", attempts)

    def _set(self, work: Work, what: str, *values: object) -> None:
        with self._writing():
            self._db.execute(f"UPDATE work SET {what} WHERE study = ? AND model = ?", (*values, work.study, work.model))

    def forget(self, work: Work, reason: str) -> None:
        """As if the study had not come for this model; it is said what came of it."""
        self.set_aside(f"a study for {work.name}", reason)
        with self._writing():
            self._db.execute("DELETE FROM work WHERE study = ? AND model = ?", (work.study, work.model))

    def again(self) -> int:
        """What failed waits again, and what waits waits no longer -> how many."""
        with self._writing():
            asked = f"""UPDATE work SET state = CASE WHEN {_UNSENT} THEN 'made' ELSE 'waiting' END, ended = 0,
            not_before = 0, attempts = 0 WHERE state = 'failed' OR (state IN ('waiting', 'made') AND not_before > 0)"""
            return self._db.execute(asked).rowcount

    def set_aside(self, what: str, reason: str, detail: str = "") -> None:
        """Something arrived that nobody can use."""
        with self._writing():
            added = self._db.execute(
                "INSERT INTO set_aside (time, what, reason, detail) VALUES (?, ?, ?, ?)",
                (time.time(), what, reason, detail),
            )
            self._db.execute("DELETE FROM set_aside WHERE number <= ?", ((added.lastrowid or 0) - MOST_SET_ASIDE,))

    def aside(self, most: int) -> list[tuple[float, str, str, str]]:
        """The last ones: time, what, reason, detail."""
        with self._writing():
            asked = "SELECT time, what, reason, detail FROM set_aside ORDER BY number DESC LIMIT ?"
            return list(self._db.execute(asked, (most,)))

    def close(self) -> None:
        """It is opened again by another `Queue`."""
        self._db.close()
