"""Where fetched files lie until they are read: a folder of one pull in the hospital's home, 0700, gone afterwards."""

from __future__ import annotations

import secrets
from contextlib import ExitStack, suppress
from pathlib import Path

from wardround.errors import StorageError
from wardround.files import cannot_write, locked, private_folder, remove_folder

SPOOL = "spool"


class Spool:
    """One pull at a time has one. What an earlier one left, killed together with its guard (line.py), goes first.

    Raises: StorageError: another pull is running, or it cannot be made.
    """

    def __init__(self, home: Path) -> None:
        self._open = ExitStack()
        spool = home / SPOOL
        self.folder = spool / secrets.token_hex(8)
        busy = StorageError(f"{home}: another pull is running", do="wait until it has ended")
        try:
            private_folder(spool)
            self._open.enter_context(locked(spool / "lock", busy=busy))
            for left in spool.iterdir():
                if left.is_dir() and not left.is_symlink():
                    remove_folder(left)  # its guard may be at it
            private_folder(self.folder)
        except OSError as error:
            self._open.close()
            raise cannot_write(spool, error) from None
        self._open.callback(self._empty)

    def close(self) -> None:
        """Remove the folder, and let the next pull in."""
        self._open.close()

    def _empty(self) -> None:
        with suppress(OSError):
            remove_folder(self.folder)
