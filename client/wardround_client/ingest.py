"""DICOM files and a labels CSV, or a table, -> a cohort. Never aborts over a file, never drops one silently.

Every file that is found is counted once: read == used + quarantined. A file that an earlier ingest stored, unchanged,
counts as used (and as `already`). So running the same ingest again adds nothing and reports the same sums; an
interrupted ingest continues where it stopped, and ends in the cohort that one clean run makes.
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
from wardround_client.cohort import MANUFACTURER, QUARANTINE, Layout, normalised, storage
from wardround_client.cohort_writer import Batch, CohortWriter
from wardround_client.dicom import Instance, Pseudonyms, Recipe, Rejection
from wardround_client.dicom.workers import chunk_files, outcomes
from wardround_client.sources import MISSING, LabelsCsv, Listed, Row, dicom_folder, label, rows, with_manufacturer
from wardround_client.spreadsheet import harmless

Progress = Callable[[int, int], None]

BATCH_CHUNKS = 8
"""Chunks of files in one transaction: a sync to disk every hundred files or so."""

LISTED_LINES = 20
"""At most so many lines of the CSV are named in a summary."""

WITHHELD = "(withheld)"
"""Stands in the quarantine list for a file of somebody who withdrew: a path or a line would tell who did."""

DUPLICATE = Rejection("duplicate SOP Instance UID (0008,0018)")
WITHDRAWN = Rejection("patient withdrawn")
CHANGED = Rejection("SOP Instance UID (0008,0018) is in the cohort with another patient or other pixels")


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


@dataclass
class _Tally:
    """Counts as they grow, and the open quarantine list."""

    write: Callable[[str, Rejection], None]
    already: int = 0
    fresh: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

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
            image goes before one of its study, and that before one of its patient; an empty cell takes a label away.
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
            _stage(batch, labels, pseudonyms, writer.withdrawn)
            _claim_known(batch, listed(), pseudonyms)
        with _quarantine_list(cohort_dir) as write:
            tally = _Tally(write)
            todo = _unknown(writer, listed(), pseudonyms, tally)
            results = outcomes(todo, recipe, pseudonyms, workers)
            while some := list(islice(results, chunk_files(recipe) * BATCH_CHUNKS)):
                with writer.batch() as batch:
                    for file, outcome in some:
                        _store(writer, batch, file, outcome, pseudonyms, tally)
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


def _stage(batch: Batch, labels: LabelsCsv, pseudonyms: Pseudonyms, withdrawn: Collection[bytes]) -> None:
    """Read the whole CSV first, so that a mistake in it costs no time. Raises: DataError."""
    for line, value, told in labels.rows():
        subject = pseudonyms.of(labels.key, value)
        earlier = None if subject in withdrawn else batch.stage(subject, line, told)
        if earlier is not None:
            raise DataError(
                f"{labels.path}, line {line}: the same {labels.key} as on line {earlier}, with other labels",
                do="keep one of the two lines",
            )


def _fingerprint(pseudonyms: Pseudonyms, entry: Listed) -> bytes:
    return pseudonyms.of("file", entry.fingerprint())


def _claim_known(batch: Batch, entries: Iterator[Listed], pseudonyms: Pseudonyms) -> None:
    """A stored file that is still in its place keeps its SOP Instance UID; a copy of it elsewhere is the duplicate."""
    for entry in entries:
        instance = batch.instance_of(_fingerprint(pseudonyms, entry))
        if instance is not None:
            batch.claim(instance)


def _unknown(writer: CohortWriter, entries: Iterator[Listed], pseudonyms: Pseudonyms, tally: _Tally) -> Iterator[Path]:
    """The files that have to be opened; the others are counted here."""
    for entry in entries:
        if entry.unreadable:
            tally.reject(str(entry.path), Rejection("not a regular file or a folder without access", entry.unreadable))
        elif (owner := writer.owner_of(_fingerprint(pseudonyms, entry))) is None:
            yield entry.path
        elif owner in writer.withdrawn:
            tally.reject(WITHHELD, WITHDRAWN)
        else:
            tally.already += 1


def _store(
    writer: CohortWriter, batch: Batch, path: Path, outcome: Instance | Rejection, pseudonyms: Pseudonyms, tally: _Tally
) -> None:
    if isinstance(outcome, Rejection):
        tally.reject(str(path), outcome)
        return
    if outcome.patient in writer.withdrawn:
        tally.reject(WITHHELD, WITHDRAWN)
        return
    if not batch.claim(outcome.instance):
        tally.reject(str(path), DUPLICATE)
        return
    stored, manufacturer = writer.stored(outcome.instance), normalised(outcome.manufacturer)
    if stored is None:
        batch.add(
            patient=outcome.patient,
            study=outcome.study,
            instance=outcome.instance,
            rows=outcome.images,
            manufacturer=manufacturer,
        )
        tally.fresh += 1
    elif batch.owner(outcome.instance) == outcome.patient and np.array_equal(stored, outcome.images):
        batch.made_by(outcome.instance, manufacturer)
        tally.already += 1  # the file was moved or touched
    else:
        tally.reject(str(path), CHANGED)
        return
    batch.remember(_fingerprint(pseudonyms, Listed(path)), outcome.instance)


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
    if images and unmatched and not matched:
        raise DataError(
            f"{labels.path}: no {labels.key} of this file is in the cohort",
            allowed=f"the values of {labels.key} in the DICOM files, written exactly alike",
            do="correct the CSV and ingest again; the images are stored, and are not read again",
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
    header = _check_columns(table_csv, rows(table_csv, columns=columns), wanted)
    label_columns = with_manufacturer(label_columns, header)
    with storage(cohort_dir), CohortWriter(cohort_dir, layout, key, withdrawn=withdrawn) as writer:
        with _quarantine_list(cohort_dir) as write:
            tally = _Tally(write)
            source = rows(table_csv, columns=columns)
            seen: Counter[bytes] = Counter()
            while some := list(islice(source, 1024)):
                with writer.batch() as batch:
                    for row in some:
                        outcome = _example(row, features, patient_column, constants, pseudonyms, seen)
                        if isinstance(outcome, Rejection):
                            tally.reject(f"{table_csv}, line {row.line}", outcome)
                            continue
                        if outcome.patient in writer.withdrawn:
                            tally.reject(WITHHELD, WITHDRAWN)
                            continue
                        told = [label(row.cells[column]) for column in label_columns]
                        batch.stage(outcome.instance, row.line, told)
                        if batch.owner(outcome.instance) is None:
                            patient, instance = outcome.patient, outcome.instance
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


def _check_columns(path: Path, source: Iterator[Row], wanted: Sequence[str]) -> Collection[str]:
    """The names of all columns. Raises: DataError, when a wanted one is absent or there is no row."""
    first = next(source, None)
    if first is None:
        raise DataError(f"{path}: holds no rows", do="name a CSV with a header and one row for each example")
    absent = [column for column in wanted if column not in first.cells]
    if absent or not wanted:
        raise DataError(
            f"{path}: no column {', '.join(map(repr, absent))}",
            allowed=", ".join(first.cells),
            do="correct the names of features, labels and patient",
        )
    return first.cells.keys()


def _example(
    row: Row,
    features: Sequence[str],
    patient_column: str | None,
    constants: Mapping[str, float],
    pseudonyms: Pseudonyms,
    seen: Counter[bytes],
) -> _Example | Rejection:
    """One row, checked. Rows that say the same are told apart by how often they were met."""
    values = []
    for feature in features:
        cell = row.cells[feature]
        if cell in MISSING:
            if feature not in constants:
                return Rejection(f"column {feature} is missing")
            values.append(constants[feature])
            continue
        try:
            values.append(float(cell))
        except ValueError:
            return Rejection(f"column {feature} is not a number", cell)
        if not math.isfinite(values[-1]) or abs(values[-1]) > np.finfo(np.float32).max:
            return Rejection(f"column {feature} is not a finite number", cell)
    named = [*features, patient_column] if patient_column else features
    content = pseudonyms.of("row", "\0".join(row.cells[name] for name in named))
    seen[content] += 1
    instance = pseudonyms.of("row", f"{content.hex()} {seen[content]}")
    if patient_column is None:
        patient = instance
    elif row.cells[patient_column] in MISSING:
        return Rejection(f"column {patient_column} is missing")
    else:
        patient = pseudonyms.patient(row.cells[patient_column])
    return _Example(patient, instance, np.array([values], np.float32))
