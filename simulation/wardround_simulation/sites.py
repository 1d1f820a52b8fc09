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

from wardround.config import Federation
from wardround.errors import ConfigError, DataError
from wardround_client.config import Policy
from wardround_client.hospital import Hospital
from wardround_client.intake.ingest import ingest
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import HospitalProfile, write_hospital

FEW = 250  # patients in all, below which starting more processes costs more than it saves
Step = Callable[[str, int, int], None]
WRITING, READING = "writing DICOM", "reading DICOM"


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


def sites_of_folders(data: Path, out: Path) -> list[Site]:
    """One site a subfolder of `data` with DICOM files and labels.csv, by name; the last takes no part.

    Raises:
        DataError: fewer than two such folders, or one without labels.csv.
        ConfigError: a folder's name is no hospital's name.
    """
    if not data.is_dir():
        raise DataError(f"{data} is not a folder", do="name a folder with one subfolder a hospital")
    folders = sorted(f for f in data.iterdir() if f.is_dir() and not f.name.startswith("."))
    if len(folders) < 2:
        raise DataError(
            f"{data} holds {len(folders)} hospital(s)",
            allowed="at least 2 subfolders, each with DICOM files and labels.csv; the last takes no part",
        )
    sites = []
    for index, folder in enumerate(folders):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", folder.name):
            raise ConfigError(
                f"{folder} cannot be a hospital's name", allowed="letters, digits, dot, dash and underscore"
            )
        if not (folder / "labels.csv").is_file():
            raise DataError(f"{folder} has no labels.csv", do="write one: an identifier column, then label columns")
        sites.append(
            Site(
                name=folder.name,
                images=folder,
                home=out / "hospitals" / folder.name / "home",
                took_part=index < len(folders) - 1,
                declared_patients=1,  # until they are counted
            )
        )
    return sites


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
labels = {labels}
"""


def _permitting(federation: Federation) -> dict[str, float]:
    """Limits that are the usual ones, or what the federation asks for: nobody's patients are in a simulation."""
    choice, privacy, task, model = federation.algorithm, federation.privacy, federation.task, federation.model
    ends = {
        "clip_norm": privacy.clip_norm,
        "local_learning_rate": choice.local_learning_rate,
        "regularization": choice.regularization,
        "support_share": privacy.support_share,
    }
    greatest = ends | {
        "epsilon": privacy.epsilon,
        "gradients_per_round": 2 * choice.local_steps,
        "local_steps": choice.local_steps,
        "local_batches": choice.local_batches,
        "proximal": choice.proximal,
        "images_per_patient": privacy.images_per_patient,
        "patients_per_episode": privacy.patients_per_episode,
        "features": model.features,
        "embedding": model.embedding,
        "image_size_px": task.image_size_px,
        "classes": len(task.classes),
    }
    usual = Policy()
    return {f"greatest_{name}": max(asked, getattr(usual, f"greatest_{name}")) for name, asked in greatest.items()} | {
        f"least_{name}": min(asked, getattr(usual, f"least_{name}")) for name, asked in ends.items()
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
    ingest(
        site.images,
        site.images / "labels.csv",
        site.home / "cohort",
        key=key,
        image_size_px=task.image_size_px,
        channels=task.channels,
        workers=1,
    )


@contextmanager
def _workers(count: int) -> Iterator[Callable[..., Future[None]]]:
    """Something to submit to: processes where they pay, else this one (the work is then done at once)."""
    count = min(count, os.cpu_count() or 1)
    if count < 2:
        yield _at_once
        return
    # Spawned, not forked: torch and grpc have threads by now.
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            yield pool.submit
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _at_once(work: Callable[..., None], *args: Any) -> Future[None]:
    future: Future[None] = Future()
    try:
        work(*args)
        future.set_result(None)
    except Exception as error:  # raised where the result is asked for, as a pool does
        future.set_exception(error)
    return future
