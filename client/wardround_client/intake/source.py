"""What the intake reads from: a source yields items, whatever it talks to. One file each in `sources/`.

A source of another package is an entry point in the group `wardround.sources`; CONTRIBUTING.md has the recipe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol

from numpy.typing import NDArray

from wardround.errors import DataError
from wardround.plugins import Kind
from wardround.task import Task
from wardround.toml import Section, loads
from wardround_client.config import BurnedIn, HospitalConfig, PatientIds, Select
from wardround_client.intake.pseudonyms import Pseudonyms

Labels = tuple[str | None, ...]
"""One for each of a source's label columns; None where it is missing."""


@dataclass(frozen=True)
class Rejection:
    """Why an item cannot be used.

    reason: one of few fixed sentences; holds no value of the item, so it may be counted, printed and logged.
    detail: more for the person at the hospital; may quote the item, so it goes to the quarantine list only.
    by_choice: the hospital's own `[select]` leaves it out, whatever is in it.
    passing: it says nothing of the item; the next try may find it well.
    """

    reason: str
    detail: str = ""
    by_choice: bool = False
    passing: bool = False


class UnusableError(Exception):
    """The item cannot be used; whoever reads items catches it, and no user ever sees it."""

    def __init__(self, reason: str, detail: object = "", *, by_choice: bool = False) -> None:
        self.rejection = Rejection(reason, " ".join(str(detail).split())[:500], by_choice=by_choice)
        super().__init__(reason)


@dataclass(frozen=True)
class Instance:
    """What is kept of one item; nothing else of it reaches the cohort.

    patient, study, instance: keyed hashes, bytes [32]; study is b"" when the item names none.
    rows: uint16 [frames, channels, S, S], scale 1/65535; or float32 [1, features].
    manufacturer: of the scanner, as the item says it; "" where it says none that can be read.
    bare: as patient, of the PatientID alone, whoever issued it; b"" where that is the same. series, accession: as
    study. modality: "" where it names none. kind: modality, image type and view, to be counted and not kept. person: a
    keyed hash of birth date and sex, to notice several people under one PatientID, and not kept.
    """

    patient: bytes
    study: bytes
    instance: bytes
    rows: NDArray[Any]
    manufacturer: str = ""
    bare: bytes = b""
    series: bytes = b""
    accession: bytes = b""
    modality: str = ""
    kind: tuple[str, str, str] = ("", "", "")
    person: bytes = b""


