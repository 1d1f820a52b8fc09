"""What a healthy patient looks like: axial CT of the chest, axial MR of the head, and a chest radiograph (CR).

Each look takes the patients' builds and returns a `Scene`: the picture in the modality's own unit, the organ in
which findings may lie, and the frame of its two halves (lungs or hemispheres) that findings are placed in.
These are phantoms: simple shapes with the right tissue values in the right order, not a model of the body.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wardround_simulation.phantoms.shapes import Field, Grid, ellipse, ellipse_depth, over, ramp, smooth_noise

Modality = Literal["CT", "MR", "CR"]


@dataclass(frozen=True)
class Build:
    """How n patients are made and lie, each [n, 1, 1]: 1 is average for a size, 0 for the rest but `age` in [0, 1].

    level: the height of the slice, -1 to 1 (on a radiograph: how deeply the patient has breathed in).
    """

    size: Field
    width: Field
    heart: Field
    fat: Field
    age: Field
    tilt_rad: Field
    shift_x_mm: Field
    shift_y_mm: Field
    level: Field

    @property
    def n(self) -> int:
        """How many images."""
        return int(self.size.shape[0])


@dataclass(frozen=True)
class Halves:
    """Left and right half of the organ, as ellipses in the patient's frame, in millimetres, each [n, 1, 1]."""

    cx: tuple[Field, Field]
    cy: Field
    a: Field
    b: Field


@dataclass(frozen=True)
class Scene:
    """A rendered anatomy.

    image: [n, size, size] in HU (CT), relative signal (MR) or relative attenuation (CR).
    organ: [n, size, size] in [0, 1], where findings may show. x, y: the patient's frame in mm.
    nodule_mm: the radius of a middling nodule in this organ. grain_mm: the grain of diffuse disease.
    """

    modality: Modality
    grid: Grid
    x: Field
    y: Field
    image: Field
    organ: Field
    halves: Halves
    nodule_mm: float
    grain_mm: float


def ct_chest(grid: Grid, build: Build, rng: np.random.Generator) -> Scene:
    """Axial chest CT in Hounsfield units, seen from the feet (the heart lies to the right of the picture)."""
    x, y = grid.rotated(build.tilt_rad, build.shift_x_mm, build.shift_y_mm)
    a = 158 * build.size * build.width
    b = 108 * build.size / build.width
    body = ellipse_depth(x, y, 0, 0, a, b)
    image = np.full_like(x, -1000)
    table = ramp(3 - np.abs(y - 14 - b + x**2 / 2600), 3)
    image = over(image, table * (np.abs(x) < 170), -350)
    image = over(image, ramp(body), -95 + 12 * smooth_noise(rng, build.n, grid, 20))
    image = over(image, ramp(body - 9 - 9 * build.fat), 48 + 14 * smooth_noise(rng, build.n, grid, 9))

    shrink = 1 - 0.13 * np.abs(build.level)
    half_a, half_b = 0.40 * a * shrink, 0.70 * b * shrink
    halves = Halves((-0.45 * a, 0.45 * a), np.zeros_like(a) - 2, half_a, half_b)
    lungs = np.maximum(*(ellipse(x, y, cx, halves.cy, half_a, half_b) for cx in halves.cx))

    # Ribs: cut by the slice at an angle, so bright arcs around the lungs.
    angle = np.arctan2(y / b, x / a)
    rib = ramp(np.cos(angle * 11 + 6 * build.level + 2 * build.age) * 8 - 1, 3)
    wall = np.maximum(*(ramp(5 - np.abs(ellipse_depth(x, y, cx, halves.cy, half_a, half_b) + 8)) for cx in halves.cx))
    image = over(image, rib * wall * (np.abs(x) > 0.3 * a), 420)

    hilum = np.exp(-((np.abs(x) - 0.16 * a) ** 2 + (y + 2) ** 2) / (0.30 * a) ** 2)
    vessel = np.clip(smooth_noise(rng, build.n, grid, 11) - 1.25, 0, 1) * (0.25 + 0.75 * hilum)
    air = -862 + 45 * build.age + 0.45 * y + 28 * smooth_noise(rng, build.n, grid, 16) + 620 * vessel
    image = over(image, lungs, air)

    middle = np.maximum(
        ellipse(x, y, 0, -0.12 * b, 0.17 * a, 0.55 * b),
        ellipse(x, y, 0.13 * a, -0.2 * b, 0.31 * a * build.heart * (1 - 0.3 * build.level), 0.38 * b * build.heart),
    )
    image = over(image, middle, 52 + 12 * smooth_noise(rng, build.n, grid, 14))
    aorta = ellipse(x, y, 0.13 * a, 0.38 * b, 11 + 3 * build.age, 11 + 3 * build.age)
    image = over(image, aorta, 75)
    spine_y = 0.60 * b
    bone = ellipse_depth(x, y, 0, spine_y, 19 * build.size, 15 * build.size)
    image = over(image, ellipse(x, y, 0, spine_y, 27 * build.size, 22 * build.size), 60)
    image = over(image, ramp(bone), 480)
    image = over(image, ramp(bone - 4), 190 - 90 * build.age)
    image = over(image, ellipse(x, y, 0, spine_y + 22 * build.size, 9 * build.size, 8 * build.size), 25)
    image = over(image, ellipse(x, y, 0, -0.86 * b, 17 * build.size, 5 * build.size), 260)

    organ = lungs * (1 - middle) * (1 - aorta) * (1 - ramp(bone + 7))
    return Scene("CT", grid, x, y, image, organ, halves, nodule_mm=21, grain_mm=15)


