"""What a protocol does for an archive: find what a key names, and fetch it; see what is new, and store results.

Nothing of what it says is believed (source.py, `wardround_client.serve`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from wardround_client.config import Pacs

UID = re.compile(r"[0-9.]{1,64}")
"""Of a UID (PS3.5 9.1); it may stand in a URL. Leading zeros, which the standard forbids, do occur."""

MOST_FILE_BYTES = 1 << 30
"""Of one object; also what an intake reads at most."""

MOST_UNASKED = 100
"""So many objects that were not asked for, in one answer, end it."""


class Found(NamedTuple):
    """One object that a PACS says it has. "" where it does not say. changed: when it was made, and when its study was
    last updated: another text where it may be another object under the same UID.
    """

    study: str
    series: str
    instance: str
    patient: str = ""
    accession: str = ""
    sop_class: str = ""
    changed: str = ""

    def within(self, whole: Found) -> Found:
        """What it says, and where it does not, what its series or study has said."""
        told = Found(*(mine or theirs for mine, theirs in zip(self, whole, strict=True)))
        return told._replace(changed=f"{whole.changed} {self.changed}".strip())


class Recent(NamedTuple):
    """A study that a PACS says it has. modalities: of its series; () where it does not say. changed: another text when
    something was added to it: how many objects it has, and when it was updated.
    """

    study: str
    modalities: tuple[str, ...] = ()
    changed: str = ""


class Archive(Protocol):
    """One protocol. It lives in a process of its own; see line.py.

    What each method yields comes as it arrives. Raises: TroubleError; any other exception counts as "broken".
    """

    def __init__(self, settings: Pacs, home: Path, beat: Callable[[int], None]) -> None:
        """home: what relative names of files in the settings are relative to. beat: to be called with the number of
        bytes whenever something arrived; it takes as long as the bandwidth demands.
        """
        ...

    def check(self) -> Iterator[str]:
        """Ask for nothing, and say who answered."""
        ...

    def find(self, key: str, value: str) -> Iterator[Found]:
        """What a value of a key column names. value: without wildcards."""
        ...

    def fetch(self, found: Sequence[Found], folder: Path, *, whole: bool) -> Iterator[tuple[str, Path | None]]:
        """Objects of one series, in any order: (SOP Instance UID as the file says, file in the folder); None where the
        PACS has none. whole: they are all of the series.
        """
        ...

    def patients(self, study: str) -> Iterator[str]:
        """PatientIDs under which a study is listed now: none where it is not there, "" where it does not say."""
        ...

    def recent(self, first: str, last: str) -> Iterator[Recent]:
        """Studies of these days, as YYYYMMDD, both included."""
        ...

    def store(self, files: Sequence[Path]) -> Iterator[str]:
        """Give it objects of one study -> the SOP Instance UID of each, when the PACS has said that it has it.

        Raises: TroubleError, also where it does not say so.
        """
        ...
