"""What the papers may state: each value with the place that it was read from, and gaps that are said to be gaps.

A value comes from a line of hospital.toml, from a line of an approved agreement, from entries of the ledger, or follows
from these by a computation that is named. What none of them says is a gap, and is never made up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround import __version__
from wardround.config import Federation
from wardround.errors import WardroundError
from wardround.files import read_bounded
from wardround.given import TOML_BYTES, given_text
from wardround.text import counted, shown
from wardround.toml import line_of, loads, parsed
from wardround_client.clock import now
from wardround_client.config import HospitalConfig
from wardround_client.consent.approvals import FILE, RECORD, RECORD_BYTES, ApprovalFolder
from wardround_client.privacy.ledger import Entry, Ledger

GAP = "TO FILL IN: "
LONGEST = 300  # characters of a value
_MARKUP = re.compile(r"([\\`*_\[\]<>|~&$@{}#!])|(:)(?=/)|(\bwww)(?=\.)", re.IGNORECASE)


@dataclass(frozen=True)
class Fact:
    """A line of a paper. source: where the value stands; "" for a gap."""

    what: str
    value: str
    source: str = ""

    @property
    def is_gap(self) -> bool:
        """Whether a person must fill it in."""
        return not self.source


def gap(what: str, asked: str) -> Fact:
    """What no file of ours says."""
    return Fact(what, GAP + asked)


def escaped(text: object, limit: int = LONGEST) -> str:
    """Text from outside for a cell of a Markdown table: on one line, bounded, and no markup of its own."""
    return _MARKUP.sub(lambda found: f"\\{found[0]}" if found[3] is None else f"{found[0]}\\", shown(text, limit))


class Settings:
    """A TOML file that was read: values by their dotted names, and the line of each.

    Args:
        name: what the papers call it.
        text: the file.
        written: its tables, as the file has them.
        values: with what was left out.
    """

    def __init__(self, name: str, text: str, written: Mapping[str, Any], values: Mapping[str, Any]) -> None:
        self.name, self._text, self._written, self._values = name, text, written, values

    def fact(self, what: str, key: str, unit: str = "") -> Fact:
        """The value of a setting, and where it stands. Raises: KeyError, for one that does not exist."""
        path = key.split(".")
        value: Any = self._values
        for part in path:
            value = value[part]
        said = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        return Fact(what, f"{said or '(empty)'}{unit}", self.place(key))

    def place(self, key: str) -> str:
        """Where a setting stands: a line, or that it is the default."""
        path, at = key.split("."), self._written
        for part in path[:-1]:
            at = at.get(part) or {}
        line = line_of(self._text, path) if path[-1] in at else None
        return f"{self.name}, {f'line {line}' if line else f'not written, default of wardround {__version__}'}: {key}"


@dataclass(frozen=True)
class Agreed:
    """An approved agreement. approved: when it was, as approval.json says; "" where it does not say."""

    federation: Federation
    settings: Settings
    approved: str
    entries: Sequence[Entry]

    @property
    def replies(self) -> list[Entry]:
        """Receipts of what left."""
        return [entry for entry in self.entries if entry.kind == "released"]

    @property
    def runs(self) -> list[str]:
        """Names, in the order of the ledger."""
        return list(dict.fromkeys(entry.run for entry in self.entries))


@dataclass(frozen=True)
class Facts:
    """All that papers are made of. entries: the whole ledger. spent: epsilon of all of them, at delta.

    unusable: digests of approvals whose file cannot be read. time: now.
    """

    config: HospitalConfig
    hospital: Settings
    agreements: Sequence[Agreed]
    entries: Sequence[Entry]
    head: str
    spent: float
    unusable: Sequence[str]
    time: str

    @classmethod
    def of(cls, home: Path, named: str = "") -> Facts:
        """Of a hospital's home; named: of one agreement alone, by name or digest. Raises: ConfigError, StorageError."""
        text = given_text(home / "hospital.toml", TOML_BYTES, do="name a hospital's home")
        config = loads(text, HospitalConfig, name="hospital.toml")
        with closing(Ledger.of(home)) as ledger:
            entries, (_, head), spent = ledger.entries(), ledger.head, ledger.spent(config.delta)
        approvals, agreements, unusable = ApprovalFolder(home), [], []
        for digest in [approvals.find(named)] if named else sorted(approvals.digests()):
            try:
                agreements.append(_agreed(approvals, digest, entries))
            except WardroundError:
                unusable.append(digest)
        written = parsed(text, name="hospital.toml")
        settings = Settings("hospital.toml", text, written, config.model_dump(mode="json"))
        return cls(config, settings, agreements, entries, head, spent, unusable, now())

    @property
    def ledger(self) -> str:
        """The whole ledger, as a source."""
        return f"ledger, {counted(len(self.entries), 'entry', 'entries')}, head {self.head}"


def _agreed(approvals: ApprovalFolder, digest: str, entries: Sequence[Entry]) -> Agreed:
    """Raises: WardroundError, when the approval cannot be used."""
    federation, folder = approvals.federation(digest), approvals.folder(digest)
    text = given_text(folder / FILE, TOML_BYTES, do="approve it again")
    approved = ""
    with suppress(OSError, ValueError):
        record = json.loads(read_bounded(folder / RECORD, RECORD_BYTES))
        approved = str(record["time"]) if isinstance(record, dict) and "time" in record else ""
    values, written = federation.model_dump(mode="json"), parsed(text, name=FILE)
    settings = Settings(f"agreement {digest[:16]}", text, written, values)
    return Agreed(federation, settings, approved, [entry for entry in entries if entry.body["federation"] == digest])


def of_entries(entries: Sequence[Entry]) -> str:
    """Some entries of the ledger, as a source."""
    numbers = [entry.seq for entry in entries]
    if not numbers:
        return "ledger, no entry"
    last = entries[-1].digest
    between = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return f"ledger, {counted(len(numbers), 'entry', 'entries')} of {between}, the last with digest {last}"


@dataclass(frozen=True)
class Paper:
    """A document. file: its name. law: which it answers. sections: headings with their lines."""

    file: str
    title: str
    law: str
    sections: Sequence[tuple[str, Sequence[Fact]]]

    @property
    def gaps(self) -> int:
        """How many lines are left to a person."""
        return sum(fact.is_gap for _, facts in self.sections for fact in facts)

    def markdown(self, facts: Facts) -> str:
        """The document as text."""
        lines = [
            f"# {self.title}",
            "",
            f"A draft that answers {self.law}. Made by wardround {__version__} on {facts.time} for the hospital "
            f"{escaped(facts.config.hospital.name)}, and no legal advice: a person reads and completes it.",
            f"Each value stands beside the place that it was read from. **{counted(self.gaps, 'gap')}** "
            f"{'is' if self.gaps == 1 else 'are'} marked TO FILL IN; nothing was made up for them.",
            "",
            f"- ledger: head {facts.head}",
            *(f"- agreement {each.federation.name}: digest {each.federation.digest}" for each in facts.agreements),
            *(
                f"- an approval that cannot be read, and is not in this paper: {escaped(each)}"
                for each in facts.unusable
            ),
            "",
        ]
        for heading, rows in self.sections:
            lines += [f"## {heading}", "", "| what | value | source |", "|---|---|---|"]
            lines += [
                f"| {escaped(row.what)} | {_bold_gap(escaped(row.value))} | {escaped(row.source, 400) or '(a gap)'} |"
                for row in rows
            ]
            lines.append("")
        return "\n".join(lines)


def _bold_gap(text: str) -> str:
    return f"**{text}**" if text.startswith(GAP) else text
