"""The public data sets of the leaderboard, each with the hospitals that take no part in learning.

A set is a list of studies (hospitals.py), made by the programs of the single tables; its score is the mean over the
targets of all of them. `REAL` sets are of several real hospitals; in the others each data set plays a hospital.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from rich.console import Console

import clinical_tables
import cross_modality
import fed_chest
import fed_ham
import fed_heart
import fed_tables
import real_data
import segmentation
from hospitals import Study
from public_rule import CELLS, IMAGES, TABLES, Features
from real_data import Site
from wardround.models.own_encoder import OwnEncoder

Hospitals = Literal["real", "simulated"]
BUILTIN_FEATURES = 64


@dataclass(frozen=True)
class Sources:
    """Where everything lies. data: folder of the public data. encoders: folder of encoder files, or none. cache: of
    encoded images.
    """

    data: Path
    encoders: Path | None
    cache: Path
    console: Console

    def options(self, encoder: str) -> Namespace:
        """As of `study.parser`: the file called so of the folder, or the built-in encoder where there is none."""
        file = self.encoders / f"{encoder}.safetensors" if encoder and self.encoders else None
        file = file if file is not None and file.is_file() else None
        features = BUILTIN_FEATURES if file is None else OwnEncoder.look(file, file.read_bytes()).features
        return Namespace(
            encoder=file, features=features, cache=self.cache, out=self.cache, size=128, table=False, study=None
        )


@dataclass(frozen=True)
class DataSet:
    """One column of the leaderboard.

    says: what is told from what, and who is new. encoder: name of the file that its images would be seen through.
    studies: of the sources. features: what a head sees. metric: it is judged by.
    """

    name: str
    says: str
    hospitals: Hospitals
    features: Features
    studies: Callable[[Sources], list[Study]]
    encoder: str = ""
    metric: str = "balanced_accuracy"


def _skin(number: int, sources: Sources) -> list[Study]:
    return [fed_ham.Ham(sources.options("skin"), sources.data, sources.console).studies()[number]]


def _heart(sources: Sources) -> list[Study]:
    return [each for each in fed_heart.studies(sources.data) if each.name.endswith("logistic")]


def _chest(number: int, sources: Sources) -> list[Study]:
    return [fed_chest.Chests(sources.options("chest"), sources.data, sources.console).studies()[number]]


def _modality(name: str, sources: Sources) -> list[Study]:
    found = cross_modality.Modalities(sources.options("small"), sources.data, sources.console).studies()
    return [each for each in found if each.name == name]


def _known_table(name: str, most: int, sources: Sources) -> list[Study]:
    """One of `fed_tables`, with so many new hospitals at most, the largest."""
    tables = fed_tables.TABLES[name](sources.data)
    largest = sorted(tables.sites, key=lambda each: -len(tables.sites[each].label))
    return fed_tables.studies_of(name, replace(tables, new=tuple(largest[:most])))


def _table(
    name: str, load: Callable[[Path], list[Site]], classes: tuple[str, str], new: tuple[str, ...], sources: Sources
) -> list[Study]:
    """One of `clinical_tables`. new: hospitals that are new in turn."""
    sites = {each.name: each for each in load(sources.data)}
    return fed_tables.studies_of(name, fed_tables.Tables(classes, sites, new))


def _outlines(name: str, new: tuple[str, ...], sources: Sources) -> list[Study]:
    found = segmentation.Outlines(name, sources.options("outlines"), sources.data, sources.console).studies()
    return [each for each in found if each.name.endswith(new)]


SETS = (
    DataSet("heart", "heart disease; each of four hospitals is new", "real", TABLES, _heart),
    DataSet(
        "glioma grade",
        "grade III of a glioma, from molecules; two of four institutions are new",
        "real",
        TABLES,
        partial(_table, "grade", clinical_tables.glioma_grades, clinical_tables.GRADE, ("DU", "HT")),
    ),
    DataSet(
        "pancreatitis",
        "pancreatitis after endoscopy; two of three hospitals are new",
        "real",
        TABLES,
        partial(_table, "indo", clinical_tables.pancreatitis, clinical_tables.PANCREATITIS, ("UM", "IU")),
    ),
    DataSet(
        "pregnancy",
        "birth before 37 weeks; two of four clinics are new",
        "real",
        TABLES,
        partial(_table, "opt", clinical_tables.pregnancies, clinical_tables.AT_TERM, ("MN", "KY")),
    ),
    DataSet(
        "METABRIC",
        "breast cancer, death within five years; two of five cohorts are new",
        "real",
        TABLES,
        partial(_table, "metabric", clinical_tables.metabric, real_data.FIVE_YEARS, ("cohort-1", "cohort-3")),
    ),
    DataSet(
        "TCGA-BRCA",
        "breast cancer, death within five years; two of four regions are new",
        "real",
        TABLES,
        partial(_known_table, "breast", 2),
    ),
    DataSet(
        "lung genes",
        "stage of a lung tumour, from 3,171 genes; each of three laboratories is new",
        "real",
        TABLES,
        partial(_known_table, "lung", 3),
    ),
    DataSet(
        "autism",
        "autism, from measures of the brain; two of 25 sites are new",
        "real",
        TABLES,
        partial(_known_table, "abide", 2),
    ),
    DataSet(
        "blood",
        "three kinds of blood cells, after X-rays and skin",
        "simulated",
        IMAGES,
        partial(_modality, "blood"),
        "small",
    ),
    DataSet(
        "radiology",
        "six body parts and modalities, after chests, skin and blood",
        "simulated",
        IMAGES,
        partial(_modality, "radiology"),
        "small",
    ),
    DataSet(
        "chest, 28 px",
        "pneumonia of children and of adults, after hospitals without chests",
        "simulated",
        IMAGES,
        partial(_modality, "chest"),
        "small",
    ),
    DataSet(
        "chest, adults", "pneumonia of adults, from a hospital of children", "real", IMAGES, partial(_chest, 0), "chest"
    ),
    DataSet(
        "chest, children",
        "pneumonia of children, from a hospital of adults",
        "real",
        IMAGES,
        partial(_chest, 1),
        "chest",
    ),
    DataSet(
        "new disease",
        "three skin diseases that nobody had seen, alone and among seven",
        "real",
        IMAGES,
        partial(_skin, 0),
        "skin",
    ),
    DataSet(
        "rosendahl",
        "seven skin diseases; rosendahl of four hospitals is new",
        "real",
        IMAGES,
        partial(_skin, 1),
        "skin",
    ),
    DataSet(
        "vidir", "seven skin diseases; vidir_modern of four hospitals is new", "real", IMAGES, partial(_skin, 2), "skin"
    ),
    DataSet(
        "glioma outlines",
        "outlines of gliomas; one of four institutions (HT) is new",
        "real",
        CELLS,
        partial(_outlines, "glioma", ("ht",)),
        "outlines",
        "dice",
    ),
    DataSet(
        "polyp outlines",
        "outlines of polyps at ClinicDB, from Kvasir",
        "real",
        CELLS,
        partial(_outlines, "polyps", ("clinicdb",)),
        "outlines",
        "dice",
    ),
)
"""In the order in which they are measured, cheap ones first."""
