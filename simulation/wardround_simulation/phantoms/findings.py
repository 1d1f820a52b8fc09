"""What is wrong with a patient, drawn into the organ of a scene.

A finding belongs to the patient: every image of the patient shows the same disease, at the same place, and some
images show it less well. Sizes, places and contrasts vary widely, so the pixels of one class have no common place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround_simulation.phantoms.anatomy import Scene
from wardround_simulation.phantoms.shapes import Field, column, over, ramp, smooth_noise
from wardround_simulation.tasks import FINDINGS

Ints = npt.NDArray[np.int64]
NODULES = 3
URGENT_SEVERITY = 0.6


@dataclass(frozen=True)
class Disease:
    """The findings of n patients (or of n images, after `of`).

    finding: int [n], an index of FINDINGS. severity: [n] in [0, 1]. spiculated: bool [n]. side: int [n], 0 or 1.
    both: bool [n], on both sides. place: [n, NODULES, 2] in [-1, 1], within a half of the organ.
    count: int [n], nodules. phase: [n], turns shapes so that no two are alike.
    """

    finding: Ints
    severity: npt.NDArray[np.float64]
    spiculated: npt.NDArray[np.bool_]
    side: Ints
    both: npt.NDArray[np.bool_]
    place: npt.NDArray[np.float64]
    count: Ints
    phase: npt.NDArray[np.float64]

    def of(self, index: Ints | npt.NDArray[np.bool_]) -> Disease:
        """The rows `index`, in that order."""
        return Disease(**{name: getattr(self, name)[index] for name in self.__dataclass_fields__})

    def labels(self) -> dict[str, list[str]]:
        """Label column -> one class name a row, as in TASKS."""
        sick = self.finding != FINDINGS.index("normal")
        nodule = self.finding == FINDINGS.index("nodule")
        yes_no = np.array(("no", "yes"))
        return {
            "finding": [FINDINGS[i] for i in self.finding],
            "malignant": yes_no[(nodule & self.spiculated).astype(int)].tolist(),
            "urgent": yes_no[(sick & (self.severity > URGENT_SEVERITY)).astype(int)].tolist(),
        }


def draw_disease(finding: Ints, rng: np.random.Generator) -> Disease:
    """Everything about the patients' disease but its class."""
    n = finding.size
    radius = np.sqrt(rng.uniform(0.0, 0.62, (n, NODULES)))
    angle = rng.uniform(0, 2 * np.pi, (n, NODULES))
    return Disease(
        finding=finding,
        severity=rng.uniform(0, 1, n),
        spiculated=rng.random(n) < 0.5,
        side=rng.integers(0, 2, n),
        both=rng.random(n) < 0.6,
        place=np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=2),
        count=rng.choice([1, 2, 3], n, p=[0.25, 0.3, 0.45]),
        phase=rng.uniform(0, 2 * np.pi, n),
    )


def _within(scene: Scene, side: Ints) -> tuple[Field, Field, Field, Field]:
    """Centre and half axes of the half `side` of the organ of each image, [n, 1, 1] each."""
    halves = scene.halves
    cx = np.where(side[:, None, None] == 0, halves.cx[0], halves.cx[1]).astype(np.float32)
    return cx, halves.cy, halves.a, halves.b


def _nodules(scene: Scene, disease: Disease, rng: np.random.Generator) -> Field:
    """Round masses: smooth and sharp, or with spicules that run out into the tissue around."""
    density = np.zeros_like(scene.image)
    wobble = 0.08 * smooth_noise(rng, len(scene.image), scene.grid, 1.5 * scene.nodule_mm)
    for k in range(NODULES):
        side = np.where(disease.both & (k == 1), 1 - disease.side, disease.side)
        cx, cy, a, b = _within(scene, side)
        x = scene.x - cx - a * (0.8 * column(disease.place[:, k, 0]) + 0.22 * np.sign(cx))
        y = scene.y - cy - b * column(disease.place[:, k, 1])
        radius = scene.nodule_mm * column(0.8 + 0.5 * disease.severity) * (1 - 0.15 * k)
        distance = np.sqrt(x**2 + y**2) / radius * (1 + wobble)
        angle = np.arctan2(y, x) + column(disease.phase)
        fine = (0.5 + 0.5 * np.cos(11 * angle + 2.0 * np.sin(2 * angle + 1))) ** 3
        spikes = fine * (0.6 + 0.4 * np.sin(3 * angle + 1)) + 0.35 * (0.5 + 0.5 * np.cos(5 * angle)) ** 2
        reach = column(disease.spiculated) * (0.80 * spikes - 0.18)
        shown = column(disease.count > k)
        density = np.maximum(density, shown * ramp((1 + reach - distance) * radius, 4))
    return density


