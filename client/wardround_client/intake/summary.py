"""What an ingest did: counts as they grow, the quarantine list, and the sum of all at the end."""

from __future__ import annotations

import codecs
import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from wardround.errors import DataError
from wardround.files import replacing
from wardround_client.cohort.index import QUARANTINE
from wardround_client.cohort.labels import LabelCounts
from wardround_client.intake.source import Instance, Rejection
from wardround_client.intake.spreadsheet import harmless

WITHHELD = "(withheld)"
"""Stands in the quarantine list for an item of somebody who withdrew: a path or a line would tell who did."""

WITHDRAWN = Rejection("patient withdrawn")
_PICTURES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp"}


@dataclass(frozen=True)
class IngestSummary:
    """What an ingest did. read == used + quarantined, always.

    Attributes:
        read: items found. used: those in the cohort now. already: those of `used` that were before.
        quarantined: those that cannot be used; `quarantine.csv` in the cohort's folder lists each.
        reasons: quarantined items by reason; a reason never holds a value of an item.
        patients, images: in the whole cohort now (images: rows, for a table), less those who have withdrawn.
        added: images that this ingest added. unlabelled: images without a label in any column of this CSV.
        labels: by column of this CSV, how many patients of the cohort have an image of each label, for the
            most frequent of them.
        classes: the same for the classes of each task that was named.
        unmatched: rows of the CSV whose key no image has. unmatched_lines: the first of their line numbers.
        unusable: lines of the CSV without a key, with too few or too many cells, or that contradict an earlier line of
            the same key (which then has no label). unusable_lines: the first of their line numbers.
        shared: SOP Instance UIDs that several patients have, each an image of its own: maybe one person twice.
        pictures: quarantined items that are called like pictures (.png, .jpg ...).
        corrected: stored items that were taken out, because something else stands in their place now. missing: stored
            items that the archive holds no more, and that stay. removed: the same, but taken out as asked.
        labels_replaced: older labels of this archive that would have hidden those of this CSV, and gave way.
        labels_stale: those that this CSV does not give, and that stay. labels_removed: the same, taken away as asked.
        other_columns: label columns that an earlier CSV of this archive had and this one has not; they stay.
        modalities: images of the cohort by modality; "" where a file names none. image_types, views: items that were
            read now and used.
        issuers: PatientIDs of several issuers, each of which is several patients. halved: those among them that some
            files name without an issuer, so that one person may be two patients.
        several_people: patients whose files, of those read now, differ in birth date or sex.
        shared_keys: PatientIDs of the CSV that are of several issuers, each of whose patients got the labels.
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
    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    classes: tuple[LabelCounts, ...] = ()
    unmatched: int = 0
    unmatched_lines: tuple[int, ...] = ()
    unusable: int = 0
    unusable_lines: tuple[int, ...] = ()
    shared: int = 0
    pictures: int = 0
    corrected: int = 0
    missing: int = 0
    removed: int = 0
    labels_replaced: int = 0
    labels_stale: int = 0
    labels_removed: int = 0
    other_columns: tuple[str, ...] = ()
    modalities: Mapping[str, int] = field(default_factory=dict)
    image_types: Mapping[str, int] = field(default_factory=dict)
    views: Mapping[str, int] = field(default_factory=dict)
    issuers: int = 0
    halved: int = 0
    several_people: int = 0
    shared_keys: int = 0

    def check(self) -> None:
        """Raises: DataError, when nothing was usable, but for patients who withdrew."""
        usable = self.used + self.reasons.get(WITHDRAWN.reason, 0)
        if usable:
            return
        if not self.reasons:
            raise DataError("nothing of what was found is an example of the task", do="see what the task needs")
        most = next(iter(self.reasons))
        raise DataError(
            f"none of {self.read} could be used; most often: {most} ({self.reasons[most]})",
            do="describe the pictures in a CSV with the columns file, PatientID and the labels: --labels pictures.csv"
            if 2 * self.pictures > self.read and most == "not DICOM"
            else f"see {QUARANTINE} for the reason of each, mend that, and ingest again",
        )


@dataclass
class Tally:
    """Counts as they grow, and the open quarantine list."""

    write: Callable[[str, Rejection], None]
    already: int = 0
    fresh: int = 0
    pictures: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    unusable: list[int] = field(default_factory=list)
    image_types: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)
    people: dict[bytes, bytes] = field(default_factory=dict)
    several: set[bytes] = field(default_factory=set)

    def see(self, item: Instance) -> None:
        """Count the kind of an item that is used, and notice people who share a PatientID."""
        _, image_type, view = item.kind
        self.image_types.update([image_type] if image_type else [])
        self.views.update([view] if view else [])
        if item.person and self.people.setdefault(item.patient, item.person) != item.person:
            self.several.add(item.patient)

    @property
    def several_people(self) -> int:
        """Patients of whom files differ in birth date or sex."""
        return len(self.several)

    def reject(self, what: str, rejection: Rejection) -> None:
        """Count an item that cannot be used, and list it."""
        self.reasons[rejection.reason] += 1
        self.pictures += Path(what).suffix.lower() in _PICTURES
        self.write(what, rejection)

    @property
    def read(self) -> int:
        """Items so far."""
        return self.already + self.fresh + self.reasons.total()


@contextmanager
def quarantine_list(cohort_dir: Path) -> Iterator[Callable[[str, Rejection], None]]:
    """quarantine.csv, replaced in one step by this ingest's list; quarantined items are tried again each time."""
    target = cohort_dir / QUARANTINE
    with replacing(target, scratch=target.with_suffix(".csv.part")) as raw:
        writer = csv.writer(codecs.getwriter("utf-8")(raw, "backslashreplace"))
        writer.writerow(["file", "reason", "detail"])

        def write(what: str, rejection: Rejection) -> None:
            writer.writerow(map(harmless, (what, rejection.reason, rejection.detail)))

        yield write
