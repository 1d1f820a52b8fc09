"""A folder of pictures (PNG, JPEG and whatever Pillow reads), and a CSV that says whose each is.

The CSV has the columns `file` (relative to the folder), `PatientID`, and labels. A picture that it does not name is not
read: nobody could say whose it is.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wardround.errors import ConfigError, DataError
from wardround.files import open_regular
from wardround.toml import Section
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.labels_csv import MISSING, label_columns, labels_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, Instance, Labels, Rejection, Source
from wardround_client.intake.sources.dicom_folder import fingerprint

FILE, PATIENT = "file", "PatientID"


@dataclass(frozen=True)
class Picture:
    """One line of the CSV. file: as it stands there. patient: None where the line has too few or too many cells."""

    path: Path
    file: str
    patient: str | None
    line: int
    labels: Labels

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def fingerprint(self) -> str:
        """Of the file, and whose it is."""
        of_file = fingerprint(self.path) if self.patient else ""
        return f"{of_file}\0{self.patient}" if of_file else ""

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Decode and render; of the metadata only the orientation is looked at (Exif 2.3, tag 0x0112)."""
        if self.patient is None:
            return Rejection("another number of cells than there are columns", f"line {self.line}")
        if self.patient in MISSING or not self.file:
            return Rejection("the CSV names no file, or no PatientID", f"line {self.line}")
        with open_regular(self.path, recipe.greatest_bytes) as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own limit is not ours
            with Image.open(file) as image:
                if image.width * image.height > recipe.greatest_pixels:
                    return Rejection("larger than the limit", f"{image.width} x {image.height} pixels")
                if getattr(image, "n_frames", 1) > 1:
                    return Rejection("several pictures in one file")
                values = _values(ImageOps.exif_transpose(image))
        return Instance(
            patient=pseudonyms.patient(self.patient),
            study=b"",
            instance=pseudonyms.exact("picture", self.file),
            rows=quantise(fit(values, recipe))[None],
        )


class ImageFolder(Source):
    """Pictures below a folder, as a CSV lists them."""

    kind = "image"
    identity = "file name"

    def __init__(self, asked: Asked, settings: Section) -> None:
        """Check the folder and the CSV. Raises: ConfigError, DataError."""
        if asked.labels is None:
            raise ConfigError("a folder of pictures without --labels", do="add a CSV with file, PatientID and labels")
        self.name, self._root = asked.where, Path(asked.where).absolute()
        if not self._root.is_dir():
            raise DataError(f"{asked.where} is not a folder", do="name the folder that holds the pictures")
        self._file = CsvFile.open(asked.labels)
        self._file.check((FILE, PATIENT), "column")
        self.label_columns = label_columns(self._file, (FILE, PATIENT), asked.columns)
        self.notes = tuple(filter(None, [self._file.note]))

    def items(self) -> Iterator[Picture]:
        """The lines of the CSV, in its order."""
        none: Labels = (None,) * len(self.label_columns)
        for row in self._file.rows():
            if row.cells is None:
                yield Picture(self._root, "", None, row.line, none)
            else:
                file = posixpath.normpath(row.cells[FILE].replace("\\", "/")) if row.cells[FILE] else ""
                labels = labels_of(row.cells, self.label_columns)
                yield Picture(self._root / file, file, row.cells[PATIENT], row.line, labels)


def _values(image: Image.Image) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, 3] in [0, 1]; 16 bits stay 16 bits, what is transparent is black."""
    if image.mode.startswith("I"):
        return np.asarray(np.clip(np.asarray(image, np.float32) / np.float32(65535), 0, 1))
    if image.mode == "F":
        raise ValueError("floating-point pixels have no white")
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    grey = image.mode in ("1", "L")
    return np.asarray(image.convert("L" if grey else "RGB"), np.float32) / np.float32(255)


source = ImageFolder
