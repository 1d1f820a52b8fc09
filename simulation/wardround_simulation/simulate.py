"""A whole federation in one process, top to bottom: hospitals are made, learn, a newcomer is judged, a report."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from wardround.config import Federation
from wardround.errors import ConfigError, StorageError
from wardround_client.audit import DEFAULT_TRIALS, AuditReport
from wardround_client.consent.agreement import Agreement
from wardround_client.flower.app import make_app
from wardround_client.hospital import Hospital
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import OpenCohort, answer
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import Attacked, RoundEnded, RoundMissed, RunEnded, versions
from wardround_server.flower.transport import GridTransport
from wardround_server.hospitals import Member
from wardround_server.report import write_report
from wardround_server.rounds import run
from wardround_server.sinks import Sinks
from wardround_simulation import audited
from wardround_simulation.evaluate import accuracy, compare_shots
from wardround_simulation.exact import ExactCohort
from wardround_simulation.federation import to_toml
from wardround_simulation.grid import App, LocalGrid
from wardround_simulation.membership import LEAST_OTHERS
from wardround_simulation.phantoms import make_profiles
from wardround_simulation.sites import Site, prepare, sites_of_data, synthetic_sites
from wardround_simulation.watch import Watch

MARK = "simulation.json"
RUN = "simulation"
PATIENTS = (60, 220)
Asked = RoundEnded | RoundMissed


@dataclass(frozen=True)
class Settings:
    """What `wardround simulate` was asked for.

    federation: the agreement, options applied. base: the folder of its relative encoder file. out: a folder of its own.
    hospitals: how many take part; one more is made that does not. data: folders to read instead of phantoms.
    patients: least and greatest size of a synthetic cohort. seed: of the synthetic DATA only.
    privacy: False answers exactly. shots: the largest k of the comparison. compute: "auto", "cpu" or "cuda".
    audit: attack what the run released, and its answers. strangers: how many who took no part are made for that, at
    least. trials: of each of the audit's experiments, about. sinks: event sinks, beside those that are always on.
    """

    federation: Federation
    base: Path
    out: Path
    hospitals: int = 8
    data: Path | None = None
    patients: tuple[int, int] = PATIENTS
    seed: int = 0
    privacy: bool = True
    shots: int = 5
    compute: str = "auto"
    workers: int | None = None
    audit: bool = False
    strangers: int = LEAST_OTHERS
    trials: int = DEFAULT_TRIALS
    sinks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ready:
    """A simulation whose hospitals are open, have approved and hold their cohorts in memory."""

    settings: Settings
    sites: Sequence[Site]
    hospitals: Sequence[Hospital]
    agreements: Sequence[Agreement]
    open_cohort: OpenCohort


Rounds = Callable[[Ready], Iterator[tuple[Asked, State]]]


def simulate(settings: Settings, watch: Watch, engine: Rounds | None = None) -> Path:
    """Run it all.

    Args:
        settings: what was asked for.
        watch: is told what happens.
        engine: yields (round event, state after it); default: threads in this process. Another engine works in other
            processes, so that ledgers then lie in the hospitals' homes.

    Returns:
        The report's path.

    Raises: ConfigError, DataError, StorageError, PolicyRefusal, QuorumMissed, FederationError; AuditFailed, after all
        is written, when the audit refutes what is claimed of epsilon.
    """
    begun = time.monotonic()
    sites = plan_sites(settings)
    ready = open_hospitals(settings, sites, watch, ledgers_in_memory=engine is None)
    recorder = audited.Recorder(ready, RUN) if settings.audit else None
    with Sinks(settings.out, {name: {} for name in settings.sinks}) as sinks:
        training, state = 0, None
        for event, state in (engine or local_rounds)(ready):
            training += event.trains
            watch.event(sinks.tell(_enriched(event, ready, state, training)))
            if recorder is not None:
                recorder.note(event, state)
        assert state is not None
        newcomer, agreement = ready.hospitals[-1], ready.agreements[-1]
        step = partial(watch.step, "a new hospital")
        comparison = compare_shots(newcomer, agreement, state, shots=settings.shots, seed=settings.seed, step=step)
        _write(settings.out / "comparison.json", comparison)
        verdict, files = _audit(ready, recorder, sinks, watch) if recorder is not None else (None, {})
        done = sinks.tell(
            RunEnded(
                run=RUN,
                rounds=settings.federation.rounds.rounds,
                report=str(settings.out / "report.html"),
                seconds=round(time.monotonic() - begun, 3),
                comparison=comparison,
                versions=versions(),
                **(_marked(settings) | files),
            )
        )
    report = write_report(settings.out)
    watch.event(done)
    if verdict is not None:
        verdict.check()
    return report


def _audit(
    ready: Ready, recorder: audited.Recorder, sinks: Sinks, watch: Watch
) -> tuple[AuditReport | None, dict[str, str]]:
    """Attack what was released, then audit the answers -> the verdict, and the files that hold both."""
    found = audited.infer_membership(ready, recorder, watch)
    inferred = _told(ready.settings, "membership", found, sinks, watch)
    verdict = audited.canaries(ready, watch)
    found = verdict.to_json() if verdict is not None else {"skipped": audited.NOTHING_CLAIMED}
    return verdict, inferred | _told(ready.settings, "audit", found, sinks, watch)


def _told(settings: Settings, name: str, found: dict[str, Any], sinks: Sinks, watch: Watch) -> dict[str, str]:
    """Write a finding and tell of it -> its name and its file."""
    path = settings.out / f"{name}.json"
    _write(path, _marked(settings) | found)
    fields = {"event": name, "file": str(path)} | _marked(settings) | audited.summary(found)
    watch.event(sinks.tell(Attacked.model_validate(fields)))
    return {name: str(path)}


def open_hospitals(settings: Settings, sites: Sequence[Site], watch: Watch, *, ledgers_in_memory: bool = True) -> Ready:
    """Make the folder and all that lies in it: images, homes, cohorts; then have every hospital approve and warm up.

    Raises: ConfigError, DataError, StorageError, PolicyRefusal.
    """
    federation = settings.federation
    _make_folder(settings)
    watch.begin(_title(settings, sites), privacy_on=settings.privacy, rounds=federation.rounds.rounds)
    hospitals = prepare(
        sites, federation, compute=settings.compute, step=watch.step, ledgers_in_memory=ledgers_in_memory
    )
    ready = _approve(settings, sites, hospitals, watch)
    _describe(ready)
    return ready


def plan_sites(settings: Settings) -> list[Site]:
    """Which hospitals there will be; the last takes no part. Raises: ConfigError, DataError."""
    if settings.data is not None:
        sites = sites_of_data(settings.data, settings.out, settings.federation.task)
    elif settings.federation.task.kind == "table":
        raise ConfigError("synthetic hospitals have images, the federation wants a table", do="give --data FOLDER")
    else:
        sites = synthetic_sites(
            make_profiles(settings.hospitals + 1, patients=settings.patients, seed=settings.seed), settings.out
        )
    quorum = settings.federation.rounds.quorum
    if len(sites) - 1 < quorum:
        raise ConfigError(
            f"{len(sites) - 1} hospital(s) take part, but rounds.quorum is {quorum}",
            do="simulate more hospitals, or lower the quorum in the federation.toml",
        )
    return sites


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


def local_rounds(ready: Ready) -> Iterator[tuple[Asked, State]]:
    """The federation's own round loop over hospitals in this process; yields rounds with the state after them."""
    settings = ready.settings
    part = [(site, h) for site, h in zip(ready.sites, ready.hospitals, strict=True) if site.took_part]
    apps: dict[str, App] = {site.name: app_of(hospital, ready.open_cohort) for site, hospital in part}
    checkpointer = RememberingCheckpointer(settings.out)
    model = ready.agreements[0].model
    with LocalGrid(apps, workers=settings.workers) as grid:
        members = registered(grid, {site.name: h for site, h in part})
        transport = GridTransport(grid, lambda: members)
        for event in run(settings.federation, model, transport, checkpointer, run_name=RUN, private=settings.privacy):
            if isinstance(event, RoundEnded | RoundMissed):
                assert checkpointer.state is not None
                yield event, checkpointer.state


