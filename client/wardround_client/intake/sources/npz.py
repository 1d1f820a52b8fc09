"""An NPZ archive of NumPy: images in one array, and whose they are in another, or in a CSV.

In the archive `images` is [n, H, W] or [n, H, W, 3], of uint8, uint16 or bool (white is the greatest value), or floats
from 0 to 1. `patients` is [n], and every other array of n is a column of labels. With a CSV (--labels) its columns are
`number`, from 0, `PatientID`, and labels. Nothing is unpickled, and nothing is allocated because a header says so.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from wardround.errors import DataError
from wardround.files import open_regular
from wardround.given import TABLE_BYTES
from wardround.toml import Section
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.labels_csv import MISSING, is_nobody, label_columns, labels_of
from wardround_client.intake.pseudonyms import Pseudonyms
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Asked, Instance, Item, Labels, Rejection, Source
from wardround_client.intake.sources.dicom_folder import fingerprint

NUMBER, PATIENT = "number", "PatientID"
MOST_BYTES = 1 << 30
"""Of one image, and of all labels of a column."""

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class NpzSettings(Section):
    """images, patients: names of the two arrays."""

    images: str = "images"
    patients: str = "patients"


@dataclass(frozen=True)
class Picture:
    """One image. pixels: once it is fetched. damage: why they cannot be, or ""."""

    path: Path
    number: int
    patient: str | None
    labels: Labels
    line: int = 0
    pixels: NDArray[np.generic] | None = None
    damage: str = ""

    @property
    def name(self) -> str:
        """The archive, and the number in it."""
        return f"{self.path}, image {self.number}"

    def fingerprint(self) -> str:
        """Of the archive, and whose it is."""
        of_file = fingerprint(self.path)
        return f"{of_file}\0{self.number}\0{self.patient}" if of_file else ""

    def read(self, recipe: ImageRecipe, pseudonyms: Pseudonyms) -> Instance | Rejection:
        """Render."""
        if self.damage:
            return Rejection("the archive is damaged", self.damage)
        if self.pixels is None:
            return Rejection("the CSV names an image that the archive does not have", str(self.number))
        if self.patient is None or is_nobody(self.patient):
            return Rejection("no patient is named")
        if math.prod(self.pixels.shape[:2]) > recipe.greatest_pixels:
            return Rejection("larger than the limit", f"{self.pixels.shape}")
        if recipe.units != "display":
            return Rejection(f"an array, and the images are measured in {recipe.units}")
        values = self.pixels.astype(np.float32)
        if self.pixels.dtype.kind == "f":
            if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
                return Rejection("floating-point pixels that are not from 0 to 1")
        elif self.pixels.dtype.kind == "u":
            values /= np.float32((1 << 8 * self.pixels.dtype.itemsize) - 1)
        return Instance(
            patient=pseudonyms.patient(self.patient),
            study=b"",
            instance=pseudonyms.exact("npz", f"{self.path.name} {self.number}"),
            rows=quantise(fit(values, recipe))[None],
        )


class Npz(Source):
    """Images of one archive."""

    Settings = NpzSettings
    kind = "image"
    identity = "number in the archive"
    isolated = False  # numbers as they lie there: nothing is decoded

    def __init__(self, asked: Asked, settings: NpzSettings) -> None:
        """Look at the headers of all arrays. Raises: DataError."""
        self.name, self._path, self._images = asked.where, Path(asked.where), settings.images
        with _opened(self._path) as archive:
            shapes = {name.removesuffix(".npy"): _header(archive, name)[0] for name in archive.namelist()}
            shape, dtype = _header(archive, f"{settings.images}.npy")
            colour = len(shape) == 4 and shape[3] == 3
            if not (len(shape) == 3 or colour) or not all(shape) or dtype.kind not in "ufb" or dtype.itemsize > 8:
                raise DataError(
                    f"{self._path}: the array {settings.images!r} is {dtype} {list(shape)}",
                    allowed="[images, rows, columns] or [..., 3] of uint8, uint16, bool or floats",
                    do="write it so",
                )
            if dtype.kind == "u" and dtype.itemsize > 2:
                raise DataError(
                    f"{self._path}: {dtype} has no white", do="write uint8 or uint16, or floats from 0 to 1"
                )
            self._count = shape[0]
            self._csv = CsvFile.open(asked.labels) if asked.labels else None
            if self._csv is not None:
                self._csv.check((NUMBER, PATIENT), "column")
                self.label_columns = label_columns(self._csv, (NUMBER, PATIENT), asked.columns)
                self.notes = tuple(filter(None, [self._csv.note]))
                return
            mine = (settings.images, settings.patients)
            fitting = tuple(name for name, of in shapes.items() if of == (self._count,) and name not in mine)
            self.label_columns = fitting if asked.columns is None else asked.columns
            patients, *columns = (
                _words(archive, name, self._count) for name in (settings.patients, *self.label_columns)
            )
        labels = zip(*columns, strict=True) if columns else iter([()] * self._count)
        self._inside = [
            (patient, tuple(None if cell in MISSING else cell for cell in row))
            for patient, row in zip(patients, labels, strict=True)
        ]

    def items(self) -> Iterator[Picture]:
        """The images, in their order; or the lines of the CSV, in the order of what they name."""
        if self._csv is None:
            for number, (patient, labels) in enumerate(self._inside):
                yield Picture(self._path, number, patient, labels)
            return
        found = []
        for row in self._csv.rows():
            word = row.cells[NUMBER] if row.cells else ""
            labels = labels_of(row.cells, self.label_columns) if row.cells else (None,) * len(self.label_columns)
            at = int(word) if word.isdecimal() and len(word) < 12 else -1
            found.append(Picture(self._path, at, row.cells[PATIENT] if row.cells else None, labels, row.line))
        yield from sorted(found, key=lambda picture: (picture.number, picture.line))

    def fetched(self, items: Iterator[Item]) -> Iterator[Item]:
        """The same with their pixels: the array is read once, from its beginning, an image at a time."""
        with _opened(self._path) as archive, archive.open(f"{self._images}.npy") as file:
            shape, dtype = _described(file)
            size, at = math.prod(shape[1:]) * dtype.itemsize, -1
            pixels: NDArray[np.generic] | None = None
            why = ""  # what comes after a damaged place cannot be read either; what came before is kept
            for item in items:
                assert isinstance(item, Picture)
                while at < item.number < self._count and not why:
                    try:
                        data, at = file.read(size), at + 1
                        pixels = np.frombuffer(data, dtype).reshape(shape[1:])
                    except (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile) as error:
                        why = f"{type(error).__name__} in image {at}"
                fits = item.number == at and not why
                yield replace(item, pixels=pixels if fits else None, damage=why if item.number >= at else "")


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Raises: DataError, also for whatever goes wrong inside."""
    try:
        with open_regular(path, TABLE_BYTES) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        zipfile.BadZipFile,
        NotImplementedError,
        RuntimeError,
        zlib.error,
    ) as error:
        why = getattr(error, "strerror", None) or str(error)[:200]
        raise DataError(f"{path}: cannot be read ({why})", do="name an NPZ archive that holds these arrays") from None


