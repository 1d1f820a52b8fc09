"""DICOM files that belong together -> the examples of a task: the slices of a volume, an image and its masks, several
inputs of a study. Files that belong to no example are listed, each with its reason.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from wardround.errors import ConfigError
from wardround.labels import LABEL_KINDS
from wardround.task import Input, Task
from wardround_client.intake import marks
from wardround_client.intake.dicom.attributes import UnusableError, quiet
from wardround_client.intake.dicom.card import Card, card_of
from wardround_client.intake.dicom.deidentify import made_of
from wardround_client.intake.dicom.header import Header, read
from wardround_client.intake.dicom.marked import planes_of
from wardround_client.intake.dicom.pixels import images_of
from wardround_client.intake.dicom.select import left_out
from wardround_client.intake.labels_csv import FILE, KEY_COLUMNS, MISSING, LabelsCsv
from wardround_client.intake.pictures import missing, numbers_of, table_row
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe, InputsRecipe, TableRecipe
from wardround_client.intake.series import stack_of
from wardround_client.intake.source import Asked, Instance, Item, LabelLine, Labels, Rejection, Rules
from wardround_client.intake.stack import volume
from wardround_client.intake.workers import Readers


class File(Item, Protocol):
    """A file of a folder, or of an archive once it is fetched."""

    @property
    def path(self) -> Path: ...
    @property
    def rules(self) -> Rules: ...
    def refused(self) -> Rejection | None:
        """Why it is not even opened, or None."""
        ...


OTHER = Rejection("not looked into")


def lookers(workers: int | None = None) -> Readers:
    """Processes that look into files without making rows; 0: none but this one."""
    return Readers(ImageRecipe(8, 1), Pseudonyms(bytes(16)), workers)


Cells = Mapping[str, tuple[str, ...]]
"""By the value of the labels CSV's key: its cells, in the order of some columns."""


@dataclass(frozen=True)
class Look:
    """A file that is looked into in a worker process, where no rows are made of it: `read` says what was found."""

    file: Any
    line: int = field(default=0, init=False)
    labels: None = field(default=None, init=False)

    @property
    def name(self) -> str:
        """As the file says."""
        return str(self.file.name)

    def fingerprint(self) -> str:
        """As the file says."""
        return str(self.file.fingerprint())

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Any:
        """What was found, or a `Rejection`; `OTHER` where the file is not looked into."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Look(Look):
    """A file of which the card is read."""

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Any:
        if self.file.refused():
            return OTHER
        try:
            card = card_of(self.file.path)
            return card if card.marks else left_out(card.kind, self.file.rules.select) or card
        except UnusableError as error:
            return error.rejection


@dataclass(frozen=True)
class Together:
    """Files that are one example. what: "" or why they cannot be used."""

    files: tuple[Any, ...]
    what: str = ""
    line: int = 0
    labels: Labels | None = None

    @property
    def name(self) -> str:
        """The first file, and how many more."""
        more = f" and {len(self.files) - 1} more" if len(self.files) > 1 else ""
        return f"{self.files[0].name}{more}"

    def fingerprint(self) -> str:
        """Of all files, and what else decides."""
        known = [file.fingerprint() for file in self.files]
        return "\0".join([*known, self._more()]) if all(known) else ""

    def _more(self) -> str:
        return ""

    def read(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Make the row."""
        if self.what:
            return Rejection(self.what)
        try:
            with quiet():
                return self._made(recipe, pseudonyms)
        except UnusableError as error:
            return error.rejection

    def _made(self, recipe: Any, pseudonyms: Pseudonyms) -> Instance:
        raise NotImplementedError


