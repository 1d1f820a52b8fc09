"""`--engine ray`: the same two apps under `flwr run`, hospitals spread over Ray's workers on one or more machines.

A SuperLink of this simulation's own is started on the loopback for the time of the run. Hospitals' ledgers lie in their
homes, because a hospital may be answered for by another worker in every round.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

import wardround.bundle
from wardround.errors import ConfigError, FederationError, Unreachable
from wardround_client.flower.app import Answers, make_app
from wardround_client.hospital import Hospital
from wardround_client.privacy.private_cohort import PrivateCohort
from wardround_client.round import answer
from wardround_server.checkpoint import Checkpointer, State
from wardround_server.events import Event, RoundEnded, RoundMissed, RunEnded, RunFailed, whole_lines
from wardround_server.flower.app import HOME
from wardround_simulation.exact import ExactCohort
from wardround_simulation.local import Asked
from wardround_simulation.opening import Ready
from wardround_simulation.settings import MARK, RUN, Settings
from wardround_simulation.simulate import simulate
from wardround_simulation.watch import Watch

FOLDER = "WARDROUND_SIMULATION"
START_S, POLL_S = 60.0, 0.2


@cache
def _answers_of(partition: int) -> Answers:
    """Kept in the worker: its hospitals stay warm."""
    folder = Path(os.environ[FOLDER])
    facts = json.loads((folder / MARK).read_text(encoding="utf-8"))
    name = [hospital["name"] for hospital in facts["hospitals"] if hospital["took_part"]][partition]
    exact = facts.get("privacy") == "OFF"
    hospital = Hospital.open(folder / "hospitals" / name / "home")
    return partial(answer, hospital, open_cohort=ExactCohort if exact else PrivateCohort)


client = make_app(lambda context: _answers_of(int(context.node_config["partition-id"])))


def simulate_with_ray(settings: Settings, watch: Watch) -> Path:
    """`simulate`, with Ray underneath. Raises: ConfigError, when ray is missing; else as `simulate`."""
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--engine ray needs ray, which is not installed", do="pip install 'wardround[ray]'")
    return simulate(settings, watch, ray_rounds)


def ray_rounds(ready: Ready) -> Iterator[tuple[Asked, State]]:
    """Submit the run, then follow the coordinator's events and checkpoints. Raises: FederationError, Unreachable."""
    out = ready.settings.out.resolve()
    folder = out / "ray"
    environment = _environment(out, folder)
    run_dir = folder / "runs" / RUN
    checkpointer = Checkpointer(run_dir)
    hospitals = sum(site.took_part for site in ready.sites)
    with _superlink(folder, environment) as process:
        _submit(ready, folder, environment, hospitals)
        for event in _followed(run_dir / "events.jsonl", process, ready.settings.federation.rounds.deadline_s):
            if isinstance(event, RunFailed):
                raise FederationError(event.message, do=f"read {folder / 'superlink.log'}")
            if isinstance(event, RoundEnded | RoundMissed):
                state = checkpointer.load(run=RUN, federation=ready.settings.federation.digest)
                assert state is not None
                yield event, state
            if isinstance(event, RunEnded):
                return


def _environment(out: Path, folder: Path) -> dict[str, str]:
    """What the SuperLink and Ray's workers inherit: where everything lies, and no telemetry."""
    return os.environ | {
        FOLDER: str(out),
        HOME: str(folder),
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }


@contextmanager
def _superlink(folder: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A SuperLink in simulation mode on a free port of the loopback; ends with all that it started."""
    port = _free_port()
    (folder / "flwr").mkdir(parents=True, exist_ok=True)
    (folder / "flwr" / "config.toml").write_text(
        f'[superlink]\ndefault = "wardround"\n\n[superlink.wardround]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    program = shutil.which("flower-superlink", path=environment["PATH"])
    if program is None:
        raise ConfigError("flower-superlink is not installed beside python", do="pip install 'wardround[ray]'")
    command = [program, "--insecure", "--simulation", "--isolation", "subprocess", "--host", "127.0.0.1"]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)], env=dict(environment), stdout=log, stderr=log, start_new_session=True
        )
        try:
            _wait_for(port, process, folder / "superlink.log")
            yield process
        finally:
            _end(process)


def _submit(ready: Ready, folder: Path, environment: Mapping[str, str], hospitals: int) -> None:
    """`flwr run` with the federation's own bundle, but for the client app that plays all hospitals."""
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, text in wardround.bundle.app_files(ready.settings.federation).items():
        text = text.replace('"wardround_client.flower.app:app"', '"wardround_simulation.ray_engine:client"')
        (bundle / name).write_text(text, encoding="utf-8")
    cores = os.cpu_count() or 1
    resources = f"num-supernodes={hospitals} client-resources-num-cpus=1 init-args-num-cpus={cores}"
    done = subprocess.run(
        ["flwr", "run", str(bundle), "wardround", "--federation-config", resources, "--run-config", f'run="{RUN}"'],
        env=dict(environment), capture_output=True, text=True, check=False, timeout=START_S,
    )  # fmt: skip
    if done.returncode:
        raise FederationError(f"flwr run failed: {(done.stdout + done.stderr).strip()[-500:]}")


def _followed(path: Path, process: subprocess.Popen[bytes], patience_s: float) -> Iterator[Event]:
    """The events that the coordinator writes, as it writes them. Raises: FederationError, when it falls silent."""
    offset, until = 0, time.monotonic() + START_S + patience_s
    while time.monotonic() < until:
        for after, event in whole_lines(path, offset):
            offset, until = after, time.monotonic() + START_S + patience_s
            yield event
        if process.poll() is not None:
            break
        time.sleep(POLL_S)
    raise FederationError("the run under Ray has fallen silent", do=f"read {path.parents[2] / 'superlink.log'}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_S
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(POLL_S)
    raise Unreachable("Flower's SuperLink did not start", do=f"read {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM to the SuperLink's own session, which holds Ray too; KILL if it lingers."""
    for name in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, name)
            process.wait(timeout=15)
            return
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
