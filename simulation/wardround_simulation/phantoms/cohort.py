"""Who comes to a hospital, with which disease, and which images are made of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from wardround_simulation.phantoms.anatomy import Build
from wardround_simulation.phantoms.findings import Disease, draw_disease
from wardround_simulation.phantoms.hospitals import HospitalProfile
from wardround_simulation.phantoms.shapes import column

Ints = npt.NDArray[np.int64]
IMAGES_A_PATIENT = (0.25, 0.25, 0.18, 0.12, 0.08, 0.06, 0.03, 0.03)
SECOND_STUDY = 0.3


@dataclass(frozen=True)
class People:
    """The patients of a hospital. disease: a row a patient; body: float [patients, 6], standard normal traits.

    age_years: int [patients]; female: bool [patients].
    """

    disease: Disease
    body: npt.NDArray[np.float64]
    age_years: Ints
    female: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """Which images are made: int [images] each. patient: row of People; study: 0 or 1; number: within the study."""

    patient: Ints
    study: Ints
    number: Ints
    scanner: Ints

    @property
    def images(self) -> int:
        """How many images."""
        return int(self.patient.size)


def quotas(prevalence: tuple[float, ...], patients: int) -> Ints:
    """Patients a class, int [classes]: the prevalence as whole people, nobody's class empty, the sum right."""
    share = np.asarray(prevalence) * patients
    counts: Ints = np.maximum(np.floor(share).astype(np.int64), 1)
    while counts.sum() != patients:
        if counts.sum() < patients:
            counts[np.argmax(share - counts)] += 1
        else:
            counts[np.argmax(counts)] -= 1
    return counts


def draw_people(profile: HospitalProfile, rng: np.random.Generator) -> People:
    """The patients of `profile`, in random order."""
    counts = quotas(profile.prevalence, profile.patients)
    finding = rng.permutation(np.repeat(np.arange(counts.size), counts))
    age = np.clip(rng.normal(60, 16, profile.patients), 19, 95).astype(np.int64)
    return People(
        draw_disease(finding, rng), rng.standard_normal((profile.patients, 6)), age, rng.random(profile.patients) < 0.5
    )


def draw_plan(profile: HospitalProfile, rng: np.random.Generator) -> Plan:
    """One to eight images a patient, in one or two studies; the second study may be on another scanner."""
    n = profile.patients
    images = rng.choice(np.arange(1, 9), n, p=IMAGES_A_PATIENT)
    if profile.slices:
        images = np.full(n, profile.slices)
    shares = [scanner.share for scanner in profile.scanners]
    machines = rng.choice(len(shares), (n, 2), p=shares)
    second = (rng.random(n) < SECOND_STUDY) & (images > 1) & (profile.slices == 0)
    split = np.where(second, (images + 1) // 2, images)
    patient = np.repeat(np.arange(n), images)
    position = np.arange(patient.size) - np.repeat(np.cumsum(images) - images, images)
    study = (position >= split[patient]).astype(np.int64)
    return Plan(patient, study, position - study * split[patient], machines[patient, study])


def builds(people: People, patient: Ints, rng: np.random.Generator) -> Build:
    """How the patients of n images are made and lie: the same body, another slice, and never quite the same place."""
    body = np.clip(people.body[patient], -2.2, 2.2)
    age = (people.age_years[patient] - 19) / 76
    jitter = rng.standard_normal((4, patient.size))
    return Build(
        size=column(1 + 0.045 * body[:, 0]),
        width=column(1 + 0.035 * body[:, 1]),
        heart=column(1 + 0.10 * body[:, 2] + 0.1 * age),
        fat=column(np.clip(0.8 + 0.6 * body[:, 3], 0, 2)),
        age=column(age),
        tilt_rad=column(0.04 * body[:, 4] + 0.02 * jitter[0]),
        shift_x_mm=column(5.0 * jitter[1]),
        shift_y_mm=column(4.0 * body[:, 5] + 4.0 * jitter[2]),
        level=column(np.clip(0.5 * jitter[3], -1, 1)),
    )