def mr_head(grid: Grid, build: Build, rng: np.random.Generator, *, fluid_bright: bool = True) -> Scene:
    """Axial MR of the head in relative signal; `fluid_bright`: T2-weighted, otherwise FLAIR (fluid suppressed)."""
    x, y = grid.rotated(build.tilt_rad, build.shift_x_mm, build.shift_y_mm)
    fluid, grey, white, fat = (1.0, 0.56, 0.40, 0.72) if fluid_bright else (0.13, 0.52, 0.40, 0.62)
    round_ = build.size * (1 - 0.10 * build.level**2)
    a, b = 74 * round_ * build.width, 92 * round_ / build.width
    head = ellipse_depth(x, y, 0, 0, a, b)
    image = ramp(head, 2) * 0.06
    image = over(image, ramp(head, 2) * (1 - ramp(head - 4 - build.fat, 2)), fat)
    brain_a, brain_b = a - 13, b - 13
    fold = smooth_noise(rng, build.n, grid, 11)
    inside = ellipse_depth(x, y, 0, 0, brain_a, brain_b)
    image = over(image, ramp(inside + 3, 2), fluid)
    brain = ramp(inside - 1.2 - 1.5 * build.age + 1.3 * fold, 2.5)
    image = over(image, brain, grey + 0.02 * smooth_noise(rng, build.n, grid, 14))
    sulcus = ramp(0.25 + 0.5 * build.age - 2.5 * np.abs(fold - 0.3), 1) * ramp(13 - inside, 6)
    image = over(image, brain * sulcus, 0.45 * fluid + 0.55 * grey)
    deep = ramp(inside - 9 - 3.5 * fold, 3)
    image = over(image, deep, white + 0.02 * smooth_noise(rng, build.n, grid, 20))
    nuclei = np.maximum(*(ellipse(x, y, s * 22 * round_, 6, 9 * round_, 15 * round_) for s in (-1, 1)))
    image = over(image, deep * nuclei, 0.85 * grey + 0.15 * white)
    falx = ramp(1.2 - np.abs(x), 1.5) * (np.abs(y) > 0.38 * brain_b) * ramp(inside, 2)
    image = over(image, falx, 0.5 * (fluid + grey))

    # The lateral ventricles: two crescents, back to back, wider with age.
    wide = 3.6 + 3.6 * build.age
    long = 31 - 7 * np.abs(build.level)
    bowed = np.abs(x) - 5 - wide - 0.011 * (y + 2) ** 2
    ventricles = ramp((1 - np.sqrt((bowed / wide) ** 2 + ((y + 4 * build.level) / long) ** 2)) * wide, 2)
    ventricles *= ramp(inside - 12)
    image = over(image, ventricles, fluid)

    halves = Halves((-0.47 * brain_a, 0.47 * brain_a), np.zeros_like(a), 0.42 * brain_a, 0.80 * brain_b)
    organ = ramp(inside, 2) * (1 - ventricles)
    return Scene("MR", grid, x, y, image, organ, halves, nodule_mm=13, grain_mm=10)


