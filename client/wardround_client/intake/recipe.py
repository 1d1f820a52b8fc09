"""Recipes: every setting that decides the values of a cohort's rows. A cohort keeps one for life."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

from wardround.errors import DataError
from wardround.labels import LABEL_KINDS
from wardround.task import Example, Task, Units, measured, measured_each
from wardround_client.cohort.index import CohortLayout
from wardround_client.config import CHECKED, BurnedIn, BurnedInText


class Recipe(Protocol):
    """How every row of a cohort is made."""

    @property
    def layout(self) -> CohortLayout:
        """Of a cohort that is made so."""
        ...


_FIRST = (
    "image_size_px",
    "channels",
    "frames_per_file",
    "allow_burned_in",
    "greatest_pixels",
    "greatest_bytes",
)


@dataclass(frozen=True)
class ImageRecipe:
    """How every image of a cohort is made.

    image_size_px: side of the square result. channels: 1 (luminance) or 3 (RGB; grey is repeated).
    frames_per_file: of a multi-frame file at most this many frames, evenly spaced, each an image of its own.
    allow_burned_in: also use files that say that text is burned into the pixels, if none is found.
    greatest_pixels, greatest_bytes: a frame of more pixels, or of more bytes when compressed, or a picture or a
    deflated file of more bytes, is refused.
    units, window: what the values of DICOM files measure, and centre and width of what is shown of it ("HU", "SUV"); or
    "display": as a viewer shows them.
    depth: slices of a volume; 0: an image is a row. spacing_mm: of a volume's slices and of the pixels in them; (): the
    whole series is fitted in.
    marks: classes of a plane behind the channels, which says where they are; (): there is none. places: the plane is
    drawn from points and boxes, not from masks.
    burned_in, checked: what becomes of images with text in their pixels, and which are looked at for it (`config.
    BurnedIn`). That an image is refused changes none that is not, so only what blackens is part of a cohort.
    """

    image_size_px: int
    channels: int
    frames_per_file: int = 32
    allow_burned_in: bool = False
    greatest_pixels: int = 1 << 26
    greatest_bytes: int = 1 << 30
    units: Units = "display"
    window: tuple[float, ...] = ()
    depth: int = 0
    spacing_mm: tuple[float, ...] = ()
    marks: tuple[str, ...] = ()
    places: bool = False
    burned_in: BurnedInText = "quarantine"
    checked: tuple[str, ...] = CHECKED

    @property
    def takes_marked(self) -> bool:
        """Whether a file may be used that says that text is burned into its pixels."""
        return self.allow_burned_in or self._blackens

    @property
    def _blackens(self) -> bool:
        return self.burned_in in ("blacken", "crop")

    @property
    def layout(self) -> CohortLayout:
        """uint16 [channels, S, S], [channels, depth, S, S], or [channels + 1, S, S] with a plane of marks."""
        return CohortLayout(
            "volume" if self.depth else "image",
            self.image_size_px,
            self.channels,
            recipe=f"1: {self._settings()}",
            depth=self.depth,
            marks=self.marks,
            measured=measured(self.units, self.window),
        )

    def _settings(self) -> dict[str, object]:
        """Those that were there from the first version on; a later one where it is not the default, so that what is
        made as it always was has the text that it always had.
        """
        stated = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        refusing = () if self._blackens else ("burned_in", "checked")
        return {
            name: value
            for name, value, default in stated
            if name in _FIRST or (value != default and name not in refusing)
        }

    @classmethod
    def of(cls, text: str) -> ImageRecipe:
        """The recipe that stands in a layout. Raises: DataError, when another version wrote it.

        What only refuses is not in it: nobody looks for text then.
        """
        version, _, settings = text.partition(": ")
        try:
            if version == "1":
                return cls(**{"burned_in": "ignore", **ast.literal_eval(settings)})
        except (ValueError, SyntaxError, TypeError):
            pass
        raise DataError(f"images made by the recipe {text[:80]!r}", do="use the wardround that took them in")


@dataclass(frozen=True)
class TableRecipe:
    """How every row of a table is made.

    features: columns of numbers, in the order of the row. constants: by feature, or "*" for any, the public number that
    stands for a missing value, None for a gap; without one the row is refused. (A mean or median would be computed from
    the patients, and would have to be paid for.)
    """

    features: tuple[str, ...]
    constants: Mapping[str, float | None] = field(default_factory=dict)

    @property
    def layout(self) -> CohortLayout:
        """float32 [features]."""
        return CohortLayout("table", features=self.features, recipe=f"1: missing {sorted(self.constants.items())}")

    @classmethod
    def of(cls, text: str, features: tuple[str, ...]) -> TableRecipe:
        """The recipe that stands in a layout. Raises: DataError, when another version wrote it."""
        version, _, constants = text.partition(": missing ")
        try:
            if version == "1":
                return cls(features, dict(ast.literal_eval(constants)))
        except (ValueError, SyntaxError, TypeError):
            pass
        raise DataError(f"rows made by the recipe {text[:80]!r}", do="use the wardround that took them in")


@dataclass(frozen=True)
class InputsRecipe:
    """How several inputs of a patient become one row: by name, in the order of the task. choose: which images of a
    DICOM study each is, by (modality, view, series); "" is any.
    """

    parts: tuple[tuple[str, ImageRecipe | TableRecipe], ...]
    choose: tuple[tuple[str, str, str], ...]

    @property
    def layout(self) -> CohortLayout:
        """float32 [numbers of all inputs]; images in [0, 1], NaN for what is missing."""
        sizes = [math.prod(recipe.layout.shape) for _, recipe in self.parts]
        texts = [(name, recipe.layout.recipe, recipe.layout.features) for name, recipe in self.parts]
        said = measured_each((name, recipe.layout.measured) for name, recipe in self.parts)
        return CohortLayout("inputs", recipe=f"1: {(texts, self.choose)}", numbers=sum(sizes), measured=said)

    @classmethod
    def of(cls, text: str) -> InputsRecipe:
        """The recipe that stands in a layout. Raises: DataError, when another version wrote it."""
        version, _, settings = text.partition(": ")
        try:
            if version == "1":
                texts, choose = ast.literal_eval(settings)
                parts = [
                    (name, TableRecipe.of(own, features) if features else ImageRecipe.of(own))
                    for name, own, features in texts
                ]
                return cls(tuple(parts), choose)
        except (ValueError, SyntaxError, TypeError):
            pass
        raise DataError(f"inputs made by the recipe {text[:80]!r}", do="use the wardround that took them in")


AnyRecipe = ImageRecipe | TableRecipe | InputsRecipe


def recipe_of(task: Task, *, allow_burned_in: bool = False) -> AnyRecipe:
    """How a task's rows are made."""
    if task.inputs:
        parts = tuple((each.name, _single(each, allow_burned_in)) for each in task.inputs)
        return InputsRecipe(parts, tuple((each.modality, each.view, each.series) for each in task.inputs))
    single = _single(task, allow_burned_in)
    if not task.dense or isinstance(single, TableRecipe):
        return single
    return replace(single, marks=task.classes, places=LABEL_KINDS[task.labels].places)