def _diffuse(scene: Scene, disease: Disease, rng: np.random.Generator) -> Field:
    """Patchy, grainy disease: consolidation with air in it, or confluent lesions of the white matter."""
    n = len(scene.image)
    cx, cy, a, b = _within(scene, disease.side)
    reach = column(0.85 + 0.75 * disease.severity)
    place = disease.place[:, 0] * 0.6
    distance = np.sqrt(
        ((scene.x - cx) / a - column(place[:, 0])) ** 2 + ((scene.y - cy) / b - column(place[:, 1])) ** 2
    )
    mirrored = np.sqrt(
        ((scene.x + cx) / a + column(place[:, 0])) ** 2 + ((scene.y - cy) / b - column(place[:, 1])) ** 2
    )
    distance = np.where(column(disease.both) > 0, np.minimum(distance, mirrored), distance)
    extent = np.clip(2.2 * (reach - distance + 0.18 * smooth_noise(rng, n, scene.grid, 4 * scene.grain_mm)), 0, 1)
    grain = np.clip(0.55 + 0.75 * smooth_noise(rng, n, scene.grid, scene.grain_mm), 0, 1.4)
    return np.asarray(extent * grain, dtype=np.float32)


def _effusion(scene: Scene, disease: Disease, rng: np.random.Generator) -> Field:
    """A layer of fluid where gravity puts it: behind (CT), below with a meniscus (CR), along the skull (MR)."""
    n = len(scene.image)
    wave = 0.05 * smooth_noise(rng, n, scene.grid, 60)
    density = np.zeros_like(scene.image)
    for other in (False, True):
        side = np.where(other, 1 - disease.side, disease.side)
        cx, cy, a, b = _within(scene, side)
        x = (scene.x - cx) / a * np.sign(cx)
        y = (scene.y - cy) / b
        depth = column(0.40 + 0.60 * disease.severity) * (0.6 if other else 1.0)
        if scene.modality == "MR":
            # A subdural layer: a crescent between the brain's edge and an ellipse pushed towards the middle.
            edge = np.sqrt((scene.x / (2.12 * a)) ** 2 + (scene.y / (1.25 * b)) ** 2)
            crescent = np.cos(np.arctan2(scene.y, scene.x * np.sign(cx)) - 0.8 * np.sin(column(disease.phase)))
            level = (edge - 1 + 0.34 * depth * np.clip(crescent * 1.6 - 0.4, 0, 1) + 0.4 * wave) * a * 2
            level = np.where(scene.x * np.sign(cx) > 0, level, -9)
        elif scene.modality == "CT":
            level = (y - 1 + 0.75 * depth + 0.12 * (1 - x**2) + wave) * b
        else:
            level = (y - 1.05 + 0.72 * depth + 0.25 * x * np.abs(x) + wave) * b
        shown = 1.0 if not other else column(disease.both)
        density = np.maximum(density, shown * ramp(np.asarray(level, dtype=np.float32), 5))
    return density


PAINTERS = {"nodule": _nodules, "diffuse": _diffuse, "effusion": _effusion}


def paint(scene: Scene, disease: Disease, visibility: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """The scene's image with the disease in it, in the scene's unit, and how much disease is where, in [0, 1]; both
    [n, size, size].

    disease: one row an image. visibility: [n, 1, 1] in (0, 1], how well this image shows the finding.
    """
    density = np.zeros_like(scene.image)
    for name, painter in PAINTERS.items():
        rows = np.flatnonzero(disease.finding == FINDINGS.index(name))
        if rows.size:
            density[rows] = painter(_rows(scene, rows), disease.of(rows), rng)
    density *= scene.organ
    shown = density * visibility
    if scene.modality == "CT":
        return over(scene.image, np.minimum(shown, 1), 35), density
    if scene.modality == "MR":
        return over(scene.image, np.minimum(shown, 1), 1.0), density
    return scene.image + 0.42 * shown, density


def _rows(scene: Scene, rows: Ints) -> Scene:
    halves = scene.halves
    return Scene(
        scene.modality,
        scene.grid,
        scene.x[rows],
        scene.y[rows],
        scene.image[rows],
        scene.organ[rows],
        type(halves)((halves.cx[0][rows], halves.cx[1][rows]), halves.cy[rows], halves.a[rows], halves.b[rows]),
        scene.nodule_mm,
        scene.grain_mm,
    )
