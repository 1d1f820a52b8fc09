"""Drawn patients: bright discs on noisy grey, and where they are, as hospitals write it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

Array = npt.NDArray[Any]

MASKS = """
name = "discs"
[task]
label_column = "mask"
classes = ["background", "disc"]
labels = "mask"
image_size_px = 32
cell_px = 2
[model]
features = 32
"""


def disc(rng: np.random.Generator, height: int = 48, width: int = 64, *, there: bool = True) -> tuple[Array, Array]:
    """A picture uint8 [height, width], and where its disc is, bool of the same shape."""
    radius = rng.uniform(7, 12)
    y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
    rows, columns = np.ogrid[:height, :width]
    mask = ((rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= radius**2) & there
    picture = 60 + 110 * mask + rng.normal(0, 8, (height, width))
    return np.clip(picture, 0, 255).astype(np.uint8), mask


def discs(folder: Path, patients: int = 12, images: int = 2, seed: int = 0) -> Path:
    """A folder of PNG with a mask each, and labels.csv; of each patient the last image holds nothing."""
    rng, lines = np.random.default_rng(seed), ["file,PatientID,mask,manufacturer"]
    folder.mkdir(parents=True, exist_ok=True)
    for patient in range(patients):
        for number in range(images):
            picture, mask = disc(rng, there=not number or number < images - 1)
            name = f"p{patient}-{number}"
            Image.fromarray(picture).save(folder / f"{name}.png")
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"{name}-mask.png")
            lines.append(f"{name}.png,P{patient},{name}-mask.png,{'acme' if patient % 2 else 'zeta'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder


POINTS = """
name = "spots"
[task]
label_column = "spots"
classes = ["background", "disc"]
labels = "points"
image_size_px = 32
cell_px = 2
[model]
features = 32
embedding = 16
[algorithm]
name = "ridge"
"""


def spots(folder: Path, patients: int = 12, images: int = 2, seed: int = 0) -> Path:
    """A folder of PNG of small discs, and where they are in labels.csv; of each patient the last image has none."""
    rng, lines = np.random.default_rng(seed), ["file,PatientID,spots"]
    folder.mkdir(parents=True, exist_ok=True)
    for patient in range(patients):
        for number in range(images):
            picture, cell = np.full((48, 64), 60.0), []
            for _ in range(0 if number == images - 1 else rng.integers(1, 3)):
                x, y = rng.uniform(6, 58), rng.uniform(6, 42)
                rows, columns = np.ogrid[:48, :64]
                picture[(rows + 0.5 - y) ** 2 + (columns + 0.5 - x) ** 2 <= 16] = 170
                cell.append(f"disc {x - 4:.1f} {y - 4:.1f} 8 8")
            picture += rng.normal(0, 8, picture.shape)
            Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / f"p{patient}-{number}.png")
            lines.append(f"p{patient}-{number}.png,P{patient},{';'.join(cell) or 'background'}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return folder
