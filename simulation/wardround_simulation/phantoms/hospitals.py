"""What differs between hospitals: scanners, storage, noise, who comes, and how the labels are keyed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from wardround.errors import ConfigError
from wardround.task import Task
from wardround_simulation.phantoms.anatomy import Modality
from wardround_simulation.tasks import FINDINGS, is_of_series

LabelKey = Literal["PatientID", "StudyInstanceUID", "SOPInstanceUID"]
Storage = Literal["implicit", "explicit", "rle", "jpeg-ls"]

NAMES: Final = (
    "northgate", "st-anna", "lakeside", "harbour", "greenfield", "kings-hill", "riverbank", "old-mill", "westbrook",
    "fairview", "stonebridge", "elmwood", "sunnyside", "cathedral", "highmoor", "seaview",
)  # fmt: skip
MAKERS: Final = ("Aurelia Imaging", "BOREAL MEDICAL", "Cassini Healthcare", "Delphin Systems", "Eikon Radiology")
# Signed or unsigned, bits stored, slope, intercept: the ways in which scanners really write Hounsfield units.
CT_STORAGE: Final = ((False, 12, 1.0, -1024.0), (True, 16, 1.0, 0.0), (False, 16, 0.5, -2048.0), (True, 12, 2.0, 0.0))
# (signed, bits stored, slope): MR has no unit, and most scanners write no slope at all.
MR_STORAGE: Final = ((False, 12, None), (False, 16, 2.3712), (True, 16, None), (False, 12, 0.4182))
CR_BITS: Final = (12, 8, 10, 14)
MIXES: Final[tuple[tuple[Modality, ...], ...]] = (("CT", "MR", "CR"), ("CR", "CT"), ("MR", "CR"), ("CT", "MR"))
FIELD_OF_VIEW_MM: Final[dict[Modality, tuple[float, float]]] = {"CT": (335, 370), "MR": (200, 225), "CR": (370, 420)}
LEAST_PREVALENCE: Final = 0.1
SLICES: Final = 6


@dataclass(frozen=True)
class Scanner:
    """One machine and how it stores.

    share: part of the hospital's studies. noise: standard deviation in HU (CT), in relative signal (MR) or in
    relative attenuation (CR). slope: None writes no rescale tags. monochrome1: probability that an image is stored
    inverted. window: whether files carry a VOI window. fluid_bright: T2-weighted or FLAIR, for MR.
    """

    modality: Modality
    share: float
    manufacturer: str
    model: str
    matrix_px: int
    spacing_mm: float
    bits_stored: int
    signed: bool
    slope: float | None
    intercept: float
    monochrome1: float
    noise: float
    blur_mm: float
    window: bool
    storage: Storage
    fluid_bright: bool = True


@dataclass(frozen=True)
class HospitalProfile:
    """One synthetic hospital, and the seed of all that is drawn for it.

    prevalence: one probability a class of FINDINGS, sums to 1. patients: size of the cohort. declared_patients: the
    number it tells the federation, a public round figure not above `patients`. label_key: what labels.csv is keyed by.
    slices: of each patient, as one series; 0: single images of one or two studies. marks: whether what is written says
    where disease is, by segmentations ("mask") or in labels.csv ("points").
    """

    name: str
    seed: int
    patients: int
    declared_patients: int
    prevalence: tuple[float, ...]
    scanners: tuple[Scanner, ...]
    label_key: LabelKey = "PatientID"
    id_format: str = "P{:06d}"
    extension: str = ".dcm"
    slices: int = 0
    marks: Literal["", "mask", "points"] = ""

    @property
    def modalities(self) -> dict[Modality, float]:
        """Modality -> its share of the studies."""
        return {scanner.modality: scanner.share for scanner in self.scanners}


def _scanner(modality: Modality, share: float, index: int, rng: np.random.Generator) -> Scanner:
    maker = MAKERS[(index + ["CT", "MR", "CR"].index(modality)) % len(MAKERS)]
    matrix = int(rng.choice([96, 112, 128, 144]))
    field = rng.uniform(*FIELD_OF_VIEW_MM[modality])
    signed, bits, slope, intercept, inverted = False, 12, None, 0.0, 0.0
    if modality == "CT":
        signed, bits, slope, intercept = CT_STORAGE[index % len(CT_STORAGE)]
        noise = rng.uniform(12, 38)
    elif modality == "MR":
        signed, bits, slope = MR_STORAGE[index % len(MR_STORAGE)]
        noise = rng.uniform(0.012, 0.035)
    else:
        bits = CR_BITS[index % len(CR_BITS)]
        inverted = (0.0, 1.0, 0.3)[index % 3]
        noise = rng.uniform(0.005, 0.016)
    return Scanner(
        modality=modality,
        share=share,
        manufacturer=maker,
        model=f"{maker.split()[0].title()} {modality} {100 * (1 + index % 7) + int(rng.integers(0, 9)) * 10}",
        matrix_px=matrix,
        spacing_mm=round(float(field) / matrix, 4),
        bits_stored=bits,
        signed=signed,
        slope=slope,
        intercept=intercept,
        monochrome1=inverted,
        noise=float(noise),
        blur_mm=float(rng.uniform(0.2, 0.75)) * float(field) / 128,
        window=modality == "CT" or index % 3 != 1,
        storage=("explicit", "implicit", "explicit", "rle", "explicit", "jpeg-ls")[index % 6],
        fluid_bright=index % 3 != 0,
    )


def _profile(index: int, patients: tuple[int, int], seed: int, mix: tuple[Modality, ...]) -> HospitalProfile:
    rng = np.random.default_rng((seed, index))
    low, high = np.log(patients[0]), np.log(patients[1] + 1)
    count = min(int(np.exp(rng.uniform(low, high))), patients[1])
    prevalence = rng.dirichlet(12 * np.array([0.34, 0.24, 0.21, 0.21]))
    prevalence = LEAST_PREVALENCE + (1 - LEAST_PREVALENCE * len(FINDINGS)) * prevalence
    shares = 0.2 + (1 - 0.2 * len(mix)) * rng.dirichlet([3.0] * len(mix))
    suffix = "" if index < len(NAMES) else f"-{1 + index // len(NAMES)}"
    keys: tuple[LabelKey, ...] = ("PatientID", "SOPInstanceUID", "StudyInstanceUID")
    return HospitalProfile(
        name=NAMES[index % len(NAMES)] + suffix,
        seed=int(rng.integers(2**31)),
        patients=count,
        declared_patients=count if count < 20 else count // 10 * 10,
        prevalence=tuple(float(p) for p in prevalence / prevalence.sum()),
        scanners=tuple(_scanner(m, float(s), index, rng) for m, s in zip(mix, shares / shares.sum(), strict=True)),
        label_key=keys[index % len(keys)],
        id_format=("P{:06d}", "{:08d}", "MRN-{:07d}", "{:05d}/1")[index % 4],
        extension=(".dcm", "", ".dcm", ".IMA")[index % 4],
    )


def make_profiles(n: int, *, patients: tuple[int, int] = (60, 220), seed: int = 0) -> list[HospitalProfile]:
    """The first `n` hospitals of the family `seed`, each unlike the others; more of them leaves the first as they are.

    Args:
        n: how many.
        patients: least and greatest size of a cohort; sizes are spread evenly on a logarithmic scale.
        seed: the family.

    Raises:
        ConfigError: n below 1, or an empty or impossible range of patients.
    """
    if n < 1:
        raise ConfigError(f"{n} synthetic hospitals were asked for", allowed="1 or more")
    if not len(FINDINGS) <= patients[0] <= patients[1]:
        raise ConfigError(
            f"synthetic hospitals of {patients[0]} to {patients[1]} patients were asked for",
            allowed=f"at least {len(FINDINGS)} patients, one a class, and the least not above the greatest",
        )
    return [_profile(index, patients, seed, MIXES[index % len(MIXES)]) for index in range(n)]


def for_task(profile: HospitalProfile, task: Task) -> HospitalProfile:
    """The same hospital, writing what a task needs: series of slices (no radiographs), or where disease is in CT."""
    if task.dense:
        rng = np.random.default_rng((profile.seed, 1))
        scanner = _scanner("CT", 1.0, int(rng.integers(0, 1000)), rng)
        if task.labels == "points":
            return replace(profile, marks="points", scanners=(scanner,), label_key="SOPInstanceUID")
        # By patient, its labels.csv is a worklist too: images named by their UIDs would come without their outlines.
        return replace(profile, marks="mask", scanners=(scanner,), label_key="PatientID")
    if not is_of_series(task):
        return profile
    sliced = [scanner for scanner in profile.scanners if scanner.modality != "CR"]
    total = sum(scanner.share for scanner in sliced)
    scanners = tuple(replace(scanner, share=scanner.share / total) for scanner in sliced)
    return replace(profile, slices=SLICES, scanners=scanners, label_key="PatientID")
