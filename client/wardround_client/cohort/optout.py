"""The opt-out register: which patients have withdrawn, from every federation and for good.

    withdrawn.register   one line a patient, keyed pseudonym (hex) and time (UTC); then a keyed hash of all lines

PatientIDs are not in it, and without the hospital's secret.key nobody can tell from it who withdrew. It is replaced as
a whole (new file, fsync, rename, fsync of the folder), so a crash leaves the register of before or of after. A line is
never taken out. Whoever cannot read the register may not touch a patient: `read` raises for a file that is missing, cut
off, edited or made with another key. One thing it cannot see is an older copy of the whole file, put back while no
daemon was running: guard its backups as you guard the ledger's.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType

from wardround.errors import ConfigError, StorageError
from wardround.files import cannot_write, locked, write_atomically
from wardround_client.clock import now
from wardround_client.keys import load_pseudonym_key

REGISTER = "withdrawn.register"
_HEADER = "wardround withdrawn 1"
_NOBODY: Mapping[bytes, str] = MappingProxyType({})


class Register:
    """A hospital's opt-out register.

    Args:
        path: the file; `create` makes it, with the hospital's home.
        key: the hospital's pseudonym secret; the register belongs to it.
    """

    def __init__(self, path: Path, key: bytes) -> None:
        self._path, self._key = path, hmac.digest(key, b"withdrawn", "sha256")
        self._text: bytes | None = None
        self._read = _NOBODY

    @classmethod
    def of(cls, home: Path) -> Register:
        """The register of a hospital's home. Raises: StorageError, when its secret.key cannot be used."""
        return cls(home / REGISTER, load_pseudonym_key(home))

    def create(self) -> None:
        """Make an empty register. Raises: ConfigError, when there is one; StorageError."""
        with self._one_writer():
            if self._path.exists():
                raise ConfigError(f"{self._path} is there already", do="nothing: the register is in place")
            self._replace({})

    def read(self) -> Mapping[bytes, str]:
        """Pseudonym -> time of everybody who has withdrawn. Cheap when nothing has changed.

        Raises: StorageError, when it is missing or is not what was written; then no patient may be used.
        """
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            raise self._unusable(
                "is missing",
                "restore it from a backup; only where nobody has ever withdrawn, make an empty one with "
                "`wardround hospital withdraw HOME --new-register`",
            ) from None
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})", "correct its permissions, or the disk") from None
        if text != self._text:
            entries = self._parsed(text)
            if self._read.keys() - entries.keys():
                raise self._unusable("has lost entries since this program read it", "restore the newer file")
            self._text, self._read = text, MappingProxyType(entries)
        return self._read

    def add(self, pseudonyms: Collection[bytes]) -> frozenset[bytes]:
        """Write down that these patients have withdrawn -> those who had not before. Durable when it returns.

        Raises: StorageError, when it cannot be read or made durable; the register is then as it was.
        """
        with self._one_writer():
            entries = dict(self.read())
            fresh = frozenset(pseudonyms) - entries.keys()
            if fresh:
                self._replace(entries | dict.fromkeys(sorted(fresh), now()))
                self.read()
        return fresh

    def _parsed(self, text: bytes) -> dict[bytes, str]:
        body, _, mac = text.rstrip(b"\n").rpartition(b"\n")
        if not hmac.compare_digest(self._mac(body), mac):
            raise self._unusable("is damaged, or belongs to another secret.key", "restore both from one backup")
        header, *lines = body.decode("ascii").split("\n")
        if header != _HEADER:
            raise self._unusable(f"is of another version ({header!r})", "use the wardround that wrote it")
        pairs = (line.split(" ") for line in lines)
        return {bytes.fromhex(pseudonym): at for pseudonym, at in pairs}

    def _replace(self, entries: Mapping[bytes, str]) -> None:
        body = "\n".join([_HEADER, *(f"{who.hex()} {at}" for who, at in entries.items())]).encode("ascii")
        text = body + b"\n" + self._mac(body) + b"\n"
        try:
            write_atomically(self._path, text, scratch=self._path.with_name(self._path.name + ".tmp"))
        except OSError as error:
            raise cannot_write(self._path, error, "withdraw again: this one does not count") from None

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).hexdigest().encode("ascii")

    def _one_writer(self) -> AbstractContextManager[None]:
        return locked(self._path.with_name(self._path.name + ".lock"), busy=None)

    def _unusable(self, why: str, do: str) -> StorageError:
        return StorageError(f"the opt-out register {self._path} {why}, so no patient may be used", do=do)
