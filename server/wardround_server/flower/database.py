"""Whether Flower's database can be used. Imports no Flower, which takes seconds."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from wardround.errors import StorageError
from wardround.text import shown


def check_database(database: Path) -> None:
    """Read Flower's database through, if there is one; nothing is changed. Raises: StorageError."""
    if not database.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
            fault = connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        fault = str(error)
    if fault != "ok":
        raise damaged(database, fault)


def damaged(database: Path, why: str) -> StorageError:
    """That it cannot be used, and the way back."""
    return StorageError(
        f"{database} cannot be used ({shown(why)})",
        do=f"`mv {database} {database}.damaged`, and start again: hospitals.json says who is registered, and every run "
        "goes on from its checkpoint with --resume",
    )