@dataclass(frozen=True)
class Series(Together):
    """The slices of a volume."""

    def _made(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance:
        headers, stack = stack_of([file.path for file in self.files], recipe, self.files[0].rules)
        uid = pseudonyms.of("SeriesInstanceUID", headers[0].identity.series)
        return made_of(headers[0], pseudonyms, uid, volume(stack, recipe)[None])


@dataclass(frozen=True)
class Marked(Together):
    """An image and what says where its findings are: files that refer to it, or a cell of the CSV."""

    cell: str | None = None

    def _more(self) -> str:
        return self.cell or ""

    def _made(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance:
        path, marking = self.files[0].path, [file.path for file in self.files[1:]]
        header = read(path, recipe, self.files[0].rules)
        rows, frames = images_of(header, recipe), list(header.looks)
        if recipe.places:
            drawn = marks.drawn(marks.places_in(self.cell or "", recipe.marks), header.rows, header.columns)
            planes = [drawn] * len(frames)
        else:
            planes = list(planes_of(path, marking, recipe.marks, frames))
        rows = marks.beside(rows, planes, [look.aspect for look in header.looks.values()])
        return made_of(header, pseudonyms, pseudonyms.instance(header.identity.instance), rows)


@dataclass(frozen=True)
class Study(Together):
    """Several inputs: for each the number of files of its own, in their order; and cells of the CSV for its columns."""

    counts: tuple[int, ...] = ()
    cells: tuple[tuple[str, ...], ...] = ()

    def _more(self) -> str:
        return f"{self.counts} {self.cells}"

    def _made(self, recipe: InputsRecipe, pseudonyms: Pseudonyms) -> Instance:
        left, parts = list(self.files), []
        header: Header | None = None
        for (_, each), count, cells in zip(recipe.parts, self.counts, self.cells, strict=True):
            if isinstance(each, TableRecipe):
                parts.append(table_row(cells or [""] * len(each.features)))
                continue
            own, left = left[:count], left[count:]
            part = missing(each)
            if own:
                rows, header = _rows(own, each)
                part = numbers_of(rows)
            parts.append(part)
        if header is None:
            raise UnusableError("none of the inputs is there")
        study = pseudonyms.study(header.identity.study)
        return made_of(header, pseudonyms, study, np.concatenate(parts)[None])


def _rows(files: Sequence[File], recipe: ImageRecipe) -> tuple[NDArray[np.uint16], Header]:
    if recipe.depth:
        headers, stack = stack_of([file.path for file in files], recipe, files[0].rules)
        return volume(stack, recipe), headers[0]
    header = read(files[0].path, recipe, files[0].rules)
    rows = images_of(header, recipe)
    return rows[len(rows) // 2], header


class Examples:
    """What a task makes of DICOM files, and the labels CSV that goes with them.

    named: the CSV, where its lines name the files.
    """

    def __init__(self, task: Task | None, csv: LabelsCsv | None) -> None:
        self._task, self.csv = task, csv
        self._gathered: list[Item] | None = None
        self._own = _own(task) if task else ()
        self._in_items = bool(task and task.dense)
        self.named = csv if csv and csv.key == FILE else None
        self.key = "" if csv is None or self._in_items or self.named else csv.key
        self.notes = tuple(filter(None, [csv.file.note])) if csv else ()
        if task and (self._in_items or csv is None):
            self.columns: tuple[str, ...] = task.label_columns
        else:
            self.columns = tuple(name for name in csv.columns if name not in self._own) if csv else ()

    @property
    def unlabelled(self) -> bool:
        """Whether nothing says which labels there are."""
        return self.csv is None and not self._in_items

    @classmethod
    def of(cls, asked: Asked) -> Examples:
        """Check the CSV; without one nothing is labelled. Raises: ConfigError: a task needs it, or none was named;
        DataError.
        """
        task = asked.task
        masks = task is not None and task.dense and not LABEL_KINDS[task.labels].places
        if asked.labels is None:
            if masks:
                return cls(task, None)
            if task is not None and not _own(task):
                return cls(task, None)  # nobody has a label yet
            raise ConfigError(
                "DICOM files without --labels",
                do="add --labels labels.csv, --labels-from sr or seg, or, where nothing is labelled yet, --federation",
            )
        if masks:
            raise ConfigError(
                "--labels for a task of masks",
                do="leave it out: segmentations (SEG) and structure sets (RTSTRUCT) beside the images are the labels",
            )
        keys = KEY_COLUMNS if _of_several(task) else (*KEY_COLUMNS, FILE)
        csv = LabelsCsv.open(asked.labels, asked.columns, keys=keys, own_issuer=asked.rules.patients.issuer)
        made = cls(task, csv)
        csv.file.check(made._own, "column")
        return made

    def of_files(self, files: Iterable[File], readers: Readers | None = None) -> Iterator[Item]:
        """The files, or what belongs together of them; they are looked into once. readers: from `lookers`."""
        task = self._task
        if task is None or not _of_several(task):
            return iter(files)
        if self._gathered is None:
            key = self.csv.key if self.csv else ""
            self._gathered = gathered(files, task, readers, key=key, cells=self._cells())
        return iter(self._gathered)

    def _cells(self) -> Cells | None:
        if self.csv is None or not self._own:
            return None
        found: dict[str, tuple[str, ...]] = {}
        for cells in (row.cells for row in self.csv.file.rows() if row.cells is not None):
            key, own = cells[self.csv.key], tuple(cells[name] for name in self._own)
            found[key] = tuple(map(marks.joined, found.get(key, own), own))
        return found

    def labels(self) -> Iterator[LabelLine]:
        """The lines of the CSV, without the columns that are inputs."""
        if self.csv is None or self._in_items or self.named:
            return
        kept = [place for place, name in enumerate(self.csv.columns) if name in self.columns]
        for line in self.csv.lines():
            yield line._replace(labels=tuple(line.labels[place] for place in kept) if line.labels else ())


def _of_several(task: Task | None) -> bool:
    """Whether an example of the task is made of several files, or of a file and what is said of it."""
    return task is not None and bool(task.dense or task.inputs or task.depth)


def _own(task: Task) -> tuple[str, ...]:
    """Columns of the CSV that are no labels, but what an example is made of."""
    places = task.dense and LABEL_KINDS[task.labels].places
    return (task.label_column,) if places else tuple(name for each in task.inputs for name in each.features)


def gathered(
    files: Iterable[File], task: Task, readers: Readers | None = None, *, key: str = "", cells: Cells | None = None
) -> list[Item]:
    """The examples that files make, and each file that belongs to none.

    Args:
        files: of a folder, or of a study.
        task: of volumes, of masks or points, or of several inputs.
        readers: from `lookers`; None: of its own.
        key: of the labels CSV.
        cells: of the labels CSV: where findings are, or the columns of the inputs, one after another.
    """
    cards: list[tuple[File, Card]] = []
    others: list[Item] = []
    with nullcontext(readers) if readers else closing(lookers()) as looking:
        for look, found in looking.outcomes([_Look(file) for file in files]):
            card = cast(Any, found)
            if isinstance(card, Card):
                cards.append((look.file, card))
            else:
                others.append(look.file)  # it is read, and refused, as a file by itself
    cards.sort(key=lambda pair: pair[1].key)
    if task.inputs:
        made = _studies(cards, task, key, cells or {})
    elif task.dense:
        made = _marked(cards, task, key, cells)
    else:
        made = _series(cards)
    return [*made, *others]


def _series(cards: Sequence[tuple[File, Card]]) -> Iterator[Item]:
    for group in _grouped(cards, "PatientID", "StudyInstanceUID", "SeriesInstanceUID").values():
        yield Series(tuple(file for file, _ in group))


def _grouped(cards: Sequence[tuple[File, Card]], *names: str) -> dict[tuple[str, ...], list[tuple[File, Card]]]:
    groups: dict[tuple[str, ...], list[tuple[File, Card]]] = defaultdict(list)
    for file, card in cards:
        groups[tuple(card[name] for name in names)].append((file, card))
    return groups


def _marked(cards: Sequence[tuple[File, Card]], task: Task, key: str, cells: Cells | None) -> Iterator[Item]:
    """Each image with what refers to it, or to another image of its series: then nothing is there. Another patient's
    file says nothing of it: UIDs are copied, and nobody's files decide what another's image shows.
    """
    if cells is not None:
        for file, card in cards:
            said = cells.get(card[key], ("",))[0]
            cell = None if said in MISSING else said
            what = "nothing is said of where findings are" if cell is None else ""
            yield Marked((file,), what, labels=(cell and marks.MARKED,), cell=cell)
        return
    marking: dict[tuple[str, str], list[File]] = defaultdict(list)
    series_of = {
        (card["PatientID"], card[name]): card["SeriesInstanceUID"]
        for name in ("SeriesInstanceUID", "SOPInstanceUID")
        for _, card in cards
        if not card.marks
    }
    for file, card in cards:
        if card.marks:
            patient = card["PatientID"]
            for uid in dict.fromkeys(series_of.get((patient, each), "") for each in card.refers):
                marking[patient, uid].append(file)
    for file, card in cards:
        if card.marks:
            if not any((card["PatientID"], each) in series_of for each in card.refers):
                yield Marked((file,), "the image that a mask is of is not there")
            continue
        found = marking.get((card["PatientID"], card["SeriesInstanceUID"]), [])
        yield Marked((file, *found), "" if found else "no mask", labels=(marks.MARKED if found else None,))


def _studies(cards: Sequence[tuple[File, Card]], task: Task, key: str, cells: Cells) -> Iterator[Item]:
    columns = [each.features if each.kind == "table" else () for each in task.inputs]
    for group in _grouped(cards, "PatientID", "StudyInstanceUID").values():
        said = next((cells[card[key]] for _, card in group if key and card[key] in cells), None)
        chosen: list[list[File]] = []
        what = ""
        for each in task.inputs:
            own, why = _chosen(each, group)
            chosen.append(own)
            what = what or why
        at, of_inputs = 0, []
        for names in columns:
            of_inputs.append(said[at : at + len(names)] if said is not None else ("",) * len(names))
            at += len(names)
        taken = tuple(file for own in chosen for file in own)
        used = {id(file) for file in taken}
        if taken:
            yield Study(taken, what, counts=tuple(map(len, chosen)), cells=tuple(of_inputs))
        for file, _ in group:
            if id(file) not in used:
                yield Together((file,), "an image of none of the inputs")


def _chosen(wanted: Input, group: Sequence[tuple[File, Card]]) -> tuple[list[File], str]:
    """The files of one input, and what is wrong with them."""
    if wanted.kind == "table":
        return [], ""
    fitting = [(file, card) for file, card in group if not card.marks and _fits(wanted, card)]
    if wanted.kind == "volume":
        series = list(_grouped(fitting, "SeriesInstanceUID").values())
        if len(series) > 1:
            return [file for file, _ in fitting], "several series fit one input"
        return [file for each in series for file, _ in each], ""
    if len(fitting) > 1:
        return [file for file, _ in fitting], "several images fit one input"
    return [file for file, _ in fitting], ""


def _fits(wanted: Input, card: Card) -> bool:
    kind = card.kind
    said = ((wanted.modality, kind.modality), (wanted.view, kind.view), (wanted.series, kind.series))
    return all(_like(value, pattern) for pattern, value in said if pattern)


def _like(value: str, pattern: str) -> bool:
    """Whatever the case of letters; * stands for anything, and nothing else does."""
    return fnmatchcase(value.casefold(), pattern.casefold().replace("[", "[[]").replace("?", "[?]"))
