"""The tasks that experience is made of: public data sets with some of their hospitals, classes or patients.

Skin, hearts, brains, breasts (twice), lungs, gliomas, pancreatitis and pregnancies lie at real hospitals. Body parts,
blood cells and children's chests come from one place each and are dealt to hospitals by patient: simulated, and said
so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console

import clinical_tables
import fed_tables
import real_data
from cross_modality import brought, part
from encoded import encoded
from hospitals import examples_of
from real_data import HEART_CENTRE, HEART_SPREAD, Site
from wardround.config import Federation
from wardround.models import Model, build_model
from wardround.models.encoder import BuiltinEncoder
from wardround.models.head import EncoderHead
from wardround.task import Task
from wardround_client.cohort.examples import Examples

SIZE_PX = 28
FEATURES = (8, 16, 32, 64)
LEAST = 6  # patients of a class at the new hospital: some have to be judged


@dataclass(frozen=True)
class Known:
    """A task. source: the data set. sites: hospitals that learn, encoded; newcomer: the one that does not.

    features: sizes of the embedding that the encoder can give, none of a table. choice: of `ModelChoice`, what says
    which encoder.
    """

    source: str
    name: str
    task: Task
    sites: tuple[Site, ...]
    newcomer: Site
    features: tuple[int, ...] = ()
    choice: Mapping[str, Any] = field(default_factory=dict)

    def cohorts(self, features: int) -> dict[str, Examples]:
        """By hospital, with so many features; 0 for all."""
        return {site.name: self._examples(site, features) for site in self.sites}

    def new(self, features: int) -> Examples:
        """Of the hospital that took no part."""
        return self._examples(self.newcomer, features)

    @property
    def balance(self) -> tuple[float, ...]:
        """Shares of the classes at the hospitals that learn: a count of images of public data."""
        labels = [label for site in self.sites for label in site.label]
        return tuple(labels.count(each) / len(labels) for each in self.task.classes)

    def model(self, federation: Federation) -> Model:
        """Of an agreement, without what a method learns beside it."""
        if not self.features:
            return build_model(federation)
        encoder = BuiltinEncoder.of(SIZE_PX, 3, federation.model.features)
        return EncoderHead.of(encoder, len(federation.task.classes), federation.model.embedding)

    def _examples(self, site: Site, features: int) -> Examples:
        # The first principal components are what an encoder of fewer features gives.
        z = site.x[:, :features] if features else site.x
        kept = np.isin(site.label, self.task.classes)
        return examples_of(z, site.label, site.patient, self.task.classes, kept)


def every(data: Path, cache: Path, console: Console) -> list[Known]:
    """All of them, images encoded."""
    return [*_skin(data, cache, console), *_dealt_out(data, cache, console), *_tables(data)]


def some(site: Site, most: int, seed: int = 0) -> Site:
    """So many of its patients, at most."""
    patients = np.random.default_rng(seed).permutation(np.unique(site.patient))[:most]
    return _rows(site, np.isin(site.patient, patients))


def _rows(site: Site, chosen: NDArray[np.bool_], name: str = "") -> Site:
    rows = np.flatnonzero(chosen)
    return Site(
        name or site.name, site.x[torch.from_numpy(rows)], tuple(site.label[row] for row in rows), site.patient[rows]
    )


def _image_task(classes: Sequence[str]) -> Task:
    return Task(label_column="class", classes=tuple(sorted(classes)), image_size_px=SIZE_PX, channels=3)


def _images(source: str, name: str, sites: Sequence[Site], newcomer: Site, classes: Sequence[str], most: int) -> Known:
    kept = [_rows(site, np.isin(site.label, classes)) for site in sites]
    new = _rows(newcomer, np.isin(newcomer.label, classes))
    return Known(source, name, _image_task(classes), tuple(some(each, most) for each in kept), new, FEATURES)


def _encoding(cache: Path, console: Console) -> Callable[[Site], Site]:
    encoder = BuiltinEncoder.of(SIZE_PX, 3, max(FEATURES))
    return lambda site: Site(site.name, encoded(encoder, brought(site.x), cache, console), site.label, site.patient)


def _skin(data: Path, cache: Path, console: Console) -> Iterator[Known]:
    """HAM10000 by its four sources; classes that the new hospital hardly has are left out."""
    sites = {site.name: _encoding(cache, console)(site) for site in real_data.ham10000(data)}
    plans = (
        ("seven classes", ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), "rosendahl", 500),
        ("seven classes", ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"), "vidir_modern", 250),
        ("melanoma", ("mel", "nv"), "rosendahl", 200),
        ("melanoma", ("mel", "nv"), "vidir_molemax", 80),
        ("three classes", ("bkl", "mel", "nv"), "vidir_modern", 150),
        ("keratosis", ("bcc", "bkl"), "vidir_modern", 100),
    )
    for what, classes, new, most in plans:
        kept = [each for each in classes if _patients(sites[new], each) >= LEAST]
        learn = [site for name, site in sites.items() if name != new]
        yield _images("skin", f"skin, {what}, {new} new, {most}", learn, sites[new], kept, most)


def _patients(site: Site, label: str) -> int:
    return len(np.unique(site.patient[np.array(site.label) == label]))


def _dealt(site: Site, hospitals: int, seed: int = 0) -> list[Site]:
    """Its patients, dealt to so many hospitals of unequal size: the first has twice as many as the last."""
    patients = np.random.default_rng(seed).permutation(np.unique(site.patient))
    weights = np.linspace(2, 1, hospitals).cumsum()
    ends = (weights / weights[-1] * len(patients)).astype(int)
    return [
        _rows(site, np.isin(site.patient, own), f"{site.name}-{number}")
        for number, own in enumerate(np.split(patients, ends[:-1]))
    ]


def _dealt_out(data: Path, cache: Path, console: Console) -> Iterator[Known]:
    encode = _encoding(cache, console)
    body, blood, adults = encode(real_data.mednist(data)), encode(real_data.bccd(data)), encode(real_data.nih(data))
    children, test = (encode(site) for site in real_data.pneumonia(data))
    six = tuple(sorted(set(body.label)))
    for hospitals, most, classes in ((5, 150, six), (3, 40, six), (9, 60, six)):
        *learn, new = _dealt(body, hospitals + 1, seed=hospitals)
        yield _images("body-parts", f"body parts, {hospitals} hospitals of {most}", learn, new, classes, most)
    tomography = ("AbdomenCT", "ChestCT", "HeadCT")
    *learn, new = _dealt(part(body, "ct", tomography), 4)
    yield _images("body-parts", "tomography, 3 hospitals of 60", learn, new, tomography, 60)
    for hospitals, most in ((2, 100), (4, 40)):
        *learn, new = _dealt(blood, hospitals + 1, seed=hospitals)
        yield _images("blood", f"blood, {hospitals} hospitals of {most}", learn, new, tuple(set(blood.label)), most)
    for hospitals, most, new in ((4, 400, test), (4, 80, adults), (8, 60, test)):
        name = f"chest, {hospitals} hospitals of {most}, {new.name} new"
        yield _images("chest", name, _dealt(children, hospitals), new, real_data.CHEST, most)


def _table(source: str, name: str, sites: Sequence[Site], new: str, most: int = 10_000) -> Known:
    classes = tuple(sorted({label for site in sites for label in site.label}))
    columns = sites[0].x.shape[1]
    task = Task(label_column="y", classes=classes, kind="table", features=tuple(f"c{at}" for at in range(columns)))
    learn = tuple(some(site, most) for site in sites if site.name != new)
    newcomer = next(site for site in sites if site.name == new)
    return Known(source, f"{name}, {new} new", task, learn, newcomer, choice={})


def _tables(data: Path) -> Iterator[Known]:
    hearts = [
        Site(site.name, (site.x - torch.tensor(HEART_CENTRE)) / torch.tensor(HEART_SPREAD), site.label, site.patient)
        for site in real_data.heart(data)
    ]
    for new, most in (("cleveland", 1000), ("va", 1000), ("hungarian", 60), ("switzerland", 100)):
        yield _table("heart", f"heart, {most}", hearts, new, most)
    for source, load in fed_tables.TABLES.items():
        tables = load(data)
        sites = list(tables.sites.values())
        for new in list(tables.sites)[:2]:
            yield _table(source, source, sites, new)
        if source == "abide":
            yield _table(source, "abide, 6 hospitals", sites[:7], sites[0].name)
    cohorts = clinical_tables.metabric(data)
    for new, most in (("cohort-1", 1000), ("cohort-3", 200), ("cohort-5", 60)):
        yield _table("metabric", f"metabric, {most}", cohorts, new, most)
    yield _table("pancreatitis", "pancreatitis", clinical_tables.pancreatitis(data), "UM")
    for new, most in (("MN", 1000), ("NY", 90)):
        yield _table("pregnancy", f"pregnancy, {most}", clinical_tables.pregnancies(data), new, most)
    for new in ("DU", "HT"):
        yield _table("glioma", "glioma grade", clinical_tables.glioma_grades(data), new)
