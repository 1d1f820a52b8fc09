"""DICOM files and a labels CSV, or a table, -> a cohort. Never aborts over a file, never drops one silently.

Every file that is found is counted once: read == used + quarantined. A file that an earlier ingest stored, unchanged,
counts as used (and as `already`). So running the same ingest again adds nothing and reports the same sums; an
interrupted ingest continues where it stopped, and ends in the cohort that one clean run makes.

What is stored of a patient follows from that patient's files, from the lines of the CSV whose key one of these files
has, and from the settings. Whoever else is there changes none of it: a UID names something within one patient, and two
patients who claim the same one both keep theirs.
"""

from __future__ import annotations

import ast
import csv
import math
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround_client.cohort.store import MANUFACTURER, QUARANTINE, Layout, normalised, storage
from wardround_client.cohort.writer import Batch, CohortWriter
from wardround_client.intake.dicom import Instance, Pseudonyms, Recipe, Rejection
from wardround_client.intake.dicom.workers import chunk_files, outcomes
from wardround_client.intake.sources import (
    MISSING,
    LabelsCsv,
    Listed,
    checked_header,
    dicom_folder,
    label,
    rows,
    with_manufacturer,
)
from wardround_client.intake.spreadsheet import harmless

Progress = Callable[[int, int], None]

BATCH_CHUNKS = 8
"""Chunks of files in one transaction: a sync to disk every hundred files or so."""

LISTED_LINES = 20
"""At most so many lines of the CSV are named in a summary."""

WITHHELD = "(withheld)"
"""Stands in the quarantine list for a file of somebody who withdrew: a path or a line would tell who did."""

