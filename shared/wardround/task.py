"""What is diagnosed, from what: the table [task] of federation.toml."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from wardround.labels import LABEL_KINDS, SEPARATOR
from wardround.settings import Later
from wardround.text import is_plain
from wardround.toml import Section


def _plain(text: str) -> str:
    if not is_plain(text):
        raise ValueError("a text that people approve holds no invisible letters, and single blanks between words only")
    return text


def _label_kind(name: str) -> str:
    if name not in LABEL_KINDS:
        raise ValueError(f"unknown label kind; allowed: {', '.join(LABEL_KINDS.names)}")
    return name


Label = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain)]
Augmentation = Literal["flip-horizontal", "flip-vertical", "rotate-90", "shift", "intensity"]
# How many versions of an image each makes, the image as it is among them: `wardround.augment`.
VERSIONS: dict[Augmentation, int] = {
    "flip-horizontal": 2,
    "flip-vertical": 2,
    "rotate-90": 4,
    "shift": 5,
    "intensity": 3,
}
Units = Literal["display", "HU", "SUV"]
MOST_VARIANTS = 16  # of one image: each takes memory and time like an image

MOST_INPUTS = 16
MOST_COLUMNS = 20_000
EVERY = "*"
"""In `may_miss`: all columns."""


def _named(features: Any) -> Any:
    if isinstance(features, str):
        raise ValueError("name the columns, or a file that ends in .txt and stands beside a federation.toml")
    return features


Pixels = Annotated[int, Field(ge=8, le=1024)]
Slices = Annotated[int, Field(ge=2, le=512)]
Millimetres = Annotated[float, Field(ge=0.01, le=100)]
Text = Annotated[str, Field(max_length=100), AfterValidator(lambda text: text and _plain(text))]


def measured(units: Units, window: Sequence[float]) -> str:
    """In words what black and white are: "HU from -160 to 240"; "" for what a viewer shows."""
    if units == "display":
        return ""
    centre, width = window
    return f"{units} from {centre - width / 2:g} to {centre + width / 2:g}"


def measured_each(inputs: Iterable[tuple[str, str]]) -> str:
    """The same of several inputs, by name."""
    return "; ".join(f"{name} {said}" for name, said in inputs if said)


class Example(Section):
    """What one example is made of.

    kind: "image"; "volume", a series of slices that is one example; or "table".
    image_size_px: images are resized to image_size_px x image_size_px; channels: 1 (grey) or 3 (RGB).
    depth: of a volume, how many slices it is resampled to. spacing_mm: of a volume, the distance of its slices and of
    the pixels in them; what lies outside is cut off, and what is not there is black. Empty: the whole series is fitted
    into the volume, whatever it covers.
    features: for a table, the names of the columns; or that of a text file beside federation.toml, with one name a
    line, which are put in its place when the file is read. centre, spread: for each column a public guess of a usual
    value and of how far values lie apart (age: 55 and 15), from textbooks and never from patients; private statistics
    mend the guess, and are bounded in its units. Empty: 0 and 1.
    may_miss: columns whose cells may be empty, or "*" for all: an empty one is then the guess, and a number beside says
    that it was. It is agreed and not found in the data; a row with any other gap is refused. ranks: a patient's columns
    are ranked among each other, since platforms of laboratories measure in units of their own.
    units: what the grey values of DICOM images measure. "HU" (CT) or "SUV" (PET, by body weight): every hospital shows
    the same range of it, window = [centre, width], whatever its files ask for, and files that do not measure it are
    refused. "display": as a viewer shows each file, by its own window or table; then there is no window.
    """

    kind: Literal["image", "volume", "table"] = "image"
    image_size_px: Pixels = 64
    channels: Literal[1, 3] = 1
    depth: Annotated[Slices | Literal[0], Later(0)] = 0
    spacing_mm: Annotated[tuple[Millimetres, ...], Later(())] = ()
    features: Annotated[tuple[Label, ...], Field(max_length=MOST_COLUMNS), BeforeValidator(_named)] = ()
    centre: tuple[Annotated[float, Field(ge=-1e9, le=1e9)], ...] = ()
    spread: tuple[Annotated[float, Field(ge=1e-9, le=1e9)], ...] = ()
    may_miss: Annotated[tuple[Label, ...], Field(max_length=MOST_COLUMNS), Later(())] = ()
    ranks: Annotated[bool, Later(False)] = False
    units: Annotated[Units, Later("display")] = "display"
    window: Annotated[tuple[Annotated[float, Field(ge=-1e6, le=1e6)], ...], Field(max_length=2), Later(())] = ()

    @model_validator(mode="after")
    def _complete(self) -> Self:
        _distinct("features", self.features)
        if (self.kind == "table") != bool(self.features):
            raise ValueError("features names the columns of a table, and a table needs them")
        for name, numbers in (("centre", self.centre), ("spread", self.spread)):
            if len(numbers) not in (0, len(self.features)):
                raise ValueError(f"{name} holds {len(numbers)} numbers for {len(self.features)} features")
        if (self.may_miss or self.ranks) and self.kind != "table":
            raise ValueError(f"may_miss and ranks are for tables, and this is {self.kind}")
        if strange := [name for name in self.may_miss if name not in {*self.features, EVERY}][:5]:
            raise ValueError(f"may_miss holds {', '.join(map(repr, strange))}, which features does not")
        if self.ranks and (self.centre or self.spread):
            raise ValueError("ranks have no unit: leave centre and spread out, or ranks")
        if (self.kind == "volume") != bool(self.depth):
            raise ValueError("depth is how many slices a volume has, and a volume needs it")
        if len(self.spacing_mm) not in (0, 2) or (self.spacing_mm and self.kind != "volume"):
            raise ValueError("spacing_mm is of a volume, and holds two lengths: between slices, and within them")
        return self

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        if self.units == "display":
            if self.window:
                raise ValueError("window is of what units measure: add units (HU or SUV), or leave window out")
        elif self.kind not in ("image", "volume"):
            raise ValueError(f"units is for images and volumes, and this is {self.kind}")
        elif len(self.window) != 2 or self.window[1] < 1e-3:
            raise ValueError(f"units {self.units} needs window = [centre, width], the width more than 0")
        return self

    @property
    def gaps(self) -> tuple[int, ...]:
        """Indices of the columns that may be missing."""
        named = set(self.may_miss)
        return tuple(at for at, name in enumerate(self.features) if EVERY in named or name in named)

    @property
    def measured(self) -> str:
        """What the grey values measure, in words; "" where they are as a viewer shows them."""
        return measured(self.units, self.window)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one: (channels, S, S), (channels, depth, S, S) of a volume, or (features,), S = image_size_px."""
        if self.kind == "table":
            return (len(self.features),)
        slices = (self.depth,) if self.depth else ()
        return (self.channels, *slices, self.image_size_px, self.image_size_px)