def at_site(recipe: AnyRecipe, choice: BurnedIn) -> AnyRecipe:
    """The recipe with what the hospital chose about text in pixels."""
    if isinstance(recipe, InputsRecipe):
        parts = tuple((name, replace(each, **_chosen(each, choice))) for name, each in recipe.parts)
        return replace(recipe, parts=parts)
    return replace(recipe, **_chosen(recipe, choice))


def _chosen(recipe: ImageRecipe | TableRecipe, choice: BurnedIn) -> dict[str, Any]:
    return {} if isinstance(recipe, TableRecipe) else {"burned_in": choice.text, "checked": choice.checked}


def recipe_in(text: str, task: Task) -> AnyRecipe:
    """The recipe by which a cohort for this task was made. Raises: DataError, when another version wrote it."""
    if task.inputs:
        return InputsRecipe.of(text)
    return TableRecipe.of(text, task.features) if task.kind == "table" else ImageRecipe.of(text)


def _single(example: Example, allow_burned_in: bool) -> ImageRecipe | TableRecipe:
    if example.kind == "table":
        return TableRecipe(example.features, dict.fromkeys(example.may_miss))
    return ImageRecipe(
        example.image_size_px,
        example.channels,
        allow_burned_in=allow_burned_in,
        units=example.units,
        window=example.window,
        depth=example.depth,
        spacing_mm=example.spacing_mm,
    )
