"""A source -> a cohort. Never aborts over an item, never drops one silently.

Every item is counted once: read == used + quarantined. An item that an earlier ingest stored, unchanged, counts as used
(and as `already`). So running the same ingest again adds nothing and reports the same sums; an interrupted ingest
continues where it stopped, and ends in the cohort that one clean run makes.

What is stored of a patient follows from that patient's items, from the lines of the CSV whose key one of these items
has, and from the settings. Nothing of another patient changes it: a UID names something within one patient, and two
patients who claim the same one both keep theirs.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

import numpy as np

from wardround.errors import DataError
from wardround.task import Task
from wardround_client.cohort.batch import Batch, Stored
from wardround_client.cohort.index import CohortLayout, storage
from wardround_client.cohort.labels import LabelCounts, label_counts
from wardround_client.cohort.store import MANUFACTURER, CohortStore, normalised
from wardround_client.cohort.writer import CohortWriter
from wardround_client.intake.check import check_labels, labels_for
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import Recipe
from wardround_client.intake.source import Instance, Item, Rejection, Source
from wardround_client.intake.summary import WITHDRAWN, WITHHELD, IngestSummary, Tally, quarantine_list
from wardround_client.intake.workers import PATIENCE_S, Outcome, outcomes

Progress = Callable[[int, int], None]

BATCH_BYTES = 1 << 25
"""Of rows in one transaction, about: a sync to disk every hundred images or so, and memory stays flat."""

LISTED_LINES, LISTED_LABELS = 20, 100
"""At most so many lines of the CSV, and labels of a column, are named in a summary."""


def ingest(
    source: Source,
    cohort_dir: Path,
    recipe: Recipe,
    *,
    key: bytes,
    workers: int | None = None,
    patience_s: float = PATIENCE_S,
    progress: Progress | None = None,
    withdrawn: Collection[bytes] = (),
    tasks: Sequence[Task] = (),
    allow_unknown_labels: bool = False,
    remove_missing: int = 0,
    dry_run: bool = False,
) -> IngestSummary:
    """Turn what a source yields into a cohort, or add to one.

    An empty cell of a CSV takes a label away, and so do two lines of one key that contradict each other. What the
    archive does not hold any more is taken out as `cohort/corrections.py` says, and labels as `Batch.label`.

    Args:
        source: what is read.
        cohort_dir: made when absent.
        recipe: how every row is made; the cohort's for life.
        key: the hospital's pseudonym secret, at least 16 bytes.
        workers: processes that read; None: one for each core; 0: none but this one.
        patience_s: how long one item may take to be read.
        progress: called with (items done, items found).
        withdrawn: pseudonyms of patients whose items are quarantined, and whose stored images count as gone.
        tasks: whose classes the labels are compared with, before anything is stored.
        allow_unknown_labels: go on where some are none of them.
        remove_missing: take out so many items that the archive does not hold any more, and labels that its CSV does not
            give any more; where there are more, none.
        dry_run: read everything and report what would happen, and write nothing.

    Raises:
        DataError: nothing to read, unknown labels, a CSV that cannot be used, or a cohort of other settings or key.
        StorageError: disk full or no permission. What was stored stays; the same ingest continues.
    """
    pseudonyms = Pseudonyms(key)
    found = sum(1 for _ in source.items())
    if not found:
        raise DataError(f"{source.name} holds no files", do="name what holds the images or the rows")
    for task in tasks:
        if allow_unknown_labels:
            labels_for(source, task)
        else:
            check_labels(source, task)
    root = pseudonyms.exact("root", source.root)
    writing = CohortWriter(cohort_dir, recipe.layout, key, root=root, withdrawn=withdrawn, dry_run=dry_run)
    with storage(cohort_dir), writing as writer:
        tally = Tally(write=lambda *_: None)
        with writer.batch() as batch:
            _stage(batch, source, pseudonyms, writer.withdrawn, tally)
            again = _claim_known(writer, batch, source, pseudonyms, tally)
        with nullcontext(tally.write) if dry_run else quarantine_list(cohort_dir) as tally.write:
            files: deque[bytes] = deque()
            fetched = source.fetched(_unknown(writer, source, pseudonyms, tally, again))
            todo = _fingerprinted(fetched, pseudonyms, files)
            results = outcomes(todo, recipe, pseudonyms, workers if source.isolated else 0, patience_s=patience_s)
            while some := list(islice(results, _batch_items(recipe.layout))):
                with writer.batch() as batch:
                    for item, outcome in some:
                        file = files.popleft()
                        place = pseudonyms.exact("place", item.name)
                        if file:
                            certain = isinstance(outcome, Instance) or outcome.by_choice
                            batch.meet(place, file, certain=certain)
                        stored = _store(writer, batch, source, item, outcome, tally)
                        if (by := source.known_by(item, outcome, stored=stored)) and file:
                            batch.remember(file, place, *by)
                for item, _ in some:
                    source.done(item)
                if progress:
                    progress(min(tally.read, found), found)
        return _finish(writer, source, remove_missing, tally, tasks, dry_run=dry_run)


def unknown(source: Source, cohort_dir: Path, recipe: Recipe, key: bytes) -> Iterator[Item]:
    """The items that an ingest would have to read. Nothing is written. Raises: as `ingest`."""
    pseudonyms = Pseudonyms(key)
    with storage(cohort_dir), CohortWriter(cohort_dir, recipe.layout, key, dry_run=True) as writer:
        yield from (item for item in source.items() if writer.known(_file(item, pseudonyms)) is None)


def _batch_items(layout: CohortLayout) -> int:
    most = 128 if layout.kind == "image" else 1024
    return max(1, min(most, BATCH_BYTES // layout.row_bytes))


def _stage(batch: Batch, source: Source, pseudonyms: Pseudonyms, withdrawn: Collection[bytes], tally: Tally) -> None:
    """Read the whole CSV first; a line that cannot be used costs its own key the labels, and nobody else."""
    for line, value, labels, issuer in source.labels():
        subject = pseudonyms.patient(value, issuer) if issuer else pseudonyms.of(source.key, value)
        left = subject in withdrawn or (bool(issuer) and pseudonyms.patient(value) in withdrawn)
        if not value or (not left and not batch.stage(subject, line, labels)):
            tally.unusable.append(line)


def _claim_known(
    writer: CohortWriter, batch: Batch, source: Source, pseudonyms: Pseudonyms, tally: Tally
) -> set[tuple[str, int]]:
    """A stored item that is still in its place keeps its name; a copy of it elsewhere is the duplicate.

    Returns: name and line of the items that an earlier item has named already.
    """
    again = set()
    for item in source.items():
        file = _file(item, pseudonyms)
        known = writer.known(file)
        if known is None:
            continue
        batch.meet(pseudonyms.exact("place", item.name), file, certain=True)
        if not batch.claim(*known):
            again.add((item.name, item.line))
        if not writer.is_withdrawn(known[0]):
            _stage_own(batch, item, known, tally)
    return again


def _stage_own(batch: Batch, item: Item, of: tuple[bytes, bytes], tally: Tally) -> None:
    """of: patient and instance."""
    if item.labels is not None and not batch.stage(of[1], item.line, item.labels, of[0]):
        tally.unusable.append(item.line)


def _file(item: Item, pseudonyms: Pseudonyms) -> bytes:
    fingerprint = item.fingerprint()
    return pseudonyms.exact("file", fingerprint) if fingerprint else b""


def _fingerprinted(items: Iterable[Item], pseudonyms: Pseudonyms, files: deque[bytes]) -> Iterator[Item]:
    """The same items, the fingerprint of each in `files`, as it was before it is read."""
    for item in items:
        files.append(_file(item, pseudonyms))
        yield item


def _unknown(
    writer: CohortWriter,
    source: Source,
    pseudonyms: Pseudonyms,
    tally: Tally,
    again: Collection[tuple[str, int]],
) -> Iterator[Item]:
    """The items that have to be read; others are counted here."""
    for item in source.items():
        file = _file(item, pseudonyms)
        known = writer.known(file)
        if known is None and writer.withdrawn and _withdrew(source.patient(item), writer, pseudonyms):
            tally.reject(WITHHELD, WITHDRAWN)
        elif known is None:
            yield item
        elif writer.is_withdrawn(known[0]):
            tally.reject(WITHHELD, WITHDRAWN)
        elif (item.name, item.line) in again:
            tally.reject(item.name, Rejection(f"duplicate {source.identity}"))
        else:
            tally.already += 1


def _withdrew(patient: str, writer: CohortWriter, pseudonyms: Pseudonyms) -> bool:
    return bool(patient) and pseudonyms.patient(patient) in writer.withdrawn


def _store(
    writer: CohortWriter,
    batch: Batch,
    source: Source,
    item: Item,
    outcome: Outcome,
    tally: Tally,
) -> bool:
    """Whether it is in the cohort then."""
    if isinstance(outcome, Rejection):
        tally.reject(item.name, outcome)
        return False
    patient, instance = outcome.patient, outcome.instance
    if patient in writer.withdrawn or outcome.bare in writer.withdrawn:
        batch.withhold(patient, instance)
        tally.reject(WITHHELD, WITHDRAWN)
        return False
    if not len(outcome.rows) or outcome.rows.shape[1:] != writer.layout.shape:
        tally.reject(item.name, Rejection("rows of another shape than the cohort's", str(outcome.rows.shape)))
        return False
    _stage_own(batch, item, (patient, instance), tally)
    if not batch.claim(patient, instance):
        tally.reject(item.name, Rejection(f"duplicate {source.identity}"))
        return False
    rows, kept = writer.stored(patient, instance), _kept(outcome)
    if rows is None:
        batch.add(kept, outcome.rows)
        tally.fresh += 1
    elif np.array_equal(rows, outcome.rows):
        batch.describe(kept)
        tally.already += 1  # the file was moved or touched
    elif batch.replace(kept, outcome.rows):
        tally.fresh += 1
    else:
        tally.reject(item.name, Rejection(f"{source.identity} came from another archive with other pixels"))
        return False
    tally.see(outcome)
    return True


def _kept(item: Instance) -> Stored:
    return Stored(
        patient=item.patient,
        instance=item.instance,
        bare=item.bare,
        study=item.study,
        series=item.series,
        accession=item.accession,
        manufacturer=normalised(item.manufacturer),
        modality=item.modality,
    )


def _finish(
    writer: CohortWriter, source: Source, remove_missing: int, tally: Tally, tasks: Sequence[Task], *, dry_run: bool
) -> IngestSummary:
    with writer.batch() as batch:
        corrected = batch.correct(remove_missing, whole=source.whole)
        if writer.added:  # whether a column is there must not depend on whom the CSV names
            batch.know_columns(source.label_columns)
    try:
        with writer.batch() as batch:
            told = batch.label(
                source.label_columns if source.tells else (), LISTED_LINES, remove_missing, whole=source.whole
            )
            if writer.totals()[1] and (told.unmatched or tally.unusable) and not told.matched:  # all labels stay
                raise DataError(
                    f"{source.name}: no {source.key} of the labels CSV is in the cohort",
                    allowed=f"the values of {source.key} in the files, written exactly alike",
                    do="correct the CSV, its empty keys and missing cells too, and ingest again; images stay stored",
                )
    except DataError:
        writer.finish()  # what is stored is complete, with the labels of before
        raise
    writer.finish()
    patients, images = writer.totals()
    columns = [column for column in source.label_columns if column != MANUFACTURER]
    unusable = sorted(set(tally.unusable))
    return IngestSummary(
        read=tally.read,
        used=tally.already + tally.fresh,
        already=tally.already,
        quarantined=tally.reasons.total(),
        reasons=dict(tally.reasons.most_common()),
        patients=patients,
        images=images,
        added=writer.added,
        unlabelled=writer.unlabelled(columns),
        labels={name: _most(label for label, _ in writer.labels(name)) for name in columns},
        classes=tuple(_by_class(writer, tasks, dry_run=dry_run)),
        unmatched=told.unmatched,
        unmatched_lines=told.unmatched_lines,
        unusable=len(unusable),
        unusable_lines=tuple(unusable[:LISTED_LINES]),
        shared=writer.shared(),
        pictures=tally.pictures,
        corrected=corrected.corrected,
        missing=corrected.missing,
        removed=corrected.removed,
        labels_replaced=told.replaced,
        labels_stale=told.stale,
        labels_removed=told.removed,
        other_columns=writer.other_columns(source.label_columns),
        modalities=writer.modalities(),
        image_types=dict(tally.image_types.most_common(LISTED_LABELS)),
        views=dict(tally.views.most_common(LISTED_LABELS)),
        issuers=writer.issuers(),
        halved=writer.halved(),
        several_people=tally.several_people,
        shared_keys=told.shared if source.key == "PatientID" else 0,
    )


def _by_class(writer: CohortWriter, tasks: Sequence[Task], *, dry_run: bool) -> Iterator[LabelCounts]:
    """Patients by each task's classes. What masks show is read from the finished cohort, which a dry run has not."""
    for task in tasks:
        if not task.dense:
            yield LabelCounts.of(writer.labels(*task.label_columns), task)
        elif writer.layout.marks == task.classes and not dry_run:
            yield label_counts(CohortStore.open(writer.path, withdrawn=writer.withdrawn), task)


def _most(labels: Iterable[str]) -> dict[str, int]:
    return dict(Counter(labels).most_common(LISTED_LABELS))
