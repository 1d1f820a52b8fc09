"""What an image was before it was fitted into the cohort's square: answers about places go back to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pydicom.dataset import Dataset

from wardround_client.intake.dicom.attributes import quiet
from wardround_client.intake.dicom.container import GREATEST_HEADER, opened
from wardround_client.intake.dicom.header import read
from wardround_client.intake.dicom.pixels import placed
from wardround_client.intake.pictures import NIFTI, nifti, pages_of, spacing_of
from wardround_client.intake.recipe import ImageRecipe
from wardround_client.intake.source import Instance, Rules
from wardround_client.intake.stack import Stack, chosen

Array = npt.NDArray[Any]
_ORIENTATION, _SIDEWAYS = 0x0112, (5, 6, 7, 8)  # Exif 2.3

OF_SOURCE = (
    "SpecificCharacterSet",
    *("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "Modality"),
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "IssuerOfPatientID"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
    *("Rows", "Columns", "NumberOfFrames", "PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"),
    *("SliceThickness", "SpacingBetweenSlices", "PositionReferenceIndicator", "ImageType", "InstanceNumber"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "DimensionIndexSequence"),
    *("DimensionOrganizationSequence", "DimensionOrganizationType"),
)
"""What results take over from an image."""


@dataclass(frozen=True)
class Original:
    """One image. number: of the frame, or the slice, in its file. aspect: height of a pixel over its width."""

    number: int
    rows: int
    columns: int
    aspect: float = 1.0

    def classes(self, maps: Array) -> Array:
        """Of maps [classes, S, S] of the square the class of each pixel of the image: uint8 [rows, columns]."""
        import torch  # not where files are read
        from torch.nn.functional import interpolate

        height, width, top, left = placed(self.rows, self.columns, maps.shape[-1], self.aspect)
        best = np.full((self.rows, self.columns), -1.0, np.float32)
        found = np.zeros((self.rows, self.columns), np.uint8)
        for label, part in enumerate(maps[:, top : top + height, left : left + width]):
            tensor = torch.from_numpy(np.ascontiguousarray(part, np.float32))[None, None]
            one = interpolate(tensor, best.shape, mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()
            found[one > best] = label
            np.maximum(best, one, out=best)
        return found

    def place(self, x: float, y: float, size: int) -> tuple[float, float] | None:
        """A place in the square of that size -> in the image's pixels, from the upper left corner of the first; None
        beside the image.
        """
        height, width, top, left = placed(self.rows, self.columns, size, self.aspect)
        x, y = (x - left) * self.columns / width, (y - top) * self.rows / height
        return (x, y) if 0 <= x < self.columns and 0 <= y < self.rows else None


@dataclass(frozen=True)
class Placed(Instance):
    """An instance whose images know what they were, in the order of the rows. source: of a DICOM file, what a
    segmentation takes over from it.
    """

    originals: tuple[Original, ...] = ()
    source: Dataset | None = None


def of_dicom(path: Path, recipe: ImageRecipe, rules: Rules) -> tuple[tuple[Original, ...], Dataset]:
    """The chosen frames of a file, and its header. Raises: UnusableError, OSError."""
    with quiet():
        header = read(path, recipe, rules)
        source = opened(path, OF_SOURCE, GREATEST_HEADER).dataset
    frames = ((number, look.aspect) for number, look in header.looks.items())
    return tuple(Original(number, header.rows, header.columns, aspect) for number, aspect in frames), source


def of_picture(path: Path, recipe: ImageRecipe) -> tuple[Original, ...]:
    """A picture, or the chosen pages of a TIFF or slices of a NIfTI file. Raises: UnusableError, OSError."""
    if path.name.lower().endswith(NIFTI):
        values, affine = nifti(path, recipe)
        stack = Stack(lambda number: values[number], len(values), spacing_of(affine))
        numbers: Sequence[int] = chosen(stack.size, recipe.frames_per_file)
        _, rows, columns = values.shape
        return tuple(Original(number, rows, columns, stack.aspect) for number in numbers)
    with Image.open(path) as image:
        pages = chosen(pages_of(image), recipe.frames_per_file)
        return tuple(_page(image, number) for number in pages)


def _page(image: Image.Image, number: int) -> Original:
    image.seek(number)
    sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return Original(number, *((image.width, image.height) if sideways else (image.height, image.width)))
