"""Encoded images kept on the disk, so that another agreement with the same encoder encodes nothing.

    features/NAME.sqlite   one file an encoder, beside the cohort (0600); NAME says which encoder on which machine

An entry is found by a keyed hash of an image's pixels and says whose it is, by pseudonym. Whoever is not in the cohort
any more has no entry left after the next encoding; when patients are erased, all of it is overwritten and goes. It is a
cache: whatever is wrong with it is nobody's loss, and raises nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
from collections.abc import Callable, Collection, Sequence
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from wardround import __version__
from wardround.files import private_folder
from wardround_client.isolated import image_by_image

FOLDER = "features"
MOST_BYTES = 4 << 30
"""Of all files together; the one that was used longest ago goes first."""
WAIT_S = 5.0  # for another process that writes
_CHECK = 16  # bytes of each entry's own hash
_SCHEMA = "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, owner BLOB, value BLOB) WITHOUT ROWID"
log = logging.getLogger(__name__)


class FeatureCache:
    """Of one encoder, for one cohort.

    Args:
        cohort: its folder.
        key: of the hospital's pseudonyms: without it no entry tells which image it is of.
        fingerprint: of the encoder.
        device: which computes; another one rounds differently.
    """

    def __init__(self, cohort: Path, key: bytes, fingerprint: str, device: torch.device) -> None:
        said = "/".join([fingerprint, device.type, torch.__version__, _onnxruntime(), __version__])
        self._key, self._folder = key, cohort / FOLDER
        self._file = self._folder / f"{self._hash(said.encode()).hex()}.sqlite"

    def _hash(self, *parts: bytes) -> bytes:
        found = hashlib.blake2b(key=self._key[:64], digest_size=32)
        for part in parts:
            found.update(len(part).to_bytes(8, "little") + part)
        return found.digest()

    def encoded(self, encode: Callable[[Tensor], Tensor], x: Tensor, owners: Sequence[bytes]) -> Tensor:
        """What `image_by_image(encode, x)` gives, bit for bit. owners: the patient of each image of x, pseudonyms."""
        if not len(x):
            return image_by_image(encode, x)
        keys = [self._hash(str(each.shape).encode(), each.tobytes()) for each in x.cpu().contiguous().numpy()]
        known = self._read(keys)
        new = [at for at, key in enumerate(keys) if key not in known]
        if len(new) == len(keys):
            found = image_by_image(encode, x)
            self._write(keys, owners, found.view(len(keys), -1))
            return found
        shape = image_by_image(encode, x[:1]).shape  # of one image's rows
        computed = image_by_image(encode, x[new]) if new else x.new_empty(0)
        if any(known[key].size != shape.numel() for key in keys if key in known):  # another version of ours wrote it
            return image_by_image(encode, x)
        rows = iter(computed.view(len(new), shape.numel()))
        parts = [torch.from_numpy(known[key]).to(x.device) if key in known else next(rows) for key in keys]
        if new:
            self._write([keys[at] for at in new], [owners[at] for at in new], computed.view(len(new), shape.numel()))
        return torch.stack(parts).view(len(keys) * shape[0], *shape[1:])

    def _read(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray[tuple[int], np.dtype[np.float32]]]:
        found = {}
        try:
            if not self._file.is_file():
                return {}
            with closing(self._open()) as entries:
                for key in keys:
                    for (value,) in entries.execute("SELECT value FROM entries WHERE key = ?", (key,)):
                        check, blob = value[:_CHECK], value[_CHECK:]
                        if check == self._hash(key, blob)[:_CHECK] and len(blob) % 4 == 0:
                            found[key] = np.frombuffer(blob, np.float32).copy()
        except Exception as error:
            self._broken(error)
            return {}
        return found

    def _write(self, keys: Sequence[bytes], owners: Sequence[bytes], values: Tensor) -> None:
        """Keep values [n, ...], but for those that could not be computed."""
        finite, blobs = values.isfinite().all(1).tolist(), [each.tobytes() for each in values.cpu().numpy()]
        rows = [
            (key, owner, self._hash(key, blob)[:_CHECK] + blob)
            for key, owner, blob, whole in zip(keys, owners, blobs, finite, strict=True)
            if whole
        ]
        try:
            private_folder(self._folder)
            with closing(self._open()) as file, file:
                file.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?)", rows)
            self._shrink()
        except Exception as error:
            self._broken(error)

    def keep_only(self, owners: Collection[bytes]) -> None:
        """Forget the entries of all others, who have left the cohort."""
        try:
            if not self._file.is_file():
                return
            with closing(self._open()) as file, file:
                found = [owner for (owner,) in file.execute("SELECT DISTINCT owner FROM entries")]
                gone = [(owner,) for owner in found if owner not in owners]
                file.executemany("DELETE FROM entries WHERE owner = ?", gone)
        except Exception as error:
            self._broken(error)

    def _open(self) -> sqlite3.Connection:
        if not self._file.exists():
            with suppress(FileExistsError):
                os.close(os.open(self._file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        file = sqlite3.connect(self._file, timeout=WAIT_S)
        try:
            file.execute("PRAGMA secure_delete = ON")
            file.execute("PRAGMA journal_mode = MEMORY")  # a crash may cost the cache; no copy of it is left beside it
            file.execute("PRAGMA synchronous = OFF")
            file.execute(_SCHEMA)
        except BaseException:
            file.close()
            raise
        return file

    def _shrink(self) -> None:
        """Keep the folder within MOST_BYTES."""
        found = []
        for file in self._folder.glob("*.sqlite"):
            with suppress(FileNotFoundError):  # an opt-out removes them
                found.append((file.stat(), file))
        total = 0
        for about, file in sorted(found, key=lambda each: each[0].st_mtime, reverse=True):
            total += about.st_size
            if total > MOST_BYTES:
                _overwritten(file)

    def _broken(self, error: Exception) -> None:
        """Go on without it. Whatever a damaged file makes of the library is caught: SQLite quotes the file's bytes in
        its messages, and where they are no text, Python raises UnicodeDecodeError instead of the error.
        """
        log.warning("the cache of features cannot be used (%s): images are encoded anew", type(error).__name__)
        if not isinstance(error, sqlite3.OperationalError | OSError | MemoryError):  # locked, or full: the file is good
            with suppress(OSError):
                _overwritten(self._file)


def forget_features(cohort: Path) -> None:
    """Overwrite and remove all that is cached beside a cohort. Raises: OSError."""
    for file in (cohort / FOLDER).glob("*"):
        _overwritten(file)


def _overwritten(file: Path) -> None:
    with suppress(FileNotFoundError):
        with file.open("r+b") as opened:
            left = os.fstat(opened.fileno()).st_size
            while left > 0:
                left -= opened.write(bytes(min(left, 1 << 20)))
            os.fsync(opened.fileno())
        file.unlink()


def _onnxruntime() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return ""