DUPLICATE = Rejection("duplicate SOP Instance UID (0008,0018)")
GREATEST = float(np.finfo(np.float32).max)
RAGGED = Rejection("another number of cells than there are columns")
WITHDRAWN = Rejection("patient withdrawn")
CHANGED = Rejection("SOP Instance UID (0008,0018) is in the cohort with other pixels")


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did. read == used + quarantined, always.

    Attributes:
        read: files (or table rows) found. used: those in the cohort now. already: those of `used` that were before.
        quarantined: those that cannot be used; `quarantine.csv` in the cohort's folder lists each.
        reasons: quarantined files by reason; a reason never holds a value of a file.
        patients, images: in the whole cohort now (images: rows, for a table), less those who have withdrawn.
        added: images that this ingest added. unlabelled: images without a label in any column of this CSV.
        unmatched: rows of the CSV whose key no image has. unmatched_lines: the first of their line numbers.
        unusable: lines of the CSV without a key, with too few or too many cells, or that contradict an earlier line of
            the same key (which then has no label). unusable_lines: the first of their line numbers.
        shared: SOP Instance UIDs that several patients have, each an image of its own: maybe one person twice.
    """

    read: int
    used: int
    already: int
    quarantined: int
    reasons: dict[str, int]
    patients: int
    images: int
    added: int
    unlabelled: int
    unmatched: int = 0
    unmatched_lines: tuple[int, ...] = ()
    unusable: int = 0
    unusable_lines: tuple[int, ...] = ()
    shared: int = 0


@dataclass
class _Tally:
    """Counts as they grow, and the open quarantine list."""

    write: Callable[[str, Rejection], None]
    already: int = 0
    fresh: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unusable: list[int] = field(default_factory=list)

    def reject(self, what: str, rejection: Rejection) -> None:
        self.reasons[rejection.reason] += 1
        self.write(what, rejection)

    @property
    def read(self) -> int:
        return self.already + self.fresh + self.reasons.total()


def ingest(
    source_dir: Path,
    labels_csv: Path,
    cohort_dir: Path,
    *,
    key: bytes,
    image_size_px: int,
    channels: int,
    workers: int | None = None,
    progress: Progress | None = None,
    label_columns: Sequence[str] | None = None,
    frames_per_file: int = 32,
    allow_burned_in: bool = False,
    withdrawn: Collection[bytes] = (),
) -> IngestSummary:
    """Turn a folder of DICOM files into a cohort, or add to one.

    Args:
        source_dir: searched with all its sub-folders.
        labels_csv: one key column (PatientID, StudyInstanceUID or SOPInstanceUID) and label columns. A label of an
            image goes before one of its study, and that before one of its patient; an empty cell takes a label away,
            and so do two lines of one key that contradict each other.
            A column `manufacturer` says who made the scanner where a file does not.
        cohort_dir: made when absent.
        key: the hospital's pseudonym secret, at least 16 bytes.
        image_size_px: side of the stored images.
        channels: 1 or 3.
        workers: processes; None: one for each core; 1: in this process.
        progress: called with (files done, files found).
        label_columns: the columns of the CSV to keep, beside `manufacturer`; None: all but the key.
        frames_per_file: of a multi-frame file, at most so many frames.
        allow_burned_in: use files whose Burned In Annotation (0028,0301) is YES.
        withdrawn: pseudonyms of patients whose files are quarantined, and whose stored images count as gone.

    Raises:
        DataError: nothing to read, a CSV that cannot be used, or a cohort of other settings or another key.
        StorageError: disk full or no permission. What was stored stays; the same ingest continues.
    """
    recipe = Recipe(image_size_px, channels, frames_per_file, allow_burned_in)
    layout = Layout("image", image_size_px, channels, recipe=recipe_text(recipe))
    pseudonyms = _pseudonyms(key)
    labels = LabelsCsv.open(labels_csv, label_columns)

    def listed() -> Iterator[Listed]:
        return dicom_folder(source_dir, leave_out=(cohort_dir, labels_csv))

    found = sum(1 for _ in listed())
    if not found:
        raise DataError(f"{source_dir} holds no files", do="name the folder that holds the DICOM files")
    with storage(cohort_dir), CohortWriter(cohort_dir, layout, key, withdrawn=withdrawn) as writer:
        with writer.batch() as batch:
            unusable = _stage(batch, labels, pseudonyms, writer.withdrawn)
            _claim_known(writer, batch, listed(), pseudonyms)
        with _quarantine_list(cohort_dir) as write:
            tally = _Tally(write, unusable=unusable)
            seen: dict[Path, bytes] = {}
            todo = _unknown(writer, listed(), pseudonyms, tally, seen)
            results = outcomes(todo, recipe, pseudonyms, workers)
            while some := list(islice(results, chunk_files(recipe) * BATCH_CHUNKS)):
                with writer.batch() as batch:
                    for file, outcome in some:
                        _store(writer, batch, file, outcome, seen.pop(file), tally)
                if progress:
                    progress(min(tally.read, found), found)
        return _finish(writer, labels, tally)


def recipe_text(recipe: Recipe) -> str:
    """A recipe as the layout of a cohort of images keeps it."""
    return f"1: {asdict(recipe)}"


def recipe_of(text: str) -> Recipe:
    """The inverse of `recipe_text`. Raises: DataError, when another version wrote it."""
    version, _, settings = text.partition(": ")
    try:
        if version == "1":
            return Recipe(**ast.literal_eval(settings))
    except (ValueError, SyntaxError, TypeError):
        pass
    raise DataError(f"images made by the recipe {text[:80]!r}", do="use the wardround that took them in")


def _pseudonyms(key: bytes) -> Pseudonyms:
    if len(key) < 16:
        raise DataError(
            f"the pseudonym key has {len(key)} bytes", allowed="16 or more", do="use the hospital's secret.key"
        )
    return Pseudonyms(key)


def _stage(batch: Batch, labels: LabelsCsv, pseudonyms: Pseudonyms, withdrawn: Collection[bytes]) -> list[int]:
    """Read the whole CSV first -> the lines that cannot be used: each costs its own key the labels, and nobody else."""
    unusable = []
    for line, value, told in labels.rows():
        subject = pseudonyms.of(labels.key, value)
        if not value or (subject not in withdrawn and batch.stage(subject, line, told) is not None):
            unusable.append(line)
    return unusable


def _claim_known(writer: CohortWriter, batch: Batch, entries: Iterator[Listed], pseudonyms: Pseudonyms) -> None:
    """A stored file that is still in its place keeps its SOP Instance UID; a copy of it elsewhere is the duplicate."""
    for entry in entries:
        known = writer.known(pseudonyms.exact("file", entry.fingerprint()))
        if known is not None:
            batch.claim(*known)


def _unknown(
    writer: CohortWriter, entries: Iterator[Listed], pseudonyms: Pseudonyms, tally: _Tally, seen: dict[Path, bytes]
) -> Iterator[Path]:
    """The files that have to be opened, each with its fingerprint of before in `seen`; others are counted here."""
    for entry in entries:
        fingerprint = entry.fingerprint()
        file = pseudonyms.exact("file", fingerprint) if fingerprint else b""
        if entry.unreadable:
            tally.reject(str(entry.path), Rejection("not a regular file or a folder without access", entry.unreadable))
        elif (known := writer.known(file)) is None:
            seen[entry.path] = file
            yield entry.path
        elif known[0] in writer.withdrawn:
            tally.reject(WITHHELD, WITHDRAWN)
        else:
            tally.already += 1


def _store(
    writer: CohortWriter, batch: Batch, path: Path, outcome: Instance | Rejection, file: bytes, tally: _Tally
) -> None:
    if isinstance(outcome, Rejection):
        tally.reject(str(path), outcome)
        return
    if outcome.patient in writer.withdrawn:
        tally.reject(WITHHELD, WITHDRAWN)
        return
    if not batch.claim(outcome.patient, outcome.instance):
        tally.reject(str(path), DUPLICATE)
        return
    stored = writer.stored(outcome.patient, outcome.instance)
    manufacturer = normalised(outcome.manufacturer)
    if stored is None:
        batch.add(
            patient=outcome.patient,
            study=outcome.study,
            instance=outcome.instance,
            rows=outcome.images,
            manufacturer=manufacturer,
        )
        tally.fresh += 1
    elif np.array_equal(stored, outcome.images):
        batch.made_by(outcome.patient, outcome.instance, manufacturer)
        tally.already += 1  # the file was moved or touched
    else:
        tally.reject(str(path), CHANGED)
        return
    if file:
        batch.remember(file, outcome.patient, outcome.instance)


@contextmanager
def _quarantine_list(cohort_dir: Path) -> Iterator[Callable[[str, Rejection], None]]:
    """quarantine.csv, replaced in one step by this ingest's list; quarantined files are tried again each time."""
    draft = cohort_dir / f"{QUARANTINE}.part"
    with draft.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        draft.chmod(0o600)
        writer = csv.writer(file)
        writer.writerow(["file", "reason", "detail"])
        yield lambda what, found: writer.writerow(map(harmless, (what, found.reason, found.detail))) and None
        file.flush()
        os.fsync(file.fileno())
    draft.replace(cohort_dir / QUARANTINE)