def _enriched(event: Asked, ready: Ready, state: State, training: int) -> Asked:
    """The event with what only a simulation may know: accuracies without noise.

    Those of participants are legal because nobody is a patient here; of somebody's own folders they are left out while
    privacy is on. The last hospital took no part, so nobody was promised anything about it.
    """
    settings = ready.settings
    known: dict[str, Any] = _marked(settings)
    if isinstance(event, RoundMissed):
        return event.model_copy(update=known)
    known["training_round"] = training
    if not settings.privacy:
        known |= {"epsilon": {}, "epsilon_max": None}
    *part, (_, held_out, agreement) = zip(ready.sites, ready.hospitals, ready.agreements, strict=True)
    known["accuracy"] = accuracy(held_out, agreement, state)
    if agreement.federation.model.family != "conv4" and (settings.data is None or not settings.privacy):
        known["accuracy_by_hospital"] = {site.name: accuracy(h, a, state) for site, h, a in part}
    return event.model_copy(update=known)


def app_of(hospital: Hospital, open_cohort: OpenCohort) -> App:
    """The hospital's own ClientApp, over a hospital that is open already."""
    answers = partial(answer, hospital, open_cohort=open_cohort)
    return make_app(lambda context: answers)


class RememberingCheckpointer(Checkpointer):
    """Also keeps the last state in memory, for whoever evaluates it."""

    state: State | None = None

    def save(self, state: State) -> None:
        """See Checkpointer."""
        super().save(state)
        self.state = state


def registered(grid: LocalGrid, hospitals: Mapping[str, Hospital]) -> dict[int, Member]:
    """The hospitals as a coordinator's registry lists them, by node id, each with a node key of its own."""
    return {
        node: Member(
            name=name,
            public_key=ec.generate_private_key(ec.SECP256R1())
            .public_key()
            .public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
            .decode(),
            declared_patients=hospitals[name].config.hospital.declared_patients,
            node_id=node,
        )
        for node, name in grid.names.items()
    }


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
    _write(out / MARK, _marked(settings) | {"hospitals": [], "versions": versions()})


def _describe(ready: Ready) -> None:
    settings = ready.settings
    described = [site.described(hospital) for site, hospital in zip(ready.sites, ready.hospitals, strict=True)]
    facts = {"synthetic": settings.data is None, "seed": None if settings.data else settings.seed}
    _write(settings.out / MARK, _marked(settings) | facts | {"hospitals": described, "versions": versions()})


def _marked(settings: Settings) -> dict[str, Any]:
    """What all that is said of a run without privacy carries."""
    return {} if settings.privacy else {"privacy": "OFF"}


def _title(settings: Settings, sites: Sequence[Site]) -> str:
    federation = settings.federation
    protected = f"epsilon {federation.privacy.epsilon:g} a patient" if settings.privacy else "privacy OFF"
    return (
        f"{federation.name}: {len(sites) - 1} hospitals learn {federation.task.label_column!r} in "
        f"{federation.rounds.rounds} "
        f"rounds ({federation.algorithm.name}, {protected}); {sites[-1].name} takes no part. Folder: {settings.out}"
    )


def _write(path: Path, value: Mapping[str, Any]) -> None:
    try:
        path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"{path} cannot be written ({error.strerror})", do="free some space") from None
