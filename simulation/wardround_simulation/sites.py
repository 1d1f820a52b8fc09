"""The hospitals of a simulation on disk: images, labels, and a real home with a cohort from the real intake."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wardround.algorithms import ALGORITHMS
from wardround.config import Federation
from wardround.errors import ConfigError, DataError
from wardround.labels import LABEL_KINDS
from wardround.settings import limited
from wardround.task import Task
from wardround_client.config import Policy
from wardround_client.hospital import Hospital
from wardround_client.intake.check import labels_for
from wardround_client.intake.csv_file import CsvFile
from wardround_client.intake.ingest import ingest
from wardround_client.intake.recipe import recipe_of
from wardround_client.intake.source import Asked, Source, look, opened
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import HospitalProfile, write_hospital

FEW = 250  # patients in all, below which starting more processes costs more than it saves
Step = Callable[[str, int, int], None]
WRITING, READING = "writing DICOM", "reading data"


@dataclass(frozen=True)
class Site:
    """A hospital to be: where its images lie, and what a report may say of it (public or synthetic facts only)."""

    name: str
    images: Path
    home: Path
    took_part: bool
    declared_patients: int
    modality: str = ""
    manufacturer: str = ""
    profile: HospitalProfile | None = None

    def described(self, hospital: Hospital) -> dict[str, Any]:
        """For simulation.json."""
        return {
            "name": self.name,
            "declared_patients": hospital.config.hospital.declared_patients,
            "delta": hospital.config.delta,
            "modality": self.modality,
            "manufacturer": self.manufacturer,
            "took_part": self.took_part,
        }


def synthetic_sites(profiles: Sequence[HospitalProfile], out: Path) -> list[Site]:
    """One site a profile; the last takes no part."""
    return [
        Site(
            name=profile.name,
            images=out / "hospitals" / profile.name / "images",
            home=out / "hospitals" / profile.name / "home",
            took_part=index < len(profiles) - 1,
            declared_patients=profile.declared_patients,
            modality="+".join(profile.modalities),
            manufacturer=", ".join(dict.fromkeys(scanner.manufacturer for scanner in profile.scanners)),
            profile=profile,
        )
        for index, profile in enumerate(profiles)
    ]


def sites_of_data(data: Path, out: Path, task: Task) -> list[Site]:
    """One site for each hospital below `data`, by name; the last takes no part.

    A hospital is a subfolder with labels.csv, and DICOM files or the pictures that it lists; for a table it is a CSV.

    Raises:
        DataError: fewer than two hospitals, one without labels.csv, or labels that are no classes of the task.
        ConfigError: a name that no hospital may have.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder", do="name a folder with one subfolder for each hospital")
    table = task.kind == "table"
    places = sorted(
        place
        for place in data.iterdir()
        if not place.name.startswith(".") and (place.suffix.lower() == ".csv" if table else place.is_dir())
    )
    if len(places) < 2:
        raise DataError(
            f"{data} holds {len(places)} hospital(s)",
            allowed="at least 2 CSV files, one for each hospital; the last takes no part"
            if table
            else "at least 2 subfolders, each with labels.csv and its images; the last takes no part",
        )
    sites = []
    for index, place in enumerate(places):
        name = place.stem if table else place.name
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", name):
            raise ConfigError(
                f"{place} cannot be a hospital's name", allowed="letters, digits, dot, dash and underscore"
            )
        labels = labels_for(source_of(place, task), task)
        if labels.nearest:  # other labels are left out, but a typing error would cost a class
            raise labels.error("lines", f"correct them in {place}, or name them in task.classes")
        sites.append(
            Site(
                name=name,
                images=place,
                home=out / "hospitals" / name / "home",
                took_part=index < len(places) - 1,
                declared_patients=1,  # until they are counted
            )
        )
    return sites


def source_of(place: Path, task: Task) -> Source:
    """What a simulated hospital reads: a table, in which a column PatientID names the patient if there is one; or a
    folder with labels.csv.

    Raises: DataError, ConfigError.
    """
    if place.is_file():
        named = "PatientID" in CsvFile.open(place).columns
        return opened("table", Asked(str(place), task=task), {"patient_column": "PatientID"} if named else {})
    labels = place / "labels.csv"
    if task.dense and not LABEL_KINDS[task.labels].places and not labels_name_files(labels):
        return opened("dicom-folder", Asked(str(place), task=task, leave_out=(labels,)), {})
    if not labels.is_file():
        raise DataError(f"{place} has no labels.csv", do="write one: an identifier column, then label columns")
    asked = Asked(str(place), labels, task=task)
    return opened(look(asked), asked, {})


def labels_name_files(labels: Path) -> bool:
    """Whether a labels.csv lists pictures; without, masks of DICOM files are DICOM files beside them."""
    return labels.is_file() and "file" in CsvFile.open(labels).columns