class Input(Example):
    """One of several inputs of a patient: [[task.inputs]].

    name: for people, and of its column in a CSV of files. modality, view, series: which images of a DICOM study it is,
    by Modality (0008,0060), View Position (0018,5101) and Series Description (0008,103E); * stands for anything, and
    empty is any.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
    modality: Text = ""
    view: Text = ""
    series: Text = ""


def _pairs(values: Any) -> Any:
    """A table [task.values], or its pairs -> its pairs, sorted; whatever is neither stays as it is, to be refused."""
    pairs = list(values.items()) if isinstance(values, Mapping) else values
    if not isinstance(pairs, list | tuple):
        return values
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs):
        return values
    return tuple(sorted(dict(map(tuple, pairs)).items(), key=lambda pair: pair[0]))


Values = Annotated[tuple[tuple[Label, Text], ...], Field(max_length=256), BeforeValidator(_pairs)]
Time = Annotated[float, Field(ge=1e-6, le=1e9)]


class Task(Example):
    """What is diagnosed, from what.

    label_column: the column of the labels CSV; classes: its values, in the order of the model's outputs.
    labels: their kind, a file of `wardround.labels`. "one": an image is of one of the classes. "several": the classes
    are findings, each there or not; a cell holds those that are there, with ";" between ("nodule;effusion"), any other
    text is no finding of the task, and an empty cell no label. "mask": each pixel is of one of the classes, the first
    of which is what is left over. "points": findings at places; the first class is where none is. "survival": the time
    to an event; the classes are intervals, by the names of their ends.
    ends: with "survival", when each interval is over, in the unit of the times in the CSV. event_column: the column
    that tells whether the event was there (1) or the patient was lost without it (0); without one a cell of
    label_column says both, "730;1".
    values: what texts of the CSV mean that are no class: another text -> a class, or "" where it is no label at all;
    with "several" also "none", where that finding is not there; with "survival" "event" or "censored". So an uncertain
    "-1" becomes a class (u-ones, u-zeros), or is left out.
    inputs: of one patient, several at once, each as its own table says; kind is then "inputs".
    cell_px: with "mask" and "points", the side of the cells of an image that are learned from; an example is a cell.
    cells_per_image: of each image that a step draws, so many cells are drawn, half of them where something is shown.
    augment: what may be done to an image without making its label wrong; learning sees every combination of it, at most
    16 an image, and judging none. Empty by default, because only who knows the images can say: no flip where left and
    right, or above and below, mean something (the heart in a chest image, a finding named by its side), no "intensity"
    where grey values are measurements (CT). "shift" is by a sixteenth of the image.
    """

    label_column: Label
    classes: Annotated[tuple[Label, ...], Field(min_length=2, max_length=256)]
    labels: Annotated[str, AfterValidator(_label_kind)] = "one"
    kind: Literal["image", "volume", "table", "inputs"] = "image"  # type: ignore[assignment]
    values: Annotated[Values, Later(())] = ()
    event_column: Annotated[Label | Literal[""], Later("")] = ""
    ends: Annotated[tuple[Time, ...], Field(max_length=256), Later(())] = ()
    inputs: Annotated[tuple[Input, ...], Field(max_length=MOST_INPUTS), Later(())] = ()
    cell_px: Annotated[Literal[1, 2, 4, 8, 16], Later(4)] = 4
    cells_per_image: Annotated[int, Field(ge=1, le=4096), Later(64)] = 64
    augment: Annotated[tuple[Augmentation, ...], Field(max_length=len(VERSIONS))] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _distinct("classes", self.classes)
        timed = LABEL_KINDS[self.labels].timed
        if not timed and (self.ends or self.event_column):
            raise ValueError(f'ends and event_column are for labels = "survival", and labels is "{self.labels}"')
        if self.event_column == self.label_column:
            raise ValueError("event_column and label_column name one column; leave event_column out where it says both")
        LABEL_KINDS[self.labels].check(self)
        if (self.kind == "inputs") != bool(self.inputs):
            raise ValueError('inputs are for kind "inputs", which needs at least one table [[task.inputs]]')
        _distinct("inputs: name", [each.name for each in self.inputs])
        if self.dense and self.kind != "image":
            raise ValueError(f'labels = "{self.labels}" are places in an image, and this task is about a {self.kind}')
        if self.dense and self.image_size_px % self.cell_px:
            raise ValueError(f"cell_px = {self.cell_px} does not divide image_size_px = {self.image_size_px}")
        return self

    @model_validator(mode="after")
    def _augmentable(self) -> Self:
        if self.augment and (self.kind != "image" or self.dense):
            what = f'"{self.labels}"' if self.dense else f"a {self.kind}"
            raise ValueError(f"augment is for images that have one label each, and this task is about {what}")
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("augment holds a value twice")
        if "intensity" in self.augment and self.units != "display":
            raise ValueError(f'augment "intensity" changes what units {self.units} measure; leave one of them out')
        if {"flip-horizontal", "flip-vertical", "rotate-90"} <= set(self.augment):
            raise ValueError("augment: rotate-90 and flip-horizontal make what flip-vertical makes; leave it out")
        if self.variants > MOST_VARIANTS:
            raise ValueError(f"augment makes {self.variants} variants of an image, at most {MOST_VARIANTS} are allowed")
        return self

    @model_validator(mode="after")
    def _meant(self) -> Self:
        kind = LABEL_KINDS[self.labels]
        for written, meant in self.values:
            if written in self.classes:
                raise ValueError(f"values: {written!r} is a class already")
            if meant not in ("", *(meanings := kind.meanings(self.classes))):
                others = ", ".join(map(repr, [*(each for each in meanings if each not in self.classes), ""]))
                allowed = f"a class, {others}" if set(meanings) & set(self.classes) else others
                raise ValueError(f"values: {written!r} means {meant!r}, which is no class; allowed: {allowed}")
            if kind.names_in(written) != [written]:
                raise ValueError(f"values: {written!r} holds several names; give each its own meaning")
        return self

    def label(self, cell: str | None) -> str | None:
        """A cell of the labels CSV as `values` says that it is meant; None for no label."""
        if cell is None or not self.values:
            return cell
        return LABEL_KINDS[self.labels].meant(cell, dict(self.values))

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns of the labels CSV that make a label; of several a cell is what all say, "730;1" (`joined`)."""
        return (self.label_column, *([self.event_column] if self.event_column else []))

    @property
    def written(self) -> tuple[str, ...]:
        """The texts of the CSV that are a class."""
        return (*self.classes, *(written for written, meant in self.values if meant in self.classes))

    @property
    def dense(self) -> bool:
        """Whether an example is a cell of an image, and not the image."""
        return LABEL_KINDS[self.labels].dense

    @property
    def cells(self) -> int:
        """Examples that one image gives."""
        return (self.image_size_px // self.cell_px) ** 2 if self.dense else 1

    @property
    def drawn(self) -> int:
        """Examples that are drawn of an image that a step draws."""
        return min(self.cells, self.cells_per_image) if self.dense else 1

    @property
    def examples(self) -> tuple[Example, ...]:
        """What is read of a patient: the task's own, or that of each input."""
        return self.inputs or (self,)

    @property
    def variants(self) -> int:
        """How many variants of an image learning sees, the image as it is among them."""
        return math.prod(VERSIONS[each] for each in self.augment)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of what a model takes: see `Example.input_shape`; of inputs, (their numbers one after another,)."""
        if self.inputs:
            return (sum(math.prod(each.input_shape) for each in self.inputs),)
        return super().input_shape

    @property
    def measured(self) -> str:
        """What the grey values measure, in words, of each input; "" where they are as a viewer shows them."""
        return measured_each((each.name, each.measured) for each in self.inputs) if self.inputs else super().measured


def joined(cells: Sequence[str | None]) -> str | None:
    """What the cells of a task's label columns say together; None where one of them says nothing."""
    return None if None in cells else SEPARATOR.join(map(str, cells))  # an empty cell may be a list of no findings


def _distinct(name: str, values: Any) -> None:
    if len({unicodedata.normalize("NFKC", each) for each in values}) != len(values):
        raise ValueError(f"{name} holds a value twice, or two that look the same")
