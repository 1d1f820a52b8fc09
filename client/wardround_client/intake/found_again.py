"""Which file, or line of a CSV, an image of the cohort came from: a cohort holds keyed hashes, and nobody undoes them.

So whoever took it in names the same files or the same CSV again, and what they hash to is looked up. Nothing is stored.
"""

from __future__ import annotations

import csv
import io
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wardround.errors import ConfigError
from wardround.task import Task
from wardround_client.cohort.store import CohortStore, Subjects
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.card import card_of
from wardround_client.intake.labels_csv import NOTE, LabelsCsv
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import recipe_in
from wardround_client.intake.source import Asked, Instance, Item, Source, look, opened
from wardround_client.intake.sources.npz import NUMBER, PATIENT
from wardround_client.intake.sources.npz import Picture as Numbered
from wardround_client.intake.spreadsheet import harmless

STUDY = "StudyInstanceUID"
Cells = Mapping[str, str]
"""A line of a labels CSV, by column."""


@dataclass(frozen=True)
class Line:
    """An image that a line of the hospital's own CSV names."""

    number: int


Origin = Line | Item


def originated(
    asked: Asked, source: str, settings: Mapping[str, str], store: CohortStore, pseudonyms: Pseudonyms
) -> dict[int, Origin]:
    """Rows of the cohort -> the file, or the line of a CSV, that each came from, where a label of that is a label of
    nobody else.

    Args:
        asked: what was taken in, as a person names it; its where may be empty: then the CSV's keys say it.
        source: by which it was read; "": what it looks like.
        settings: of the source.
        store: the cohort.
        pseudonyms: the hospital's.

    Raises: ConfigError, DataError, StorageError.
    """
    if asked.where:
        with closing(opened(source or look(asked), asked, settings)) as read:
            assert asked.task is not None, "whoever asks knows the task"
            found = by_items(read, store, asked.task, pseudonyms)
    elif asked.labels is not None:
        found = by_keys(LabelsCsv.open(asked.labels, (), own_issuer=asked.rules.patients.issuer), store, pseudonyms)
    else:
        raise ConfigError(
            "nothing says who the patients of the cohort are",
            do="name the folder or file that `ingest` took in, or with --labels the worklist of `pull`",
        )
    return told_apart(found, store.subjects)


def by_items(source: Source, store: CohortStore, task: Task, pseudonyms: Pseudonyms) -> dict[int, Origin]:
    """Rows of the cohort -> the unchanged item of a source that each came from; others are not there.

    Raises: DataError, StorageError.
    """
    files = store.files()
    items: dict[tuple[bytes, bytes], Item] = {}
    for item in source.items():
        fingerprint = item.fingerprint()
        known = files.get(pseudonyms.exact("file", fingerprint)) if fingerprint else None
        if known is None and not source.isolated and not fingerprint:  # a row of a table: reading it costs nothing
            made = item.read(recipe_in(store.layout.recipe, task), pseudonyms)
            known = (made.patient, made.instance) if isinstance(made, Instance) else None
        if known is not None:
            items.setdefault(known, item)
    found: dict[int, Origin] = {}
    for row, of in enumerate(store.subjects):
        named = items.get((of.patient, of.instance))
        if named is not None:
            found[row] = Line(named.line) if named.line else named
    return found


def by_keys(csv_file: LabelsCsv, store: CohortStore, pseudonyms: Pseudonyms) -> dict[int, Origin]:
    """Rows of the cohort -> the first line of a labels CSV whose key names each, the most particular key first.

    Raises: DataError, StorageError.
    """
    lines: dict[bytes, int] = {}
    for line, value, _, issuer in csv_file.lines():
        if value:
            named = pseudonyms.patient(value, issuer) if issuer else pseudonyms.of(csv_file.key, value)
            lines.setdefault(named, line)
    named_by = ((row, next((lines[each] for each in of if each in lines), 0)) for row, of in enumerate(store.subjects))
    return {row: Line(number) for row, number in named_by if number}


def told_apart(found: Mapping[int, Origin], subjects: Sequence[Subjects]) -> dict[int, Origin]:
    """The same without those whose line, or whose study, is another patient's too, or has no UID: a label would be as
    well.
    """
    patients: dict[int | bytes, set[bytes]] = defaultdict(set)
    for row, of in enumerate(subjects):
        patients[of.study].add(of.patient)
        if isinstance(origin := found.get(row), Line):
            patients[origin.number].add(of.patient)

    def alone(row: int, origin: Origin) -> bool:
        named = origin.number if isinstance(origin, Line) else subjects[row].study
        return isinstance(origin, Numbered) or (bool(named) and len(patients[named]) == 1)

    return {row: origin for row, origin in found.items() if alone(row, origin)}


def to_fill(
    origins: Sequence[Origin], columns: Sequence[str], notes: Sequence[Cells], own: Path
) -> Iterator[dict[str, str] | None]:
    """A line of a labels CSV for each origin, its label empty and notes behind it, as `ingest` takes it again; None for
    a file that cannot be read any more, or whose study has a name that a spreadsheet would compute.

    Args:
        origins: what the lines are about.
        columns: of the label.
        notes: of each origin, by name.
        own: the CSV, where lines of one are meant; all its columns are kept.

    Raises: DataError.
    """
    empty = dict.fromkeys(columns, "")
    meant = any(isinstance(origin, Line) for origin in origins)
    lines = {row.line: row.cells for row in CsvFile.open(own).rows()} if meant else {}
    for origin, said in zip(origins, notes, strict=True):
        noted = {f"{NOTE} {name}": str(harmless(value)) for name, value in said.items()}
        if isinstance(origin, Line):
            cells = lines.get(origin.number) or {}
            kept = {name: cell for name, cell in cells.items() if not name.startswith(NOTE)}
            yield {**kept, **empty, **noted}
        elif isinstance(origin, Numbered):
            yield {NUMBER: str(origin.number), PATIENT: origin.patient or "", **empty, **noted}
        else:
            yield _of_dicom(origin, {**empty, **noted})


def _of_dicom(item: Any, cells: Cells) -> dict[str, str] | None:
    path = getattr(item, "files", (item,))[0].path
    with suppress(UnusableError, OSError):
        card = card_of(path)
        if card[STUDY] and harmless(card[STUDY]) == card[STUDY]:
            known = {"PatientID": card["PatientID"], "AccessionNumber": card["AccessionNumber"], "file": str(path)}
            who = {f"{NOTE} {name}": str(harmless(value)) for name, value in known.items()}
            return {STUDY: card[STUDY], **cells, **who}
    return None


def written(lines: Sequence[Cells]) -> bytes:
    """A CSV of lines that have the same columns, in UTF-8 with a mark that spreadsheets look for."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]) if lines else [])
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue().encode("utf-8-sig", "replace")