def prepare(
    sites: Sequence[Site], federation: Federation, *, compute: str, step: Step, ledgers_in_memory: bool = True
) -> list[Hospital]:
    """Write what is synthetic, then make a home for every site and take its images in.

    ledgers_in_memory: nobody's budget outlasts a simulation, and no disk is waited for in a round.

    Raises: DataError, ConfigError, StorageError; a site's own problem is raised under its name.
    """
    synthetic = [site for site in sites if site.profile is not None]
    patients = sum(site.declared_patients for site in sites)
    hospitals = {
        site.name: Hospital.create(
            site.home, hospital_toml(site, federation, compute), ledger=Ledger(None) if ledgers_in_memory else None
        )
        for site in sites
    }
    with _workers(len(sites) if patients > FEW else 1) as submit:
        writing = {submit(_write, site): site for site in synthetic}
        reading = [submit(_take_in, s, hospitals[s.name].patients.key, federation) for s in sites if s.profile is None]
        step(WRITING, 0, len(synthetic)) if synthetic else None
        step(READING, 0, len(sites))
        for done, written in enumerate(as_completed(writing), start=1):
            written.result()
            step(WRITING, done, len(synthetic))
            site = writing[written]
            reading.append(submit(_take_in, site, hospitals[site.name].patients.key, federation))
        for done, read in enumerate(as_completed(reading), start=1):
            read.result()
            step(READING, done, len(sites))
    return [
        hospitals[site.name] if site.profile else _declare(site, hospitals[site.name], federation, compute)
        for site in sites
    ]


def hospital_toml(site: Site, federation: Federation, compute: str) -> str:
    """A hospital.toml that permits this federation and little else."""
    epsilon = 1.25 * federation.privacy.epsilon
    labels = json.dumps(list(federation.task.classes), ensure_ascii=False)
    permitted = "\n".join(f"{rule} = {limit!r}" for rule, limit in _permitting(federation).items())
    algorithms = json.dumps([*ALGORITHMS.built_in, federation.algorithm.name])
    return f"""\
[hospital]
name = "{site.name}"
declared_patients = {site.declared_patients}

[device]
compute = "{compute}"
threads = 1

[budget]
epsilon = {epsilon!r}

[policy]
least_noise_multiplier = 0.01
least_patients = 1
{permitted}
algorithms = {algorithms}
labels = {labels}
"""


def _permitting(federation: Federation) -> dict[str, float]:
    """Limits that are the usual ones, or what the federation asks for: nobody's patients are in a simulation."""
    algorithm, privacy, task, model = federation.algorithm, federation.privacy, federation.task, federation.model
    asked = limited(algorithm) | {
        "clip_norm": privacy.clip_norm,
        "support_share": privacy.support_share,
        "epsilon": privacy.epsilon,
        "gradients_per_round": algorithm.answers_per_round,
        "images_per_patient": privacy.images_per_patient,
        "patients_per_episode": privacy.patients_per_episode,
        "features": model.features,
        "embedding": model.embedding,
        "image_size_px": task.image_size_px,
        "classes": len(task.classes),
        "depth": max(each.depth for each in task.examples),
        "inputs": len(task.examples),
        "cells": task.cells,
        "cells_per_image": task.drawn,
    }
    usual = {name: value for name, value in Policy() if not isinstance(value, tuple)}
    greatest = {f"greatest_{name}": value for name, value in asked.items()}
    least = {f"least_{name}": value for name, value in asked.items()}
    return {name: max(value, usual[name]) for name, value in greatest.items() if name in usual} | {
        name: min(value, usual[name]) for name, value in least.items() if name in usual
    }


def _declare(site: Site, hospital: Hospital, federation: Federation, compute: str) -> Hospital:
    """A real hospital declares a round number itself; of somebody's folders it is the true one, rounded."""
    patients = len(hospital.patients.cohort().pseudonyms)
    declared = replace(site, declared_patients=max(1, patients if patients < 20 else patients // 10 * 10))
    (site.home / "hospital.toml").write_text(hospital_toml(declared, federation, compute), encoding="utf-8")
    return Hospital.open(site.home, ledger=hospital.ledger)


def _write(site: Site) -> None:
    assert site.profile is not None
    write_hospital(site.profile, site.images)


def _take_in(site: Site, key: bytes, federation: Federation) -> None:
    task = federation.task
    # What somebody else made may crash a decoder.
    workers = 0 if site.profile else 1
    ingest(source_of(site.images, task), site.home / "cohort", recipe_of(task), key=key, workers=workers)


@contextmanager
def _workers(count: int) -> Iterator[Callable[..., Future[None]]]:
    """Something to submit to: processes where they pay, else this one (the work is then done at once)."""
    count = min(count, os.cpu_count() or 1)
    if count < 2:
        yield _at_once
        return
    # Spawned, not forked: torch and grpc have threads by now. A process for each core has one thread: more wait for
    # each other, and BLAS and OpenMP read how many only when they start.
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)


def _at_once(work: Callable[..., None], *args: Any) -> Future[None]:
    future: Future[None] = Future()
    try:
        work(*args)
        future.set_result(None)
    except Exception as error:  # raised where the result is asked for, as a pool does
        future.set_exception(error)
    return future