def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    """Shape and type of an array, which is as large as it says. Raises: ValueError."""
    with archive.open(name) as file:
        shape, dtype = _described(file)
        if file.tell() + math.prod(shape) * dtype.itemsize != archive.getinfo(name).file_size:
            raise ValueError(f"{name} is not as large as its header says")
    if math.prod(shape[1:]) * dtype.itemsize > MOST_BYTES:
        raise ValueError(f"{name} holds more than {MOST_BYTES:,} bytes an image")
    return shape, dtype


def _described(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = npy.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"an array of format {version}")
    shape, fortran, dtype = _HEADERS[version](file, max_header_size=10_000)
    if dtype.hasobject or dtype.fields is not None:
        raise ValueError("an array of Python objects or records")
    if fortran and len(shape) > 1:
        raise ValueError("an array in Fortran order")
    return shape, dtype


def _words(archive: zipfile.ZipFile, name: str, count: int) -> list[str]:
    """An array of one dimension, as text."""
    shape, dtype = _header(archive, f"{name}.npy")
    if shape != (count,) or math.prod(shape) * dtype.itemsize > MOST_BYTES or dtype.kind not in "USiub":
        raise ValueError(f"{name} is {dtype} {list(shape)}, where {count} words or whole numbers are wanted")
    with archive.open(f"{name}.npy") as file:
        _described(file)
        values = np.frombuffer(file.read(count * dtype.itemsize), dtype)
    return [(each.decode() if isinstance(each, bytes) else str(each)).strip() for each in values.tolist()]


source = Npz
