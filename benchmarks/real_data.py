"""The public medical data that the tables are measured on, as arrays by hospital. Nothing of it is in this repository.

`python benchmarks/fed_ham.py --data FOLDER` names the folder that holds `ham10000/ham10000_28.npz`,
`heart_disease/processed.*.data` and the others; docs/benchmarks.md says where they come from and under which licences.
"""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
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
LUNG = ("stage I", "above stage I")
AUTISM = ("control", "autism")
FIVE_YEARS = ("alive", "dead")
_FIVE_YEARS_D = 1826.0
_BREAST_REGIONS = ("Northeast", "South", "Midwest", "West")
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


@dataclass(frozen=True)
class Lesions:
    """HAM10000, an image a row.

    images: uint8 [n, 3, S, S]. label, site: names, [n]. lesion: int64 [n]. table: float32 [n, len(SKIN_COLUMNS)], NaN
    where nobody knows; none without the file of 128 px, which has it.
    """

    images: NDArray[np.uint8]
    label: NDArray[np.str_]
    site: NDArray[np.str_]
    lesion: NDArray[np.int64]
    table: NDArray[np.float32] | None


SKIN_PLACES = (
    "back",
    "lower extremity",
    "trunk",
    "upper extremity",
    "abdomen",
    "face",
    "chest",
    "foot",
    "scalp",
    "neck",
)
SKIN_COLUMNS = ("age", "male", *SKIN_PLACES)
# Public guesses, as of hearts. Half are men; a place is one of ten.
SKIN_CENTRE = (50.0, 0.5, *(0.1,) * len(SKIN_PLACES))
SKIN_SPREAD = (17.0, 0.5, *(0.3,) * len(SKIN_PLACES))


def lesions(data: Path, size_px: int) -> Lesions:
    """HAM10000 (Tschandl et al., 2018; CC BY-NC 4.0) with its four real sources; a patient is a lesion.

    Nine lesions are in two sources; the first of these, in the order of the file's names, keeps them. How a diagnosis
    was made (`dx_type`) hints at it, and is not read.
    """
    name, large = f"ham10000_{size_px}", data / "ham10000_128" / "ham10000_128.npz"
    with np.load(data / name.removesuffix("_28") / f"{name}.npz") as file:
        site, names, lesion = file["site"], file["site_names"], file["lesion_id"].astype(np.int64)
        images = (file["images"] if size_px == 28 else np.stack(list(_decoded(file)))).transpose(0, 3, 1, 2)
        label = file["class_names"][file["labels"]]
    table = _referrals(large) if large.is_file() else None  # of the same images in the same order
    first = np.full(lesion.max() + 1, len(names))
    np.minimum.at(first, lesion, site)
    # By hospital, as they are told apart everywhere.
    rows = np.concatenate(
        [np.flatnonzero((site == number) & (first[lesion] == number)) for number in range(len(names))]
    )
    return Lesions(images[rows], label[rows], names[site[rows]], lesion[rows], None if table is None else table[rows])


def _referrals(path: Path) -> NDArray[np.float32]:
    """Age, sex and place of every image: see `Lesions.table`."""
    with np.load(path) as file:
        male = np.select([file["sex"] == "male", file["sex"] == "female"], [1.0, 0.0], np.nan)
        places = np.stack([file["localization"] == place for place in SKIN_PLACES], 1).astype(float)
        places[file["localization"] == "unknown"] = np.nan
        return np.column_stack([file["age"], male, places]).astype(np.float32)


def ham10000(data: Path) -> list[Site]:
    """Lesions at 28 px, by hospital."""
    all_, sites = lesions(data, 28), []
    for name in dict.fromkeys(all_.site.tolist()):
        here = all_.site == name
        x = torch.from_numpy(all_.images[here]).contiguous().float() / 255
        sites.append(Site(name, x, tuple(all_.label[here].tolist()), all_.lesion[here]))
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


def lung(data: Path) -> list[Site]:
    """Gene expression of lung tumours at three laboratories (Parmigiani et al., 2004), of known stage."""
    with np.load(data / "tables" / "lung_expression.npz") as file:
        known = ~np.isnan(file["stage"])
        x, site, names = file["X"][known], file["site"][known], file["site_names"]
        label = np.where(file["stage"][known] > 1, LUNG[1], LUNG[0])
    return by_site(torch.from_numpy(x), label, names[site])


