"""The coordinator's list of each hospital's answers: answers/NAME.jsonl of its home, a line an answer, oldest first.

All of it is public. The last line goes to the hospital with every request (`wire.Answered`), which looks whether its
ledger holds it: so a home that was copied, or a ledger restored from an older copy, is noticed at the next round, also
of another run. The list says too how many rounds each hospital has answered.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from wardround.errors import StorageError
from wardround.files import private_folder
from wardround.wire import Answered
from wardround_server.hospitals import Member

FOLDER = "answers"
log = logging.getLogger(__name__)


class AnswerBook:
    """The lists of one home, or of a run that keeps none (folder None).

    Args:
        folder: where they lie.
        keys: hospital -> what tells its key from another's. A hospital that was set up anew under an old name has a new
            key and a new ledger, and begins a new list in the same file.
    """

    def __init__(self, folder: Path | None = None, keys: Mapping[str, str] | None = None) -> None:
        self._folder, self._keys = folder, keys or {}
        self._known: dict[str, list[Answered]] = {}

    @classmethod
    def of_home(cls, home: Path, registered: Iterable[Member]) -> Self:
        """The lists of a coordinator's home and its registry."""
        return cls(home / FOLDER, {hospital.name: hospital.public_key for hospital in registered})

    def of(self, hospital: str) -> list[Answered]:
        """Its answers, oldest first; a line that a crash cut off is passed over. Raises: StorageError."""
        if hospital not in self._known:
            self._known[hospital] = self._read(hospital)
        return self._known[hospital]

    def last(self) -> dict[str, Answered]:
        """Each hospital's last answer, under `identity`. Raises: StorageError.

        Of two answers to one round the first counts: the copy that gave the second is told at its next round.
        """
        last = {}
        for hospital in {*self._keys, *self._known}:
            rounds: dict[tuple[str, int], Answered] = {}
            for each in self.of(hospital):
                rounds.setdefault((each.run, each.round), each)
            if rounds:
                last[self.identity(hospital)] = list(rounds.values())[-1]
        return last

    def identity(self, hospital: str) -> str:
        """A name that another key under the same name does not have."""
        return f"{hospital} {hashlib.sha256(self._keys.get(hospital, '').encode()).hexdigest()[:16]}"

    def add(self, hospital: str, answered: Answered, *, epsilon: float) -> None:
        """Note an answer as soon as it is here; one that is known already changes nothing.

        Args:
            hospital: whose.
            answered: which.
            epsilon: what the hospital says that the run has cost it.

        Raises: StorageError, when it cannot be written.
        """
        known = self.of(hospital)
        if answered in known:
            return
        if any((each.run, each.round) == (answered.run, answered.round) for each in known):
            log.warning(
                "%s answered round %d of run %s again, with other bytes: does a copy of its home run elsewhere?",
                *(hospital, answered.round, answered.run),
            )
        known.append(answered)
        if self._folder is None:
            return
        when = datetime.now(UTC).isoformat(timespec="seconds")
        told = {"identity": self.identity(hospital), "time": when, "epsilon": epsilon}
        line = json.dumps(answered.model_dump() | told) + "\n"
        path = self._path(hospital)
        try:
            private_folder(self._folder)
            with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "a+b") as file:
                if file.seek(0, os.SEEK_END) and (file.seek(-1, os.SEEK_END), file.read())[1] != b"\n":
                    file.seek(0)  # a crash or a full disk cut the last line off
                    file.truncate(file.read().rfind(b"\n") + 1)
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"{path}: cannot be written ({error.strerror})", do="make room, resume") from None

    def _path(self, hospital: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{hospital}.jsonl"

    def _read(self, hospital: str) -> list[Answered]:
        if self._folder is None:
            return []
        try:
            lines = self._path(hospital).read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise StorageError(f"{self._path(hospital)}: cannot be read ({error.strerror})", do="restore it") from None
        found = []
        for line in lines:
            with suppress(ValueError, TypeError, KeyError, RecursionError):
                row = json.loads(line)
                if row["identity"] == self.identity(hospital):
                    found.append(Answered.model_validate({key: row[key] for key in Answered.model_fields}))
        return found