def _finish(writer: CohortWriter, labels: LabelsCsv, tally: _Tally) -> IngestSummary:
    with writer.batch() as batch:
        matched, unmatched, lines = batch.label(labels.columns, LISTED_LINES)
    writer.finish()
    patients, images = writer.totals()
    if images and (unmatched or tally.unusable) and not matched:
        raise DataError(
            f"{labels.path}: no {labels.key} of this file is in the cohort",
            allowed=f"the values of {labels.key} in the DICOM files, written exactly alike",
            do="correct the CSV, its empty keys and missing commas too, and ingest again; the images stay stored",
        )
    return IngestSummary(
        read=tally.read,
        used=tally.already + tally.fresh,
        already=tally.already,
        quarantined=tally.reasons.total(),
        reasons=dict(tally.reasons.most_common()),
        patients=patients,
        images=images,
        added=writer.added,
        unlabelled=writer.unlabelled([column for column in labels.columns if column != MANUFACTURER]),
        unmatched=unmatched,
        unmatched_lines=lines,
        unusable=len(tally.unusable),
        unusable_lines=tuple(tally.unusable[:LISTED_LINES]),
        shared=writer.shared(),
    )


def ingest_table(
    table_csv: Path,
    cohort_dir: Path,
    *,
    key: bytes,
    features: Sequence[str],
    patient_column: str | None,
    label_columns: Sequence[str],
    columns: Sequence[str] | None = None,
    constants: Mapping[str, float] | None = None,
    withdrawn: Collection[bytes] = (),
) -> IngestSummary:
    """Turn a CSV of measurements into a cohort, or add to one. A row is an example.

    An empty cell or `?` in a feature is replaced by that feature's public constant; without one the row is
    quarantined. (A mean or median would be computed from the patients, and would have to be paid for.)

    Args:
        table_csv: the table.
        cohort_dir: made when absent.
        key: the hospital's pseudonym secret, at least 16 bytes.
        features: columns of numbers, in the order of the stored row.
        patient_column: whose row it is; None promises that each row is a patient of its own.
        label_columns: columns of labels; an empty cell or `?` is no label. A column `manufacturer`, of who made the
            device, is kept where the table has one.
        columns: names of all columns, for a file without a header.
        constants: by feature, what stands for a missing value.
        withdrawn: pseudonyms of patients whose rows are quarantined, and whose stored rows count as gone.

    Raises:
        DataError: the CSV cannot be used, a column is absent, or the cohort has other settings or another key.
        StorageError: disk full or no permission.
    """
    constants = dict(constants or {})
    recipe = f"1: missing {sorted(constants.items())}"
    layout = Layout("table", features=tuple(features), recipe=recipe)
    pseudonyms = _pseudonyms(key)
    wanted = [*features, *label_columns, *([patient_column] if patient_column else [])]
    header = _check_columns(table_csv, checked_header(table_csv, columns), wanted)
    label_columns = with_manufacturer(label_columns, header)
    with storage(cohort_dir), CohortWriter(cohort_dir, layout, key, withdrawn=withdrawn) as writer:
        with _quarantine_list(cohort_dir) as write:
            tally = _Tally(write)
            source = rows(table_csv, columns=columns)
            seen: Counter[bytes] = Counter()
            while some := list(islice(source, 1024)):
                with writer.batch() as batch:
                    for row in some:
                        cells = row.cells or {}
                        outcome = (
                            _example(cells, features, patient_column, constants, pseudonyms, seen) if cells else RAGGED
                        )
                        if isinstance(outcome, Rejection):
                            tally.reject(f"{table_csv}, line {row.line}", outcome)
                            continue
                        if outcome.patient in writer.withdrawn:
                            tally.reject(WITHHELD, WITHDRAWN)
                            continue
                        told = [label(cells[column]) for column in label_columns]
                        patient, instance = outcome.patient, outcome.instance
                        batch.stage(instance, row.line, told)
                        if not batch.holds(patient, instance):
                            batch.add(patient=patient, study=b"", instance=instance, rows=outcome.values)
                            tally.fresh += 1
                        else:
                            tally.already += 1
        return _finish(writer, LabelsCsv(table_csv, "row", label_columns), tally)


