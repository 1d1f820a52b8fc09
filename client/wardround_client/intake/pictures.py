"""Files that are not DICOM -> the rows of a cohort: pictures (whatever Pillow reads), and NIfTI volumes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from wardround.files import open_regular
from wardround_client.intake import marks
from wardround_client.intake.burned_in_text import without_text
from wardround_client.intake.dicom.attributes import UnusableError
from wardround_client.intake.dicom.pixels import fit, quantise
from wardround_client.intake.recipe import ImageRecipe, InputsRecipe, TableRecipe
from wardround_client.intake.stack import Stack, chosen, volume

NIFTI = (".nii", ".nii.gz")
_MM = {"meter": 1000.0, "micron": 0.001}
_TAILS = (0.5, 99.5)  # percentiles of a volume that become black and white, where nothing else says


def rows_of(path: Path, recipe: ImageRecipe, mark: str = "", root: Path | None = None) -> NDArray[np.uint16]:
    """The rows of a file: uint16 [rows, *layout.shape].

    Args:
        path: a picture, or a NIfTI file.
        recipe: how rows are made.
        mark: of a recipe with marks, the file of the mask, relative to `root`; with places, what the CSV's cell says.
        root: the folder of the mask.

    Raises: UnusableError, OSError, and whatever a decoder raises.
    """
    if path.name.lower().endswith(NIFTI):
        return _of_volume(path, recipe, mark, root)
    if recipe.depth:
        raise UnusableError("a picture, and the task is about volumes", "name a NIfTI file, or use a folder of DICOM")
    if recipe.units != "display":
        raise UnusableError(f"a picture, and the images are measured in {recipe.units}")
    with opened(path, recipe) as image:
        pages = pages_of(image)
        if pages > 1 and (image.format != "TIFF" or recipe.marks):
            raise UnusableError("several pictures in one file")
        if pages > 1:
            return _of_pages(image, pages, recipe)
        values = picture(image, recipe)
    rows = quantise(fit(values, recipe))[None]
    if not recipe.marks:
        return rows
    return marks.beside(rows, [_plane(mark, root, values.shape[:2], recipe)], [1.0])


def pages_of(image: Image.Image) -> int:
    """How many there are. A camera's second picture in a JPEG (MPO) is a preview, or what the other eye sees: none."""
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))


def picture(image: Image.Image, recipe: ImageRecipe) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, 3] in [0, 1], without text; of the metadata only the orientation is used (Exif 2.3, tag
    0x0112). Raises: UnusableError.
    """
    values = _values(_upright(image))
    (values,) = without_text(lambda: iter([values]), recipe, {"picture"})
    return values


def _of_pages(image: Image.Image, pages: int, recipe: ImageRecipe) -> NDArray[np.uint16]:
    """Of a TIFF of several pages at most `frames_per_file`, evenly spaced, as of a file of several frames."""
    numbers = chosen(pages, recipe.frames_per_file)

    def read() -> Iterator[NDArray[np.float32]]:
        for number in numbers:
            image.seek(number)
            if image.width * image.height > recipe.greatest_pixels:
                raise UnusableError("larger than the limit", f"{image.width} x {image.height} pixels")
            yield _values(_upright(image))

    clean = without_text(read, recipe, {"picture"}, careful=[True] * len(numbers))
    return np.stack([quantise(fit(page, recipe)) for page in clean])


def _upright(image: Image.Image) -> Image.Image:
    """As it is meant to be looked at: turned (Exif 2.3, tag 0x0112), and inverted where TIFF says that white is zero
    (TIFF 6.0, tag 262), which Pillow does of 8 bits only. Raises: UnusableError.
    """
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM")):
        raise UnusableError("pixels of 32 bits have no white")
    inverted = image.format == "TIFF" and image.mode.startswith("I;16") and _tag(image, 262) == 0
    turned = ImageOps.exif_transpose(image)
    if inverted:
        turned = Image.fromarray(np.asarray(65535 - np.asarray(turned, np.int32), np.uint16))
    return turned


def _tag(image: Image.Image, number: int) -> object:
    return getattr(image, "tag_v2", {}).get(number)


@contextmanager
def opened(path: Path, recipe: ImageRecipe) -> Iterator[Image.Image]:
    """A picture within the recipe's limits; it is decoded when it is looked at. Raises: UnusableError, OSError."""
    with open_regular(path, recipe.greatest_bytes) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own limit is not ours
        with Image.open(file) as image:
            if image.width * image.height > recipe.greatest_pixels:
                raise UnusableError("larger than the limit", f"{image.width} x {image.height} pixels")
            yield image


