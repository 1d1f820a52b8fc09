"""What a PACS said that it has of the worklist: sorted and counted once, on disk, gone with the spool."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from wardround_client.intake.pacs.archive import Found

_COLUMNS = ", ".join(Found._fields)


class Plan:
    """Objects by patient, study, series and own UID, each once for each value of the worklist that names it."""

    def __init__(self, file: Path) -> None:
        file.unlink(missing_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        self._db = sqlite3.connect(file, isolation_level=None)
        self._db.execute("PRAGMA journal_mode = OFF")  # nobody reads it after a crash
        self._db.execute("PRAGMA synchronous = OFF")
        self._db.execute(
            f"""CREATE TABLE found ({_COLUMNS}, wanted,
            PRIMARY KEY (patient, study, series, instance, wanted)) WITHOUT ROWID"""
        )

    def add(self, found: Found, wanted: str) -> bool:
        """wanted: the value of the worklist that names it. False, where it is there already."""
        added = self._db.execute(
            f"INSERT OR IGNORE INTO found VALUES ({', '.join('?' * (len(found) + 1))})", (*found, wanted)
        )
        return added.rowcount == 1

    def __iter__(self) -> Iterator[tuple[Found, str]]:
        for *fields, wanted in self._db.execute(
            f"SELECT {_COLUMNS}, wanted FROM found ORDER BY patient, study, series, instance, wanted"
        ):
            yield Found(*fields), wanted

    def in_series(self, one: Found) -> int:
        """How many objects there are in the series of this one."""
        asked = "SELECT COUNT(DISTINCT instance) FROM found WHERE patient = ? AND study = ? AND series = ?"
        return int(self._db.execute(asked, (one.patient, one.study, one.series)).fetchone()[0])

    def close(self) -> None:
        """It is of no use then."""
        self._db.close()
