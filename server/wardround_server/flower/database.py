"""Whether Flower's database can be used, and what waits in it. Imports no Flower, which takes seconds."""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from pathlib import Path

from wardround.errors import StorageError
from wardround.text import shown


def check_database(database: Path) -> None:
    """Read Flower's database through, if there is one; nothing is changed. Raises: StorageError."""
    if not database.exists():
        return
    try:
        with _opened(database) as connection:
            fault = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        fault = str(error)
    if fault != "ok":
        raise damaged(database, fault)


def undelivered(database: Path) -> Counter[int]:
    """Messages that nobody has fetched, by the node they are for; some have no parts any more. Raises: StorageError."""
    if not database.exists():
        return Counter()
    asked = "SELECT dst_node_id, COUNT(*) FROM message_ins WHERE delivered_at = '' GROUP BY dst_node_id"
    try:
        with _opened(database) as connection:
            if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'message_ins'").fetchall():
                return Counter()  # made, and not filled
            return Counter({node % 2**64: count for node, count in connection.execute(asked)})  # it stores them signed
    except sqlite3.Error as error:
        raise damaged(database, str(error)) from None


def _opened(database: Path) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True))


def damaged(database: Path, why: str) -> StorageError:
    """That it cannot be used, and the way back."""
    return StorageError(
        f"{database} cannot be used ({shown(why)})",
        do=f"`mv {database} {database}.damaged`, and start again: hospitals.json says who is registered, and every run "
        "goes on from its checkpoint with --resume",
    )