def _values(image: Image.Image) -> NDArray[np.float32]:
    """float32 [H, W] or [H, W, 3] in [0, 1]; 16 bits stay 16 bits, what is transparent is black."""
    if image.mode.startswith("I"):
        return np.asarray(np.clip(np.asarray(image, np.float32) / np.float32(65535), 0, 1))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image.convert("RGBA"))
    grey = image.mode in ("1", "L")
    return np.asarray(image.convert("L" if grey else "RGB"), np.float32) / np.float32(255)


def _plane(mark: str, root: Path | None, shape: tuple[int, ...], recipe: ImageRecipe) -> NDArray[np.uint16]:
    """Of an image of this shape, as large as it."""
    if recipe.places:
        return marks.drawn(marks.places_in(mark, recipe.marks), *shape)
    if root is None:
        raise UnusableError("no mask")
    with opened(root / mark, recipe) as image:
        if pages_of(image) > 1:
            raise UnusableError("several pictures in one file")
        image = ImageOps.exif_transpose(image)
        if image.mode in ("LA", "RGBA") and np.asarray(image.getchannel("A")).min() < 255:
            raise UnusableError("a mask is transparent in part", "write the number of each pixel's class, in grey")
        values = np.asarray(image if image.mode in ("L", "P", "1", "I", "I;16") else image.convert("RGB"))
    if values.ndim == 3:
        if (values != values[..., :1]).any():
            raise UnusableError("a mask is in colour", "write the number of each pixel's class, in grey")
        values = values[..., 0]
    if values.shape != shape:
        raise UnusableError("a mask is not as large as its image", f"{values.shape}, image {shape}")
    return marks.of_picture(values.astype(np.int64), len(recipe.marks))


def _of_volume(path: Path, recipe: ImageRecipe, mark: str, root: Path | None) -> NDArray[np.uint16]:
    """A NIfTI file as one volume, or its slices as images, at most `frames_per_file`, evenly spaced."""
    values, affine = nifti(path, recipe)
    spacing = spacing_of(affine)
    low, high = np.percentile(values, _TAILS)
    if recipe.units != "display":
        if recipe.units != "HU" or values.min() >= 0:  # air and fat are below water
            raise UnusableError(f"not CT in HU, and the images are measured in {recipe.units}")
        low, high = recipe.window[0] - recipe.window[1] / 2, recipe.window[0] + recipe.window[1] / 2

    def read(number: int) -> NDArray[np.float32]:
        return np.asarray(np.clip((values[number] - low) / max(high - low, 1e-6), 0, 1), np.float32)

    stack = Stack(read, len(values), spacing)
    if recipe.depth:
        return volume(stack, recipe)[None]
    numbers = chosen(stack.size, recipe.frames_per_file)
    rows = np.stack([quantise(fit(read(number), recipe, stack.aspect)) for number in numbers])
    if not recipe.marks:
        return rows
    if root is None or recipe.places or not mark.lower().endswith(NIFTI):
        raise UnusableError("the mask of a NIfTI file is not a NIfTI file", mark[:80])
    of_classes, place = nifti(root / mark, recipe)
    if of_classes.shape != values.shape:
        raise UnusableError("a mask is not as large as its image", f"{of_classes.shape}, image {values.shape}")
    corners = np.array([[*each, 1] for each in np.ndindex(2, 2, 2)]) * [*values.shape[::-1], 1]
    if np.abs(corners @ (affine - place).T).max() > min(spacing) / 2:
        raise UnusableError("a mask lies elsewhere than its image", "write it with the image's sform and qform")
    classes = len(recipe.marks)
    planes = [marks.of_picture(np.rint(of_classes[number]).astype(np.int64), classes) for number in numbers]
    return marks.beside(rows, planes, [stack.aspect] * len(planes))


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """From slice to slice, from row to row, from column to column, mm. affine: as `nifti` gives it."""
    x, y, z = (float(each) for each in np.linalg.norm(affine[:3, :3], axis=0))
    return z, y, x