def cr_chest(grid: Grid, build: Build, rng: np.random.Generator) -> Scene:
    """A frontal chest radiograph as relative attenuation: air 0, lungs about 0.3, bone and abdomen about 1."""
    x, y = grid.rotated(build.tilt_rad, build.shift_x_mm, build.shift_y_mm)
    far = np.abs(x)
    a, b = 158 * build.size * build.width, 170 * build.size
    shoulder = -0.90 * b + 0.0028 * np.maximum(far - 0.35 * a, 0) ** 2
    trunk = ramp(1.12 * a + 0.12 * y - far, 14) * ramp(y - shoulder, 22)
    neck = ramp(0.36 * a - far, 14) * (y < 0)
    image = np.maximum(trunk, 0.85 * neck) * (0.74 + 0.05 * build.fat + 0.06 * smooth_noise(rng, build.n, grid, 60))

    breath = 14 * build.level
    dome_y = 0.58 * b + breath - 7 * np.sign(-x)
    dome = dome_y + 0.0042 * (far - 0.45 * a) ** 2
    half_a, half_b = 0.40 * a, 0.86 * b
    halves = Halves((-0.46 * a, 0.46 * a), -0.05 * b + 0.4 * breath, half_a, 0.72 * half_b)
    narrow = 1 - 0.30 * ramp(-0.2 * b - y, 140)
    lungs = np.maximum(*(ellipse(x, y, cx * narrow, 0.02 * b, half_a * narrow, half_b, 7) for cx in halves.cx))
    lungs *= ramp(dome - y, 5) * ramp(y - shoulder - 14, 10)
    image -= 0.47 * lungs
    image += 0.16 * ramp(y - dome, 6) * trunk

    hilum = np.exp(-((far - 0.24 * a) ** 2 + (y + 0.02 * b) ** 2) / (0.26 * a) ** 2)
    vessel = np.clip(smooth_noise(rng, build.n, grid, 15) - 0.6, 0, 1.5)
    image += lungs * (0.03 + 0.11 * hilum) * vessel + 0.07 * hilum
    heart = ellipse(x, y, 0.17 * a, 0.30 * b, 0.40 * a * build.heart, 0.34 * b * build.heart, 10)
    image += 0.30 * np.maximum(heart * ramp(dome + 8 - y, 12), ramp(0.20 * a - far, 10) * (0.9 - 0.001 * y))
    arch = ellipse(x, y, 0.16 * a, -0.30 * b, 15 + 5 * build.age, 17 + 5 * build.age, 6)
    image += 0.12 * arch
    vertebra = 0.75 + 0.25 * np.cos(2 * np.pi * y / (23 * build.size))
    image += 0.10 * ramp(15 * build.size - far, 6) * vertebra

    cage = np.maximum(ellipse(x, y, 0, 0.05 * b, 0.95 * a, 0.98 * b, 8), 0)
    pitch = 27 * build.size
    back = np.cos(2 * np.pi * (y - 0.0035 * (far - 0.2 * a) ** 2 - 0.1 * far) / pitch + 2 * build.level)
    front = np.cos(2 * np.pi * (y + 0.55 * far) / (1.25 * pitch) + 3 * build.age)
    ribs = 0.075 * ramp(back * 6 - 1.5, 5) + 0.035 * ramp(front * 6 - 2, 6) * (far > 0.35 * a)
    image += ribs * cage * (far > 0.12 * a)
    clavicle = ramp(5.5 - np.abs(y + 0.72 * b + 0.22 * (far - 0.1 * a)), 4) * (far > 0.1 * a) * (far < 0.95 * a)
    image += 0.13 * clavicle

    organ = lungs * (1 - 0.65 * heart)
    return Scene("CR", grid, x, y, image, organ, halves, nodule_mm=26, grain_mm=19)


Look = Callable[[Grid, Build, np.random.Generator], Scene]