class Item(Protocol):
    """One thing that may become rows of a cohort: a file, a line of a table, an object in an archive.

    It travels to another process to be read there, so it is small and can be pickled.
    """

    @property
    def name(self) -> str:
        """How the hospital finds it again: a path, a line. It goes to the quarantine list only.

        Where there is a fingerprint, whatever has this name later is what this item has become.
        """
        ...

    @property
    def line(self) -> int:
        """The line of the CSV that brings its labels, or 0."""
        ...

    @property
    def labels(self) -> Labels | None:
        """The labels that the item itself brings; None where a labels CSV brings them."""
        ...

    def fingerprint(self) -> str:
        """Changes whenever what `read` returns might have; "" when nobody can tell, and the item is read each time.

        With the same fingerprint it is not read again.
        """
        ...

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Make its rows by a recipe. What it raises refuses this item, and so does a crash, or a loop without end."""
        ...


class LabelLine(NamedTuple):
    """One line of a labels CSV. value: of the key; "" where the line has none, or has too few or too many cells.
    issuer: of a PatientID, where it is not one of the hospital's own.
    """

    line: int
    value: str
    labels: Labels
    issuer: str = ""


@dataclass(frozen=True)
class Rules:
    """What hospital.toml says of an archive. select: which images are used. patients: who is who.

    burned_in: what becomes of text in pixels: the recipe does it, and files are read again when it changes.
    """

    select: Select = field(default_factory=Select)
    patients: PatientIds = field(default_factory=PatientIds)
    burned_in: BurnedIn = field(default_factory=BurnedIn)

    @classmethod
    def of(cls, config: HospitalConfig) -> Rules:
        """Those of a hospital.toml."""
        return cls(config.select, config.patients, config.burned_in)

    @cached_property
    def text(self) -> str:
        """The same for the same rules: part of what is known of a file that was read by them."""
        return " ".join(part.model_dump_json() for part in (self.select, self.patients, self.burned_in))


DEFAULTS = Rules()


@dataclass(frozen=True)
class Asked:
    """What a person asked for.

    where: a path, or whatever a source takes: an address, say. labels: a CSV of labels. columns: its columns to keep;
    None keeps all. task: whose labels are wanted. leave_out: files and folders that are not data. home: of the
    hospital, where a source may keep what it is working on. rules: of the hospital.
    """

    where: str
    labels: Path | None = None
    columns: tuple[str, ...] | None = None
    task: Task | None = None
    leave_out: tuple[Path, ...] = ()
    home: Path | None = None
    rules: Rules = DEFAULTS


class Source(Protocol):
    """Where a cohort comes from.

    Attributes:
        Settings: what `--set NAME=VALUE` may set.
        kind: "image" or "table": of the rows.
        identity: what tells two items of a patient apart, in words.
        whole: `items` is everything that the archive holds, so what is not among them is not there any more.
        tells: something says which labels there are; otherwise those of before stay, and new items have none.
        isolated: read each item in another process, because a decoder may crash or loop.
        name: what was given, for messages.
        key: what a `LabelLine` names, one of `labels_csv.KEY_COLUMNS`; "" where items bring their labels.
        label_columns: names of the labels, in the order of `Labels`.
        notes: how the source was understood, a line each.
        root: which archive it is, whatever it holds: what an ingest finds there no more was taken out of it.
    """

    Settings: ClassVar[type[Section]] = Section
    kind: ClassVar[Literal["image", "table"]]
    identity: ClassVar[str]
    isolated: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    tells: bool = True
    name: str
    key: str = ""
    label_columns: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def root(self) -> str:
        """The path without links, or whatever the name is."""
        return os.path.realpath(self.name) if Path(self.name).exists() else self.name

    def __init__(self, asked: Asked, settings: Any) -> None:
        """Open it and check what can be checked. Raises: ConfigError, DataError, FederationError."""
        ...

    def items(self) -> Iterator[Item]:
        """Every item, in an order that does not depend on the patients; nothing is left out silently.

        It is called several times: to count, to look, to read.
        """
        ...

    def labels(self) -> Iterator[LabelLine]:
        """The lines of the labels CSV; nothing where items bring their labels."""
        return iter(())

    def patient(self, item: Item) -> str:
        """The PatientID of an item where that is known before it is read, else ""."""
        return ""

    def fetched(self, items: Iterator[Item]) -> Iterator[Item]:
        """Bring items that are about to be read to this machine; in their order, each as one item or as several."""
        return items

    def known_by(self, item: Item, outcome: Instance | Rejection, *, stored: bool) -> tuple[bytes, bytes] | None:
        """By which patient and instance in the cohort an item is known while its fingerprint stays; None: it is read
        again. Called for each item that was read, in order. stored: whether it is in the cohort.
        """
        return (outcome.patient, outcome.instance) if stored and isinstance(outcome, Instance) else None

    def done(self, item: Item) -> None:
        """An item was read, and what could be stored of it is stored."""
        return

    def ended(self) -> None:
        """Say, after everything was read, that it was not all there is. Raises: FederationError."""
        return

    def close(self) -> None:
        """Let go of whatever was opened."""
        return


SOURCES: Kind[type[Source]] = Kind("source", "wardround_client.intake.sources", "source", "wardround.sources")


def look(asked: Asked) -> str:
    """The built-in source that fits what a path is: a file is a table; a folder holds pictures where the CSV of labels
    has the columns `file` and `PatientID`, and DICOM files otherwise. Raises: DataError.
    """
    from wardround_client.intake.csv_file import CsvFile

    if Path(asked.where).is_file():
        return "npz" if asked.where.lower().endswith(".npz") else "table"
    if not Path(asked.where).is_dir():
        raise DataError(f"{asked.where} is not a folder or a file", do="correct the path, or name a --source")
    columns = set(CsvFile.open(asked.labels).columns) if asked.labels is not None else set()
    inputs = {each.name for each in asked.task.inputs} if asked.task else set()
    pictures = {"file", "PatientID"} <= columns or not inputs.isdisjoint(columns)
    return "image-folder" if pictures else "dicom-folder"


def opened(name: str, asked: Asked, settings: Mapping[str, str]) -> Source:
    """A source by its name. settings: as typed with `--set`. Raises: ConfigError, DataError."""
    source = SOURCES[name]
    lines = (f"{json.dumps(key)} = {json.dumps(value)}" for key, value in settings.items())
    return source(asked, loads("\n".join(lines), source.Settings, name=f"--set of the source {name!r}"))
