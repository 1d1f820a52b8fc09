"""A small file that remembers the node's number at its coordinator, to come back at once after a crash."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from pathlib import Path

from wardround.files import write_atomically

log = logging.getLogger(__name__)


class NodeNumber:
    """The number, in a file.

    Args:
        file: where it is kept; it holds no secret.
        address: of the coordinator that gave it; another's number is worth nothing.
    """

    def __init__(self, file: Path, address: str) -> None:
        self._file, self._address = file, address

    def read(self) -> int | None:
        """The number; None, when none is known."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            known = json.loads(self._file.read_text(encoding="utf-8"))
            if known["address"] == self._address:
                return int(known["node_id"])
        return None

    def write(self, number: int) -> None:
        """Remember it. What cannot be written costs time after a crash, and nothing else."""
        try:
            text = json.dumps({"address": self._address, "node_id": number})
            write_atomically(self._file, f"{text}\n".encode())
        except OSError as error:
            log.warning("%s cannot be written (%s): a crash will cost time", self._file, error.strerror)