def abide(data: Path) -> list[Site]:
    """FreeSurfer's measures of the brain by site (ABIDE I and II); autism or not."""
    folder = data / "tables"
    with (folder / "abide_participants.csv").open() as file:
        names = {row["subject_id"]: row for row in csv.DictReader(file)}
    with (folder / "abide_anatomy.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["subject_id"] in names]
    x = torch.tensor([[float(value) for name, value in row.items() if name != "subject_id"] for row in rows])
    who = [names[row["subject_id"]] for row in rows]
    return by_site(x, np.array([AUTISM[int(each["asd"])] for each in who]), np.array([each["site"] for each in who]))


def breast(data: Path) -> list[Site]:
    """TCGA-BRCA (Liu et al., 2018) as FLamby prepared it, four regions of the United States: dead within five years or
    alive afterwards. Who was censored before is left out.
    """
    folder = data / "tables"
    with (folder / "tcga_brca_centers.csv").open() as file:
        region = {row["TSS Code"]: row["Region"] for row in csv.DictReader(file)}
    with (folder / "tcga_brca.csv").open() as file:
        rows = list(csv.DictReader(file))
    rows = [row for row in rows if float(row["T"]) > 0 and (float(row["T"]) > _FIVE_YEARS_D or float(row["E"]) > 0)]
    rows = [row for row in rows if region.get(row["pid"].split("-")[1]) in _BREAST_REGIONS]
    columns = [name for name in rows[0] if name not in ("pid", "E", "T")]
    x = torch.tensor([[float(row[name]) for name in columns] for row in rows])
    age = columns.index("age_at_index")
    x[:, age] = (x[:, age] - 58) / 13
    label = np.array([FIVE_YEARS[float(row["T"]) <= _FIVE_YEARS_D] for row in rows])
    return by_site(x, label, np.array([region[row["pid"].split("-")[1]] for row in rows]))


def by_site(x: Tensor, label: NDArray[np.str_], site: NDArray[np.str_]) -> list[Site]:
    """A row a patient."""
    found = []
    for name in np.unique(site):
        here = np.flatnonzero(site == name)
        found.append(Site(str(name), x[torch.from_numpy(here)], tuple(label[here].tolist()), np.arange(len(here))))
    return found


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


@dataclass(frozen=True)
class Radiographs:
    """Of one hospital. images: uint8 [n, 1, S, S]. label: class name of each. patient: int64 [n]."""

    images: NDArray[np.uint8]
    label: tuple[str, ...]
    patient: NDArray[np.int64]


def chests(data: Path) -> dict[str, Radiographs]:
    """Pneumonia at 128 px: Guangzhou's children (Kermany et al., 2018), the published test part by itself, and NIH's
    adults (Wang et al., 2017).
    """
    with np.load(data / "cxr_pneumonia" / "cxr_pneumonia_128.npz") as file:
        site, test = file["site"], file["split"] == list(file["split_names"]).index("test")
        images, labels = np.stack(list(_decoded(file)))[:, None], file["labels"]
        patient = np.unique(file["group"], return_inverse=True)[1].astype(np.int64)
    parts = {"children": (site == 0) & ~test, "children, test": (site == 0) & test, "adults": site == 1}
    return {name: Radiographs(images[here], _named(CHEST, labels[here]), patient[here]) for name, here in parts.items()}


@dataclass(frozen=True)
class Outlined:
    """One hospital's images with outlines.

    images: uint8 [n, channels, S, S]. inside: bool [n, S, S]. known: likewise, what is judged and learned from.
    patient: int64 [n], 0 .. patients - 1.
    """

    name: str
    images: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    known: NDArray[np.bool_]
    patient: NDArray[np.int64]

    def some(self, chosen: NDArray[np.bool_]) -> Outlined:
        """The chosen images, bool [n], their patients numbered anew."""
        patient = np.unique(self.patient[chosen], return_inverse=True)[1].astype(np.int64)
        return Outlined(self.name, self.images[chosen], self.inside[chosen], self.known[chosen], patient)


def polyps(data: Path, most_frames: int) -> list[Outlined]:
    """Kvasir-SEG (Jha et al., 2020) and CVC-ClinicDB (Bernal et al., 2015): colonoscopy, 160 px; a patient is a video
    sequence of ClinicDB, of so many frames at most, evenly spaced, or one image of Kvasir-SEG, which names nobody.
    """
    with np.load(data / "polyps" / "polyps_160.npz") as file:
        images = np.stack([each.transpose(2, 0, 1) for each in _decoded(file)])
        inside = np.unpackbits(file["mask_bits"], axis=1).reshape(-1, 160, 160).astype(bool)
        site, patient = file["site"], file["group"].astype(np.int64)
    kept, known = _spaced(patient, np.arange(len(patient)), most_frames), np.ones_like(inside)
    both, names = Outlined("", images, inside, known, patient), ("kvasir", "clinicdb")
    return [replace(both.some(kept & (site == number)), name=name) for number, name in enumerate(names)]


def glioma(data: Path, most_slices: int) -> list[Outlined]:
    """TCGA-LGG (Buda et al., 2019): MR of lower-grade glioma at four institutions, 128 px; the channels are the
    sequences before contrast, FLAIR and after contrast. Of each patient so many slices at most, evenly spaced.
    """
    with np.load(data / "lgg_mri" / "lgg_mri_128.npz") as file:
        patient, site, names = file["patient"].astype(np.int64), file["site"], file["site_names"]
        inside = np.unpackbits(file["mask_bits"], axis=1).reshape(-1, 128, 128).astype(bool)
        images = np.stack([each.reshape(128, 3, 128).transpose(1, 0, 2) for each in _decoded(file)])
        slices = file["slice"]
    kept = _spaced(patient, slices, most_slices)
    together = Outlined("", images, inside, np.ones_like(inside), patient)
    found = [(str(name)[:2].lower(), kept & (site == number)) for number, name in enumerate(names)]
    return [replace(together.some(chosen), name=name) for name, chosen in found if name != "ez"]  # one patient


def vessels(data: Path, size_px: int) -> list[Outlined]:
    """DRIVE (Staal et al., 2004), STARE (Hoover et al., 2000) and CHASE_DB1 (Fraz et al., 2012): vessels of the
    retina by the first annotator, within the field of view; a patient of CHASE_DB1 has two eyes.
    """
    with np.load(data / "fundus_vessels" / "fundus_vessels_512.npz") as file:
        every, small = 512 // size_px, (size_px, size_px)
        images = np.stack(
            [np.asarray(Image.fromarray(each).resize(small, Image.Resampling.BICUBIC)) for each in _decoded(file)]
        ).transpose(0, 3, 1, 2)
        shape = (-1, size_px, every, size_px, every)
        inside, known = (file[key].reshape(shape).mean((2, 4)) >= 0.5 for key in ("vessel", "fov"))
        together, site = Outlined("", images, inside, known, file["patient"].astype(np.int64)), file["site"]
    return [
        replace(together.some(site == number), name=name) for number, name in enumerate(("drive", "stare", "chase"))
    ]


def _spaced(patient: NDArray[np.int64], place: NDArray[Any], most: int) -> NDArray[np.bool_]:
    """Which images stay, bool [n]: of each patient so many at most, evenly spaced by their place."""
    kept = np.zeros(len(patient), bool)
    for each in np.unique(patient):
        own = np.flatnonzero(patient == each)
        own = own[np.argsort(place[own])]
        kept[own[np.unique(np.linspace(0, len(own) - 1, most).round().astype(int))]] = True
    return kept


def _decoded(file: Mapping[str, NDArray[Any]]) -> Iterator[NDArray[np.uint8]]:
    """The JPEGs of a file that holds them end to end."""
    data, offsets = file["jpeg"], file["offsets"]
    for start, end in itertools.pairwise(offsets.tolist()):
        yield np.asarray(Image.open(io.BytesIO(data[start:end].tobytes())))


def _named(names: Sequence[str] | NDArray[np.str_], labels: NDArray[np.uint8]) -> tuple[str, ...]:
    return tuple(str(names[label]) for label in labels)


def _grey(images: NDArray[np.uint8]) -> Tensor:
    """[n, h, w] -> float32 [n, 1, h, w] in [0, 1]."""
    return torch.from_numpy(images).unsqueeze(1).float() / 255


def _colour(images: NDArray[np.uint8]) -> Tensor:
    """[n, h, w, 3] -> float32 [n, 3, h, w] in [0, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().float() / 255
