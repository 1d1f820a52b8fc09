"""What the last ingest set aside, and why; what the cohort holds."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from wardround.errors import StorageError
from wardround.files import open_regular, remedy
from wardround_client.cohort.index import QUARANTINE

LARGEST_BYTES = 1 << 30
MOST = 200


@dataclass(frozen=True)
class Quarantine:
    """quarantine.csv of a cohort. when: it was written, UTC. reasons: with how many, the most frequent first. first:
    (file, reason, detail) of the first of them, or of those of one reason.
    """

    when: str
    total: int
    reasons: Sequence[tuple[str, int]]
    first: Sequence[tuple[str, str, str]]


def quarantine(cohort: Path, reason: str = "") -> Quarantine | None:
    """The list; None where nothing was taken in yet. Raises: StorageError."""
    path = cohort / QUARANTINE
    reasons: Counter[str] = Counter()
    first: list[tuple[str, str, str]] = []
    try:
        when = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        with open_regular(path, LARGEST_BYTES) as file:
            lines = (line.decode("utf-8", "replace") for line in file)
            for row in csv.DictReader(lines):
                found = tuple(str(row.get(name) or "") for name in ("file", "reason", "detail"))
                reasons[found[1]] += 1
                if len(first) < MOST and reason in ("", found[1]):
                    first.append((found[0], found[1], found[2]))
    except FileNotFoundError:
        return None
    except (OSError, csv.Error) as error:
        do = remedy(error) if isinstance(error, OSError) else "ingest again"
        raise StorageError(f"{path} cannot be read ({error})", do=do) from None
    return Quarantine(f"{when:%Y-%m-%d %H:%M}", reasons.total(), reasons.most_common(), first)
