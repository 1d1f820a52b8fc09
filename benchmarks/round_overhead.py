"""Overhead of a deployed round: a real coordinator and two real hospital daemons over TLS, with trivial work.

    python benchmarks/round_overhead.py [--json] [--rounds 20] [--hospitals 2] [--stock]

The work is one gradient of a logistic regression over a table of 60 rows. Overhead is a round's wall time less the
time from the ledger's reservation to its release at the slowest hospital. --stock runs the same hospitals' app under
Flower's own `flower-supernode` instead of our daemon. One thread a process; one machine holds all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

PATIENTS = 60
PINNED = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0", "PYTHONUNBUFFERED": "1"}
FEDERATION = """
name = "overhead"
[task]
label_column = "y"
classes = ["no", "yes"]
kind = "table"
features = ["a", "b"]
[model]
family = "logistic"
[rounds]
rounds = {rounds}
quorum = {hospitals}
deadline_s = 300
"""


def wardround(*arguments: object) -> None:
    """Run a command to its end."""
    command = [sys.executable, "-m", "wardround", *map(str, arguments)]
    subprocess.run(command, env=os.environ | PINNED, check=True, stdout=subprocess.DEVNULL)


@contextmanager
def running(command: list[str], said: str) -> Iterator[None]:
    """A process in its own group, from the line that holds `said` to the end of the block; then it is stopped."""
    process = subprocess.Popen(
        command,
        env=os.environ | PINNED | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        heard = []
        for line in process.stdout:
            heard.append(line)
            if said in line:
                break
        else:
            raise SystemExit(f"{' '.join(command)} ended early:\n{''.join(heard)}")
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # a SuperNode's children outlive it


def make_hospital(home: Path, federation: Path) -> None:
    """A home with a table of random numbers, ready to join."""
    rng = random.Random(home.name)
    table = home.with_suffix(".csv")
    rows = (f"{rng.random():.4f},{rng.random():.4f},{rng.choice(['no', 'yes'])}" for _ in range(PATIENTS))
    table.write_text("\n".join(["a,b,y", *rows]) + "\n")
    wardround("hospital", "init", home, "--name", home.name, "--patients", PATIENTS)
    wardround("hospital", "ingest", home, "--table", table, "--federation", federation)


def daemon(home: Path, invitation: Path, *, stock: bool) -> tuple[list[str], str]:
    """The command of a hospital's node, and what it says once it is connected."""
    if not stock:
        return [sys.executable, "-m", "wardround", "hospital", "up", str(home)], "connected to"
    with socket.socket() as probe:  # its Runtime API wants a port of its own
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return [
        str(Path(sys.executable).with_name("flower-supernode")),
        *("--superlink", tomllib.loads(invitation.read_text())["address"]),
        *("--root-certificates", str(home / "coordinator-ca.pem")),
        *("--auth-supernode-private-key", str(home / "node.key")),
        *("--node-config", f'hospital="{home}"'),
        *("--host", "127.0.0.1", "--port", str(port)),
    ], "Starting Flower ClientAppIo"


def answer_seconds(home: Path) -> dict[int, float]:
    """Round -> seconds between reserving its price and storing its reply, as the ledger's entries say."""
    command = [sys.executable, "-m", "wardround", "hospital", "ledger", str(home), "--json"]
    told = subprocess.run(command, env=os.environ | PINNED, check=True, capture_output=True, text=True).stdout
    times: dict[tuple[str, int], datetime] = {}
    for line in told.splitlines():
        entry = json.loads(line)
        if entry["event"] == "entry":
            times[entry["kind"], entry["round"]] = datetime.fromisoformat(entry["time"])
    return {
        round_: (end - times["reserved", round_]).total_seconds()
        for (kind, round_), end in times.items()
        if kind == "released"
    }


def measure(rounds: int, hospitals: int, *, stock: bool) -> dict[str, object]:
    """Run a federation; medians in seconds over its training rounds."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        place = Path(folder)
        federation, coordinator = place / "federation.toml", place / "coordinator"
        federation.write_text(FEDERATION.format(rounds=rounds, hospitals=hospitals))
        wardround("coordinator", "init", coordinator, "--port", 0, "--admin-port", 0, "--health-port", 0)
        homes = [place / f"h{number}" for number in range(hospitals)]
        for home in homes:
            make_hospital(home, federation)
            wardround("coordinator", "register", coordinator, home / "join.json")
        stack.enter_context(
            running([sys.executable, "-m", "wardround", "coordinator", "up", str(coordinator)], "is up")
        )
        for home in homes:
            wardround("hospital", "join", home, coordinator / "invitation.toml")
            wardround("hospital", "approve", home, federation, "--yes")
            stack.enter_context(running(*daemon(home, coordinator / "invitation.toml", stock=stock)))
        wardround("coordinator", "run", coordinator, federation, "--run", "r", "--json")

        lines = (coordinator / "runs" / "r" / "events.jsonl").read_text().splitlines()
        seconds = {e["round"]: e["seconds"] for e in map(json.loads, lines) if e["event"] == "round" and e["round"]}
        answers = [answer_seconds(home) for home in homes]
    computing = {number: max(each[number] for each in answers) for number in seconds}
    overhead = [seconds[number] - computing[number] for number in seconds]
    return {
        "node": "flower-supernode" if stock else "wardround",
        "hospitals": hospitals,
        "rounds": len(seconds),
        "threads": 1,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "round_median_s": round(statistics.median(seconds.values()), 3),
        "round_p90_s": round(quantile(list(seconds.values()), 0.9), 3),
        "answer_median_s": round(statistics.median(computing.values()), 3),
        "overhead_median_s": round(statistics.median(overhead), 3),
        "overhead_p90_s": round(quantile(overhead, 0.9), 3),
    }


def quantile(values: list[float], q: float) -> float:
    """The least value that at least a share q of the values does not pass."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def main() -> None:
    parser = argparse.ArgumentParser(description="Overhead of a deployed round, with trivial work, over TLS.")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--hospitals", type=int, default=2)
    parser.add_argument("--stock", action="store_true", help="Flower's own SuperNode instead of our daemon")
    options = parser.parse_args()
    found = measure(options.rounds, options.hospitals, stock=options.stock)
    print(json.dumps(found) if options.json else "\n".join(f"{name:18s} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
