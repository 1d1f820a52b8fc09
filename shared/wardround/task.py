"""What is diagnosed, from what: the table [task] of federation.toml."""

from __future__ import annotations

import math
import unicodedata
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from wardround.labels import LABEL_KINDS
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
MOST_VARIANTS = 16  # of one image: each takes memory and time like an image


class Task(Section):
    """What is diagnosed, from what.

    label_column: the column of the labels CSV; classes: its values, in the order of the model's outputs.
    labels: their kind, a file of `wardround.labels`. "one": an image is of one of the classes. "several": the classes
    are findings, each there or not; a cell holds those that are there, with ";" between ("nodule;effusion"), any other
    text is no finding of the task, and an empty cell no label.
    image_size_px: images are resized to image_size_px x image_size_px; channels: 1 (grey) or 3 (RGB).
    features: for a table, the names of the columns; empty for images. centre, spread: for each column a public guess of
    a usual value and of how far values lie apart (age: 55 and 15), from textbooks and never from patients; private
    statistics mend the guess, and are bounded in its units. Empty: 0 and 1.
    augment: what may be done to an image without making its label wrong; learning sees every combination of it, at most
    16 an image, and judging none. Empty by default, because only who knows the images can say: no flip where left and
    right, or above and below, mean something (the heart in a chest image, a finding named by its side), no "intensity"
    where grey values are measurements (CT). "shift" is by a sixteenth of the image.
    """

    label_column: Label
    classes: Annotated[tuple[Label, ...], Field(min_length=2, max_length=256)]
    labels: Annotated[str, AfterValidator(_label_kind)] = "one"
    kind: Literal["image", "table"] = "image"
    image_size_px: Annotated[int, Field(ge=8, le=1024)] = 64
    channels: Literal[1, 3] = 1
    features: Annotated[tuple[Label, ...], Field(max_length=4096)] = ()
    centre: tuple[Annotated[float, Field(ge=-1e9, le=1e9)], ...] = ()
    spread: tuple[Annotated[float, Field(ge=1e-9, le=1e9)], ...] = ()
    augment: Annotated[tuple[Augmentation, ...], Field(max_length=len(VERSIONS))] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name, values in (("classes", self.classes), ("features", self.features)):
            if len({unicodedata.normalize("NFKC", each) for each in values}) != len(values):
                raise ValueError(f"{name} holds a value twice, or two that look the same")
        if (self.kind == "table") != bool(self.features):
            raise ValueError("features names the columns of a table, and a table needs them")
        for name, numbers in (("centre", self.centre), ("spread", self.spread)):
            if len(numbers) not in (0, len(self.features)):
                raise ValueError(f"{name} holds {len(numbers)} numbers for {len(self.features)} features")
        LABEL_KINDS[self.labels].check(self.classes)
        return self

    @model_validator(mode="after")
    def _augmentable(self) -> Self:
        if self.augment and self.kind == "table":
            raise ValueError("augment is for images, and this task is about a table")
        if len(set(self.augment)) != len(self.augment):
            raise ValueError("augment holds a value twice")
        if {"flip-horizontal", "flip-vertical", "rotate-90"} <= set(self.augment):
            raise ValueError("augment: rotate-90 and flip-horizontal make what flip-vertical makes; leave it out")
        if self.variants > MOST_VARIANTS:
            raise ValueError(f"augment makes {self.variants} variants of an image, at most {MOST_VARIANTS} are allowed")
        return self

    @property
    def variants(self) -> int:
        """How many variants of an image learning sees, the image as it is among them."""
        return math.prod(VERSIONS[each] for each in self.augment)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one example: (channels, image_size_px, image_size_px), or (features,)."""
        if self.kind == "table":
            return (len(self.features),)
        return (self.channels, self.image_size_px, self.image_size_px)