def nifti(path: Path, recipe: ImageRecipe) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """A NIfTI file of three dimensions: [slices, rows, columns], feet first, front up, the patient's right on the left;
    and where its canonical voxels (right, front, head) lie, mm [4, 4]. Raises: UnusableError, OSError.
    """
    try:
        import nibabel
    except ImportError:
        raise UnusableError("NIfTI files need nibabel", "pip install 'wardround[nifti]'") from None
    open_regular(path, recipe.greatest_bytes).close()  # nibabel would wait for a pipe
    try:
        image: Any = nibabel.load(path)
        shape = image.shape
        if len(shape) == 4 and shape[3] == 1:
            image = image.slicer[..., 0]
        if len(image.shape) != 3 or not all(image.shape):
            raise UnusableError("a NIfTI file without three dimensions", str(shape))
        if int(np.prod(image.shape, dtype=np.int64)) * 4 > recipe.greatest_bytes:
            raise UnusableError("larger than the limit", f"{shape}, limit {recipe.greatest_bytes} bytes")
        if image.get_data_dtype().kind not in "iufb":
            raise UnusableError("a NIfTI file of colours or complex numbers", str(image.get_data_dtype()))
        image = nibabel.as_closest_canonical(image)  # type: ignore[no-untyped-call]
        values = np.asarray(image.dataobj, np.float32)
        mm = _MM.get(image.header.get_xyzt_units()[0], 1.0)
        affine = np.diag([mm, mm, mm, 1]) @ image.affine
    except (nibabel.filebasedimages.ImageFileError, nibabel.orientations.OrientationError, EOFError, ValueError) as why:
        raise UnusableError("a NIfTI file that cannot be read", repr(why)) from None
    if not np.isfinite(values).all():
        values = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    # Canonical is right, front, head; a picture's rows go down, and a radiologist looks from the feet.
    return values.transpose(2, 1, 0)[:, ::-1, ::-1], affine


def inputs_of(cells: tuple[tuple[str, ...], ...], root: Path, recipe: InputsRecipe) -> NDArray[np.float32]:
    """Several inputs of one patient: float32 [1, numbers]. cells: for each input, its file relative to `root`, or its
    columns; "" is missing. Raises: UnusableError: none is there.
    """
    parts = [_input(values, root, each) for values, (_, each) in zip(cells, recipe.parts, strict=True)]
    if all(np.isnan(part).all() for part in parts):
        raise UnusableError("none of the inputs is there")
    return np.concatenate(parts)[None]


def _input(values: tuple[str, ...], root: Path, recipe: ImageRecipe | TableRecipe) -> NDArray[np.float32]:
    if isinstance(recipe, TableRecipe):
        return table_row(values)
    if not values[0]:
        return missing(recipe)
    rows = rows_of(root / values[0], recipe)
    if len(rows) != 1:
        raise UnusableError("several images where one is wanted", values[0][:80])
    return numbers_of(rows)


def numbers_of(row: NDArray[np.uint16]) -> NDArray[np.float32]:
    """An image or a volume as one input among several: its numbers one after another, in [0, 1]."""
    return np.asarray(row.ravel() / np.float32(65535), np.float32)


def missing(recipe: ImageRecipe) -> NDArray[np.float32]:
    """An image or a volume that is not there: NaN for each of its numbers."""
    return np.full(int(np.prod(recipe.layout.shape)), np.nan, np.float32)


def table_row(cells: Sequence[str]) -> NDArray[np.float32]:
    """Cells of a table beside images; NaN for none. Raises: UnusableError."""
    return np.array([_number(cell) for cell in cells], np.float32)


def _number(cell: str) -> float:
    if not cell:
        return np.nan
    try:
        value = float(cell.replace(",", ".") if cell.count(",") == 1 and "." not in cell else cell)
    except ValueError:
        raise UnusableError("not a number", cell[:80]) from None
    if not np.isfinite(value):
        raise UnusableError("not a finite number", cell[:80])
    return value
