"""From tissue to the numbers that a scanner stores: blur, noise, bias, exposure, quantisation, window."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from wardround_simulation.phantoms.anatomy import Scene, cr_chest, ct_chest, mr_head
from wardround_simulation.phantoms.cohort import People, builds
from wardround_simulation.phantoms.findings import paint
from wardround_simulation.phantoms.hospitals import Scanner
from wardround_simulation.phantoms.shapes import Field, Grid, blur, column, ramp, smooth_noise

DISEASED = 0.4
"""Of a pixel, from how much of it on it counts as diseased."""

Stored = npt.NDArray[np.uint8 | np.uint16 | np.int16]


@dataclass(frozen=True)
class Acquisition:
    """n images as a scanner stores them.

    pixels: [n, rows, columns], uint8, uint16 or int16. inverted: bool [n], MONOCHROME1.
    windows: [n, 2], centre and width in units after the rescale (DICOM PS3.3 C.11.2.1.2). diseased: bool, as pixels,
    where the finding is.
    """

    pixels: Stored
    inverted: npt.NDArray[np.bool_]
    windows: npt.NDArray[np.float64]
    diseased: npt.NDArray[np.bool_] = field(default_factory=lambda: np.zeros((0, 0, 0), bool))


def acquire(scanner: Scanner, people: People, patient: npt.NDArray[np.int64], rng: np.random.Generator) -> Acquisition:
    """Scan the patients `patient` (int [n], rows of `people`) once each."""
    n = patient.size
    grid = Grid(scanner.matrix_px, scanner.spacing_mm)
    build = builds(people, patient, rng)
    if scanner.modality == "CT":
        scene = ct_chest(grid, build, rng)
    elif scanner.modality == "MR":
        scene = mr_head(grid, build, rng, fluid_bright=scanner.fluid_bright)
    else:
        scene = cr_chest(grid, build, rng)
    visibility = column(np.where(rng.random(n) < 0.15, rng.uniform(0.35, 0.65, n), rng.uniform(0.75, 1.0, n)))
    painted, density = paint(scene, people.disease.of(patient), visibility, rng)
    tissue = blur(painted, grid, scanner.blur_mm)
    if scanner.modality == "CT":
        stored = _store_ct(scanner, _ct_noise(scanner, scene, tissue, rng))
    elif scanner.modality == "MR":
        stored = _store_mr(scanner, _mr_noise(scanner, scene, tissue, rng), rng)
    else:
        stored = _store_cr(scanner, _cr_noise(scanner, scene, tissue, rng), rng)
    return replace(stored, diseased=density > DISEASED)


def _white(scene: Scene, rng: np.random.Generator) -> Field:
    return rng.standard_normal(scene.image.shape, dtype=np.float32)


def _ct_noise(scanner: Scanner, scene: Scene, tissue: Field, rng: np.random.Generator) -> Field:
    """Reconstruction noise is correlated: part of it is white and part has a grain of two pixels."""
    grain = smooth_noise(rng, len(tissue), scene.grid, 2.5 * scene.grid.spacing_mm)
    return tissue + scanner.noise * (0.6 * _white(scene, rng) + 0.6 * grain)


def _mr_noise(scanner: Scanner, scene: Scene, tissue: Field, rng: np.random.Generator) -> Field:
    """The coil's slowly varying gain, then the magnitude of a complex signal: Rician noise (Gudbjartsson 1995)."""
    bias = np.exp(0.13 * smooth_noise(rng, len(tissue), scene.grid, 150))
    real = tissue * bias + scanner.noise * _white(scene, rng)
    magnitude: Field = np.hypot(real, scanner.noise * _white(scene, rng))
    return magnitude


def _cr_noise(scanner: Scanner, scene: Scene, tissue: Field, rng: np.random.Generator) -> Field:
    """Quantum noise, stronger where less light arrives, a side marker, and a wire on one image in five."""
    n = len(tissue)
    image = tissue + scanner.noise * (0.6 + np.clip(tissue, 0, 1)) * _white(scene, rng)
    axis = scene.grid.axis_mm
    x, y = axis[None, None, :], axis[None, :, None]
    bend = column(rng.uniform(-0.004, 0.004, n))
    path = column(rng.uniform(-60, 60, n)) + column(rng.uniform(-0.5, 0.5, n)) * y + bend * y**2
    worn = column(rng.random(n) < 0.2) * (y < column(rng.uniform(-40, 120, n)))
    image = image + 0.14 * worn * ramp(1.3 - np.abs(x - path), 2)
    marker_x, marker_y = x - column(rng.uniform(125, 155, n)), y + column(rng.uniform(135, 160, n))
    letter = np.maximum(
        (np.abs(marker_x) < 2.5) * (np.abs(marker_y) < 9), (np.abs(marker_x - 4) < 6) * (np.abs(marker_y - 8) < 2.5)
    )
    return np.asarray(np.maximum(image, 1.15 * letter), dtype=np.float32)


def _quantised(scanner: Scanner, values: Field) -> Stored:
    """Rounded and clipped to bits_stored."""
    low = -(2 ** (scanner.bits_stored - 1)) if scanner.signed else 0
    high = low + 2**scanner.bits_stored - 1
    kind = np.int16 if scanner.signed else (np.uint8 if scanner.bits_stored <= 8 else np.uint16)
    return np.clip(np.rint(values), low, high).astype(kind)


def _store_ct(scanner: Scanner, hounsfield: Field) -> Acquisition:
    n = len(hounsfield)
    pixels = _quantised(scanner, (hounsfield - scanner.intercept) / (scanner.slope or 1.0))
    return Acquisition(pixels, np.zeros(n, dtype=bool), np.tile([-500.0, 1500.0], (n, 1)))


def _store_mr(scanner: Scanner, signal: Field, rng: np.random.Generator) -> Acquisition:
    """The receiver's gain differs between images, so the numbers mean nothing but more and less."""
    full = 2 ** (scanner.bits_stored - int(scanner.signed))
    gain = column(full * rng.uniform(0.25, 0.6, len(signal)) / 1.5)
    pixels = _quantised(scanner, signal * gain)
    bright = np.quantile(pixels, 0.995, axis=(1, 2)) * (scanner.slope or 1.0)
    return Acquisition(pixels, np.zeros(len(signal), dtype=bool), np.stack([bright / 2, bright], axis=1))


def _store_cr(scanner: Scanner, attenuation: Field, rng: np.random.Generator) -> Acquisition:
    """Exposure and latitude differ between images; MONOCHROME1 stores low numbers as white."""
    n = len(attenuation)
    full = 2**scanner.bits_stored - 1
    gain, black = rng.uniform(0.62, 0.8, n), rng.uniform(0.02, 0.12, n)
    inverted = rng.random(n) < scanner.monochrome1
    values = (column(gain) * attenuation + column(black)) * full
    low, high = np.quantile(values, (0.02, 0.995), axis=(1, 2))
    centre = np.where(inverted, full - (low + high) / 2, (low + high) / 2)
    pixels = _quantised(scanner, np.where(column(inverted) > 0, full - values, values))
    return Acquisition(pixels, inverted, np.stack([centre, high - low], axis=1))
