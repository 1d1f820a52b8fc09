"""The public medical data that the tables are measured on, as arrays by hospital. Nothing of it is in this repository.

`python benchmarks/fed_ham.py --data FOLDER` names the folder that holds `ham10000/ham10000_28.npz`,
`heart_disease/processed.*.data` and the others; docs/benchmarks.md says where they come from and under which licences.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wardround.errors import DataError

DATA = "WARDROUND_DATA"
"""The environment variable that names the folder, where --data does not."""
HEART_FEATURES = ("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak")
"""The first ten of thirteen columns: all that the four hospitals recorded."""
# A usual value and how far values lie apart, from textbooks: not from these patients.
HEART_CENTRE = (55.0, 0.5, 2.5, 130.0, 240.0, 0.15, 0.5, 140.0, 0.3, 1.0)
HEART_SPREAD = (10.0, 0.5, 1.0, 20.0, 50.0, 0.35, 0.7, 25.0, 0.5, 1.0)
# Nobody's blood pressure, cholesterol or pulse is 0: a zero there means that it is missing, and so does "?".
_NEVER_ZERO = ("trestbps", "chol", "thalach")
CHEST = ("no pneumonia", "pneumonia")
_HEART_HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")


@dataclass(frozen=True)
class Site:
    """One hospital's data.

    x: float32 [n, channels, size, size] in [0, 1], or [n, features]. label: class name of each. patient: int64 [n].
    """

    name: str
    x: Tensor
    label: tuple[str, ...]
    patient: NDArray[np.int64]


def folder(option: Path | None) -> Path:
    """Where the data lie. Raises: DataError, when nobody said so or they are not there."""
    named = option or (Path(os.environ[DATA]) if DATA in os.environ else None)
    if named is None or not named.is_dir():
        raise DataError(
            f"the data are not at {named}" if named else "nobody said where the data are",
            do=f"give --data FOLDER, or set {DATA}",
        )
    return named


def ham10000(data: Path) -> list[Site]:
    """HAM10000 (Tschandl et al., 2018; CC BY-NC 4.0) by its four real sources; a patient is a lesion.

    Nine lesions are in two sources; the first of these, in the order of the file's names, keeps them.
    """
    with np.load(data / "ham10000" / "ham10000_28.npz") as file:
        images, labels, site = file["images"], file["labels"], file["site"]
        lesion, classes, names = file["lesion_id"].astype(np.int64), file["class_names"], file["site_names"]
    first = np.full(lesion.max() + 1, len(names))
    np.minimum.at(first, lesion, site)
    sites = []
    for number, name in enumerate(names):
        rows = np.flatnonzero((site == number) & (first[lesion] == number))
        sites.append(Site(str(name), _colour(images[rows]), _named(classes, labels[rows]), lesion[rows]))
    return sites


def heart(data: Path) -> list[Site]:
    """UCI Heart Disease (Janosi et al., 1988; CC BY 4.0): four hospitals, a row a patient.

    Missing values take the public usual value. Some copies of these files have 0 for what is missing: in blood
    pressure, cholesterol and pulse it is seen as missing, in other columns it cannot be told from a true 0. Labels:
    "healthy" and "disease" (num above 0).
    """
    sites = []
    for name in _HEART_HOSPITALS:
        text = (data / "heart_disease" / f"processed.{name}.data").read_text()
        rows = [line.strip().split(",") for line in text.splitlines() if line.strip()]
        table = [
            [
                usual if cell == "?" or (feature in _NEVER_ZERO and float(cell) == 0) else float(cell)
                for cell, feature, usual in zip(row, HEART_FEATURES, HEART_CENTRE, strict=False)
            ]
            for row in rows
        ]
        label = tuple("disease" if float(row[-1]) > 0 else "healthy" for row in rows)
        sites.append(Site(name, torch.tensor(table), label, np.arange(len(rows))))
    return sites


def mednist(data: Path) -> Site:
    """MedNIST (B. J. Erickson, Mayo Clinic; CC BY-SA 4.0): six body parts and modalities, an image a patient."""
    with np.load(data / "mednist" / "mednist_600perclass_64.npz") as file:
        names, labels = file["class_names"], file["labels"]
        return Site("mednist", _grey(file["images"]), _named(names, labels), np.arange(len(labels)))


def bccd(data: Path) -> Site:
    """BCCD (MIT): three kinds of blood cells; a patient is a smear.

    A smear shows cells of several kinds. It is kept for one of those it shows, by its number, so that a patient has one
    class as everywhere else.
    """
    with np.load(data / "bccd" / "bccd_cells_28.npz") as file:
        names, labels, smear = file["class_names"], file["labels"], file["image_num"].astype(np.int64)
        shown = {number: np.unique(labels[smear == number]) for number in np.unique(smear).tolist()}
        kept = np.array([shown[number][number % len(shown[number])] for number in smear.tolist()]) == labels
        return Site("bccd", _colour(file["images"][kept]), _named(names, labels[kept]), smear[kept])


def pneumonia(data: Path) -> tuple[Site, Site]:
    """PneumoniaMNIST (Kermany et al., 2018; CC BY 4.0): children's chests; the published training and test parts."""
    with np.load(data / "pneumoniamnist" / "pneumoniamnist.npz") as file:
        parts = {part: (_grey(file[f"{part}_images"]), file[f"{part}_labels"][:, 0]) for part in ("train", "test")}
    sites = [Site(f"children-{part}", x, _named(CHEST, y), np.arange(len(y))) for part, (x, y) in parts.items()]
    return sites[0], sites[1]


def nih(data: Path) -> Site:
    """NIH ChestX-ray8 (Wang et al., 2017), 1,000 images of adults with pneumonia or without a finding."""
    with np.load(data / "nih_cxr_pneumonia" / "nih_cxr_64.npz") as file:
        label, patient = _named(CHEST, file["labels"]), file["patient_id"].astype(np.int64)
        return Site("adults", _grey(file["images"]), label, patient)


def _named(names: Sequence[str] | NDArray[np.str_], labels: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(str(names[label]) for label in labels)


def _grey(images: NDArray[np.uint8]) -> Tensor:
    """[n, h, w] -> float32 [n, 1, h, w] in [0, 1]."""
    return torch.from_numpy(images).unsqueeze(1).float() / 255


def _colour(images: NDArray[np.uint8]) -> Tensor:
    """[n, h, w, 3] -> float32 [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
