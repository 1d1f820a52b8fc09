"""The labels that structured reports or segmentations give to the DICOM images beside them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

from wardround.errors import ConfigError
from wardround.labels import LABEL_KINDS, SEPARATOR
from wardround.task import Task
from wardround_client.intake.dicom.attributes import UnusableError, quiet, refusing, text
from wardround_client.intake.dicom.card import SEGMENTATION, card_of
from wardround_client.intake.dicom.container import Container, opened
from wardround_client.intake.dicom.header import COMPUTED
from wardround_client.intake.dicom.identity import WHO, Identity
from wardround_client.intake.dicom.report import REPORTS, Said, Words, said
from wardround_client.intake.dicom.segments import shown_in
from wardround_client.intake.dicom.select import KIND, Kind, left_out
from wardround_client.intake.gather import OTHER, File, Look, Together
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.source import Item, Rejection
from wardround_client.intake.workers import Readers

From = Literal["sr", "seg"]

MOST_BYTES = 1 << 26
"""Of a report. A measurement report of a whole body has 200 kB."""

_OF_REPORTS = (
    *("SOPClassUID", "SOPInstanceUID", "ValueType", "ConceptNameCodeSequence", "ContentSequence"),
    *("CurrentRequestedProcedureEvidenceSequence", "PredecessorDocumentsSequence"),
)

NOTHING = Rejection("a report or segmentation without a finding of the task")
NOBODY = Rejection("a report or segmentation of images that are not here")
OTHERS = Rejection("a report or segmentation of another patient's images")
UNSURE = Rejection("a report or segmentation from which no label follows", "unsure, or of several classes at once")
REPLACED = Rejection("a report that a later one replaces")
CONTRADICTED = Rejection("reports or segmentations that contradict each other")

Key = bytes


@dataclass(frozen=True)
class _Picture:
    """Whose an image is; all hashed."""

    patient: Key
    study: Key
    series: Key
    instance: Key


@dataclass(frozen=True)
class _Document:
    """A report or a segmentation: what it says of which images. series: of what it is about, others show nothing."""

    about: _Picture
    said: tuple[tuple[Said, tuple[Key, ...]], ...]
    replaces: tuple[Key, ...] = ()
    refers: tuple[Key, ...] = ()


@dataclass(frozen=True)
class _Look(Look):
    """A file of which is read whose it is and, where it brings labels, which."""

    task: Task
    labels_from: From

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Any:
        if self.file.refused():
            return OTHER
        with quiet():
            try:
                found = opened(self.file.path, [*WHO, *KIND, "Modality", "BurnedInAnnotation"], 1 << 28)
                brings = found.sop_class in REPORTS if self.labels_from == "sr" else found.sop_class == SEGMENTATION
            except UnusableError:
                return OTHER
            try:
                kind = Kind.of(found.dataset, found.sop_class)
                if not brings and (_is_none(found) or left_out(kind, self.file.rules.select)):
                    return OTHER
                who = Identity.of(found.dataset, self.file.rules.patients)
                about = _Picture(
                    pseudonyms.patient(who.patient_id, who.issuer),
                    pseudonyms.named("StudyInstanceUID", who.study),
                    pseudonyms.named("SeriesInstanceUID", who.series),
                    pseudonyms.instance(who.instance),
                )
                return self._document(about, pseudonyms) if brings else about
            except UnusableError as error:
                return error.rejection if brings else OTHER

    def _document(self, about: _Picture, keys: Pseudonyms) -> _Document:
        words = Words(tuple(dict.fromkeys((*self.task.classes, *dict(self.task.values)))), self.task.label_column)
        replaces: list[str] = []
        refers: tuple[str, ...] = ()
        with refusing("a report or segmentation cannot be read", passing=OSError):
            if self.labels_from == "seg":
                found, refers = shown_in(self.file.path, words), card_of(self.file.path).refers
            else:
                if self.file.path.stat().st_size > MOST_BYTES:
                    raise UnusableError("a report is larger than the limit", f"{MOST_BYTES} bytes")
                dataset = opened(self.file.path, _OF_REPORTS, MOST_BYTES).dataset
                found = said(dataset, words)
                for study in dataset.get("PredecessorDocumentsSequence") or []:
                    for series in study.get("ReferencedSeriesSequence") or []:
                        of = series.get("ReferencedSOPSequence") or []
                        replaces.extend(text(one, "ReferencedSOPInstanceUID") for one in of)

        def hashed(uids: Iterable[str]) -> tuple[Key, ...]:
            return tuple(keys.instance(uid) for uid in uids)

        by_images = tuple((replace(each, images=()), hashed(each.images)) for each in found)
        return _Document(about, by_images, hashed(replaces), hashed(refers))


def _is_none(found: Container) -> bool:
    """Whether it is no image, but says something of images, as a segmentation does."""
    computed = found.sop_class in COMPUTED or text(found.dataset, "Modality").upper() in COMPUTED
    return computed or found.pixels is None


@dataclass(frozen=True)
class Useless(Together):
    """A report or a segmentation that gives no label."""

    why: Rejection = field(default=NOTHING)

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Rejection:
        """Why."""
        return self.why


def check(task: Task | None, *, csv: bool) -> Task:
    """Whether labels can come from reports. Raises: ConfigError."""
    if task is None:
        raise ConfigError("--labels-from without --federation", do="name the agreement: its classes are looked for")
    if csv:
        raise ConfigError("--labels and --labels-from", allowed="one of them", do="leave one of them out")
    timed = LABEL_KINDS[task.labels].timed
    if task.dense or task.inputs or timed:
        what = f'labels = "{task.labels}"' if task.dense or timed else "several inputs"
        raise ConfigError(f"--labels-from for a task of {what}", do="leave it out, or use --labels")
    return task


def labelled(
    files: Iterable[File],
    task: Task,
    labels_from: From,
    examples: Callable[[Iterable[File], Readers], Iterator[Item]],
    readers: Readers,
) -> list[Item]:
    """The examples that files make, with the labels that the reports or segmentations among them give, and each of
    these that gives none. What no report speaks of has no label of theirs.

    Args:
        files: of a folder, or of one patient.
        task: whose classes are looked for.
        labels_from: "sr", structured reports, or "seg", segmentations.
        examples: what files make.
        readers: from `lookers`.
    """
    pictures: dict[str, _Picture] = {}
    documents: list[tuple[File, _Document]] = []
    useless: list[Item] = []
    rest: list[File] = []
    for look, found in readers.outcomes([_Look(file, task, labels_from) for file in files]):
        outcome = cast(Any, found)
        if isinstance(outcome, _Document):
            documents.append((look.file, outcome))
            continue
        if isinstance(outcome, Rejection) and outcome != OTHER:
            useless.append(Useless((look.file,), why=outcome))
            continue
        rest.append(look.file)
        if isinstance(outcome, _Picture):
            pictures[look.name] = outcome
    told = _Told(pictures.values(), documents, task, together=labels_from == "seg")
    made: list[Item] = []
    for item in examples(rest, readers):
        own = [pictures[file.name] for file in getattr(item, "files", (item,)) if file.name in pictures]
        made.append(replace(cast(Any, item), labels=told.labels(own)))
    useless.extend(Useless((file,), why=why) for file, why in told.without())
    return [*made, *useless]


class _Told:
    """Which documents say what of which images, each of its own patient's."""

    def __init__(
        self, pictures: Iterable[_Picture], documents: Sequence[tuple[File, _Document]], task: Task, *, together: bool
    ) -> None:
        """together: documents complete each other; otherwise each says all that there is."""
        self._task, self._together, self._documents = task, together, documents
        self._of: dict[tuple[Key, Key], dict[int, list[Said]]] = defaultdict(lambda: defaultdict(list))
        self._why: dict[int, Rejection] = {}
        self._belong: dict[tuple[Key, Key], list[Key]] = defaultdict(list)
        self._series: dict[tuple[Key, Key], Key] = {}
        self._owners: dict[Key, set[Key]] = defaultdict(set)
        for each in dict.fromkeys(pictures):
            for belongs in {each.study, each.series} - {b""}:
                self._belong[each.patient, belongs].append(each.instance)
            self._series[each.patient, each.instance] = each.series
            self._owners[each.instance].add(each.patient)
        replaced = {(of.about.patient, old) for _, of in documents for old in of.replaces if old != of.about.instance}
        for number, (_, document) in enumerate(documents):
            if (document.about.patient, document.about.instance) in replaced:
                self._why[number] = REPLACED
            elif not document.said:
                self._why[number] = NOTHING
            elif why := self._believe(number, document):
                self._why[number] = why

    def _believe(self, number: int, document: _Document) -> Rejection | None:
        """Note what it says of its own patient's images; why it says nothing of some, or None."""
        patient, spoken, foreign = document.about.patient, set[Key](), False
        for what, images in document.said:
            for image in images or self._belong.get((patient, document.about.study), ()):
                if (patient, image) in self._series:
                    self._of[patient, image][number].append(what)
                    spoken.add(image)
                elif image in self._owners:
                    foreign = True
        if self._together:
            shown = frozenset[str]().union(*(what.present | what.absent for what, _ in document.said))
            about = {self._series.get((patient, image), b"") for image in (*document.refers, *spoken)}
            for image in (image for one in about for image in self._belong.get((patient, one), ())):
                if image not in spoken:
                    self._of[patient, image][number].append(Said(absent=shown))
                    spoken.add(image)
        if foreign:
            return OTHERS
        return None if spoken else NOBODY

    def labels(self, pictures: Sequence[_Picture]) -> tuple[str | None, ...] | None:
        """Of one example: None where nothing is said of it; a label that is None where no label follows."""
        by: dict[int, list[Said]] = defaultdict(list)
        for each in pictures:
            for number, told in self._of.get((each.patient, each.instance), {}).items():
                by[number].extend(told)
        if not by:
            return None
        volume = len(pictures) > 1
        if self._together:
            cell = self._cell([each for told in by.values() for each in told], lenient=volume)
            for number in by if cell is None and not self._nothing(by) else ():
                self._why.setdefault(number, CONTRADICTED if len(by) > 1 else UNSURE)
            return (cell,)
        cells = {number: self._cell(told, lenient=volume) for number, told in by.items()}
        for number, cell in cells.items():
            if cell is None:
                self._why.setdefault(number, UNSURE)
        if len({self._task.label(cell) for cell in cells.values()}) > 1:
            for number in cells:
                self._why[number] = CONTRADICTED
            return (None,)
        return (min(cells.values(), key=str),)

    def _nothing(self, by: dict[int, list[Said]]) -> bool:
        return not any(each.present or each.unsure for told in by.values() for each in told)

    def _cell(self, told: Sequence[Said], *, lenient: bool) -> str | None:
        """As a labels CSV would write it. lenient: what one slice lacks another may show."""
        present = frozenset[str]().union(*(each.present for each in told))
        absent = frozenset[str]().union(*(each.absent for each in told))
        if any(each.unsure for each in told) or (present & absent and not lenient):
            return None
        words = [word for word in (*self._task.classes, *dict(self._task.values)) if word in present]
        if LABEL_KINDS[self._task.labels].exclusive:
            return words[0] if len({self._task.label(word) for word in words}) == 1 else None
        return SEPARATOR.join(words) or SEPARATOR  # an empty list of findings

    def without(self) -> Iterator[tuple[File, Rejection]]:
        """The documents of which a part, or all, gave no label, after all examples were asked for."""
        for number, why in sorted(self._why.items()):
            yield self._documents[number][0], why