@dataclass(frozen=True)
class _Example:
    patient: bytes
    instance: bytes
    values: np.ndarray[tuple[int, int], np.dtype[np.float32]]


def _check_columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> Sequence[str]:
    """The names of all columns. Raises: DataError, when a wanted one is absent."""
    absent = [column for column in wanted if column not in header]
    if absent or not wanted:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, absent))}",
            allowed=", ".join(header),
            do="correct the names of features, labels and patient",
        )
    return header


def _example(
    cells: Mapping[str, str],
    features: Sequence[str],
    patient_column: str | None,
    constants: Mapping[str, float],
    pseudonyms: Pseudonyms,
    seen: Counter[bytes],
) -> _Example | Rejection:
    """One row, checked. Rows that say the same are told apart by how often they were met."""
    values = []
    for feature in features:
        cell = cells[feature]
        if cell in MISSING:
            if feature not in constants:
                return Rejection(f"column {feature} is missing")
            values.append(constants[feature])
            continue
        try:
            values.append(float(cell))
        except ValueError:
            return Rejection(f"column {feature} is not a number", cell)
        if not math.isfinite(values[-1]) or abs(values[-1]) > GREATEST:
            return Rejection(f"column {feature} is not a finite number", cell)
    named = [*features, patient_column] if patient_column else features
    content = pseudonyms.exact("row", "\0".join(cells[name] for name in named))
    seen[content] += 1
    instance = pseudonyms.exact("row", f"{content.hex()} {seen[content]}")
    if patient_column is None:
        patient = instance
    elif cells[patient_column] in MISSING:
        return Rejection(f"column {patient_column} is missing")
    else:
        patient = pseudonyms.patient(cells[patient_column])
    return _Example(patient, instance, np.array([values], np.float32))
