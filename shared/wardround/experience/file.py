"""Files of experience: a row a line. One comes with wardround; a consortium keeps its own, and may share it."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from wardround.experience.row import Row
from wardround.files import cannot_write
from wardround.given import EXPERIENCE_BYTES, given_bytes
from wardround.text import counted

FILE = "experience.jsonl"
OURS = "ours.jsonl.gz"  # a twentieth of its rows as they are
MOST_ROWS = 20_000
LONGEST_LINE = 256 << 10  # ten thousand hospitals and all settings are less


@dataclass(frozen=True)
class Experience:
    """Rows, and in words what of the file was passed over; "" for nothing."""

    rows: Sequence[Row]
    passed_over: str = ""


def ours() -> Sequence[Row]:
    """Of our own benchmarks; they come with wardround, and hold means over patients of public data only."""
    return parsed(gzip.decompress(files("wardround.experience").joinpath(OURS).read_bytes())).rows


def read(path: Path) -> Experience:
    """A file from outside. Raises: ConfigError, when it cannot be read or is larger than EXPERIENCE_BYTES."""
    return parsed(given_bytes(path, EXPERIENCE_BYTES, do="name an experience.jsonl"))


def parsed(data: bytes) -> Experience:
    """Lines -> the last MOST_ROWS of their rows. What is no row, torn or of bytes that are no text, is passed over."""
    rows, damaged = list[Row](), 0
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        try:
            if len(line) > LONGEST_LINE:
                raise ValueError("longer than any row")
            rows.append(Row.model_validate_json(line))
        except (ValidationError, ValueError):
            damaged += 1
    parts = []
    if damaged:
        parts.append(f"{counted(damaged, 'line')} that {'is' if damaged == 1 else 'are'} no row")
    if len(rows) > MOST_ROWS:
        parts.append(f"all rows but the last {MOST_ROWS:,}")
    return Experience(rows[-MOST_ROWS:], " and ".join(parts))


def append(path: Path, row: Row) -> None:
    """Add a row, in one write; after a line that was torn it begins a new one.

    Nothing is added where the last row is the same: a run that is resumed at its very end says it again.

    Raises: StorageError.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            line, size = row.line().encode() + b"\n", os.fstat(handle).st_size
            before = os.pread(handle, len(line) + 1, max(0, size - len(line) - 1))
            if not (b"\n" + before).endswith(b"\n" + line):
                os.write(handle, line if (b"\n" + before).endswith(b"\n") else b"\n" + line)
        finally:
            os.close(handle)
    except OSError as error:
        raise cannot_write(path, error) from None
