"""Recipes: every setting that decides the values of a cohort's rows. A cohort keeps one for life."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Literal, Protocol

from wardround.errors import DataError
from wardround_client.cohort.index import CohortLayout


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
    allow_burned_in: also use files that say that text is burned into the pixels.
    greatest_pixels, greatest_bytes: a frame of more pixels, or of more bytes when compressed, or a picture or a
    deflated file of more bytes, is refused.
    units, window: what the values of DICOM files measure, and centre and width of what is shown of it ("HU", "SUV"); or
    "display": as a viewer shows them.
    """

    image_size_px: int
    channels: int
    frames_per_file: int = 32
    allow_burned_in: bool = False
    greatest_pixels: int = 1 << 26
    greatest_bytes: int = 1 << 30
    units: Literal["display", "HU", "SUV"] = "display"
    window: tuple[float, float] = (0.0, 0.0)

    @property
    def layout(self) -> CohortLayout:
        """uint16 [channels, S, S]."""
        return CohortLayout("image", self.image_size_px, self.channels, recipe=f"1: {self._settings()}")

    def _settings(self) -> dict[str, object]:
        """Those that were there from the first version on; a later one where it is not the default, so that what is
        made as it always was has the text that it always had.
        """
        stated = ((each.name, getattr(self, each.name), each.default) for each in fields(self))
        return {name: value for name, value, default in stated if name in _FIRST or value != default}

    @classmethod
    def of(cls, text: str) -> ImageRecipe:
        """The recipe that stands in a layout. Raises: DataError, when another version wrote it."""
        version, _, settings = text.partition(": ")
        try:
            if version == "1":
                return cls(**ast.literal_eval(settings))
        except (ValueError, SyntaxError, TypeError):
            pass
        raise DataError(f"images made by the recipe {text[:80]!r}", do="use the wardround that took them in")


@dataclass(frozen=True)
class TableRecipe:
    """How every row of a table is made.

    features: columns of numbers, in the order of the row. constants: by feature, the public number that stands for a
    missing value; without one the row is refused. (A mean or median would be computed from the patients, and would have
    to be paid for.)
    """

    features: tuple[str, ...]
    constants: Mapping[str, float] = field(default_factory=dict)

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
