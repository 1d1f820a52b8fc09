"""The hospitals of a simulation: made, or found again, with their cohorts taken in and the agreement approved."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from wardround.errors import ConfigError, StorageError
from wardround_client.consent.agreement import Agreement
from wardround_client.hospital import Hospital
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import OpenCohort
from wardround_server.events import versions
from wardround_simulation.exact import ExactCohort
from wardround_simulation.federation import to_toml
from wardround_simulation.phantoms import for_task, make_profiles
from wardround_simulation.settings import MARK, Settings, write
from wardround_simulation.sites import Site, prepare, sites_of_data, synthetic_sites
from wardround_simulation.watch import Watch


@dataclass(frozen=True)
class Ready:
    """A simulation whose hospitals are open, have approved and hold their cohorts in memory."""

    settings: Settings
    sites: Sequence[Site]
    hospitals: Sequence[Hospital]
    agreements: Sequence[Agreement]
    open_cohort: OpenCohort


def open_hospitals(settings: Settings, sites: Sequence[Site], watch: Watch, *, ledgers_in_memory: bool = True) -> Ready:
    """Make the folder and all that lies in it: images, homes, cohorts; then have every hospital approve and warm up.

    Raises: ConfigError, DataError, StorageError, PolicyRefusal.
    """
    federation = settings.federation
    _make_folder(settings)
    watch.begin(title(settings, sites), privacy_on=settings.privacy, rounds=federation.rounds.rounds)
    hospitals = prepare(
        sites, federation, compute=settings.compute, step=watch.step, ledgers_in_memory=ledgers_in_memory
    )
    ready = _approve(settings, sites, hospitals, watch)
    _describe(ready)
    return ready


def reopen_hospitals(settings: Settings, sites: Sequence[Site], watch: Watch) -> Ready:
    """The hospitals of a simulation that was cut off, with their ledgers; made anew where not all were made.

    Raises: ConfigError, DataError, StorageError, PolicyRefusal.
    """
    if not json.loads((settings.out / MARK).read_bytes())["hospitals"]:
        shutil.rmtree(settings.out)
        return open_hospitals(settings, sites, watch, ledgers_in_memory=False)
    watch.begin(title(settings, sites), privacy_on=settings.privacy, rounds=settings.federation.rounds.rounds)
    return _approve(settings, sites, [Hospital.open(site.home) for site in sites], watch)


def plan_sites(settings: Settings) -> list[Site]:
    """Which hospitals there will be; the last takes no part. Raises: ConfigError, DataError."""
    if settings.data is not None:
        sites = sites_of_data(settings.data, settings.out, settings.federation.task)
    elif settings.federation.task.kind == "table":
        raise ConfigError("synthetic hospitals have images, the federation wants a table", do="give --data FOLDER")
    else:
        profiles = make_profiles(settings.hospitals + 1, patients=settings.patients, seed=settings.seed)
        sites = synthetic_sites([for_task(each, settings.federation.task) for each in profiles], settings.out)
    if settings.hold_out:
        sites = _held_out(sites, settings.hold_out)
    quorum = settings.federation.rounds.quorum
    if len(sites) - 1 < quorum:
        raise ConfigError(
            f"{len(sites) - 1} hospital(s) take part, but rounds.quorum is {quorum}",
            do="simulate more hospitals, or lower the quorum in the federation.toml",
        )
    return sites


def _held_out(sites: Sequence[Site], name: str) -> list[Site]:
    """The sites with this one last. Raises: ConfigError."""
    if name not in (site.name for site in sites):
        raise ConfigError(f"--hold-out {name}", allowed=", ".join(site.name for site in sites))
    ordered = sorted(sites, key=lambda site: site.name == name)
    return [replace(site, took_part=site.name != name) for site in ordered]


def _approve(settings: Settings, sites: Sequence[Site], hospitals: Sequence[Hospital], watch: Watch) -> Ready:
    """Each hospital approves the federation and encodes its cohort once. The last only looks at the agreement."""
    file = settings.out / "federation.toml"
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        agreements = [
            h.approvals.approve(file) if site.took_part else h.approvals.preview(file)
            for site, h in zip(sites, hospitals, strict=True)
        ]
        encoded = pool.map(lambda pair: pair[0].examples(pair[1]), zip(hospitals, agreements, strict=True))
        for done, _ in enumerate(encoded, start=1):
            watch.step("encoding", done, len(hospitals))
    return Ready(settings, sites, hospitals, agreements, PrivateCohort if settings.privacy else ExactCohort)


def _make_folder(settings: Settings) -> None:
    """The output folder, new or empty, with the agreement in it. Raises: ConfigError, StorageError."""
    out = settings.out
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file", do="name a folder with --out")
    if out.is_dir() and any(out.iterdir()):
        what = "another simulation" if (out / MARK).exists() else "other files"
        raise ConfigError(f"{out} holds {what} already", do="name another folder with --out, or remove that one")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "federation.toml").write_text(to_toml(settings.federation), encoding="utf-8")
        encoder = settings.federation.model.encoder
        if encoder != "builtin":
            target = out / encoder
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes((settings.base / encoder).read_bytes())
    except OSError as error:
        raise StorageError(
            f"{error.filename or out} cannot be used ({error.strerror})", do="name another folder with --out"
        ) from None
    write(out / MARK, settings.marked | {"hospitals": [], "settings": settings.to_json(), "versions": versions()})


def _describe(ready: Ready) -> None:
    settings = ready.settings
    described = [site.described(hospital) for site, hospital in zip(ready.sites, ready.hospitals, strict=True)]
    seed = None if settings.data else settings.seed
    facts = {"synthetic": settings.data is None, "seed": seed, "settings": settings.to_json()}
    write(settings.out / MARK, settings.marked | facts | {"hospitals": described, "versions": versions()})


def title(settings: Settings, sites: Sequence[Site]) -> str:
    federation = settings.federation
    protected = f"epsilon {federation.privacy.epsilon:g} a patient" if settings.privacy else "privacy OFF"
    return (
        f"{federation.name}: {len(sites) - 1} hospitals learn {federation.task.label_column!r} in "
        f"{federation.rounds.rounds} "
        f"rounds ({federation.algorithm.name}, {protected}); {sites[-1].name} takes no part. "
        f"{'' if settings.data else f'Seed of the data: {settings.seed}. '}Folder: {settings.out}"
    )
