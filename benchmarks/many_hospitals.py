"""A large federation on one machine: a real coordinator, and hospitals that are killed at random, over TLS.

    python benchmarks/many_hospitals.py [--hospitals 200] [--minutes 60] [--each 10] [--deaths 12] [--seed 1] [--json]

Each hospital is a real one: a home of its own with a cohort of 60 rows, a ledger on the disk, a node key, and the node
and the answer of `wardround hospital up`, without its control socket and its log. --each of them share a process, which
is a fork of one that has imported everything: 200 whole daemons would take 40 GB. --deaths processes a minute are
killed (kill -9), so --each hospitals at once, and started again. Every ledger stays.

Printed: rounds a minute, how many of those asked were counted, the coordinator's processor and memory in all and for a
hospital, with nothing to do and in rounds; and what was lost: every answer that the coordinator counted must be in its
hospital's ledger, byte for byte. Memory is anonymous (Pss_Anon + Pss_Shmem). All compete for the same processors.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from processes import cpu_seconds, memory_kb
from round_overhead import FEDERATION, PATIENTS, PINNED, quantile
from wardround.cli import run as command
from wardround.errors import WardroundError
from wardround_client.flower.node import Link, Node
from wardround_client.hospital import Hospital
from wardround_client.keys import CARD, PRIVATE, create_node_key, load_node_key, write_card
from wardround_client.privacy.ledger import Ledger
from wardround_client.round import answer
from wardround_client.service.daemon import MEMORY, coordinator_of
from wardround_server.events import Event, RoundEnded, RunFailed, whole_lines

RUN, ROUNDS_A_MINUTE, SETTLE_S, IDLE_S, LOOK_S = "many", 30.0, 45.0, 20.0, 0.25
Row = dict[str, object]
_fork = multiprocessing.get_context("fork")


def quiet(*words: object) -> None:
    """A command of wardround's, in this process. Raises: SystemExit."""
    with Path(os.devnull).open("w") as nowhere:
        before = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            code = command([str(word) for word in words])
        finally:
            os.dup2(before, 1)
            os.close(before)
    if code:
        raise SystemExit(f"wardround {' '.join(map(str, words))}: exit code {code}")


def free_port() -> int:
    """One that nobody has now; the invitation is written before the coordinator listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def make(place: Path, hospitals: int, rounds: int, deadline_s: float) -> list[Path]:
    """The coordinator's home, and the hospitals': one is made by the commands, and is the pattern of the others."""
    federation, coordinator, pattern = place / "federation.toml", place / "coordinator", place / "pattern"
    text = FEDERATION.format(rounds=rounds, hospitals=max(1, hospitals // 4))
    federation.write_text(text.replace("deadline_s = 300", f"deadline_s = {deadline_s:g}"))
    draws = random.Random(1)
    rows = (f"{draws.random():.4f},{draws.random():.4f},{draws.choice(['no', 'yes'])}" for _ in range(PATIENTS))
    (place / "table.csv").write_text("\n".join(["a,b,y", *rows]) + "\n")
    quiet("coordinator", "init", coordinator, "--port", free_port(), "--admin-port", 0, "--health-port", 0)
    most = max(512, 4 * hospitals)
    with (coordinator / "coordinator.toml").open("a") as file:
        file.write(f"\n[limits]\nconnections = {most}\nconnections_per_address = {most}\n")
    quiet("hospital", "init", pattern, "--name", "pattern", "--patients", PATIENTS)
    quiet("hospital", "ingest", pattern, "--table", place / "table.csv", "--federation", federation)
    quiet("hospital", "join", pattern, coordinator / "invitation.toml")
    quiet("hospital", "approve", pattern, federation, "--yes")
    homes = [place / f"h{number:03d}" for number in range(hospitals)]
    toml = (pattern / "hospital.toml").read_text()
    for home in homes:
        shutil.copytree(pattern, home, ignore=shutil.ignore_patterns(f"{PRIVATE.partition('.')[0]}.*", CARD))
        (home / "hospital.toml").write_text(toml.replace('"pattern"', f'"{home.name}"'))
        write_card(home, name=home.name, declared_patients=PATIENTS, public_key=create_node_key(home))
        quiet("coordinator", "register", coordinator, home / CARD, "--yes")
    return homes


def serve(homes: Sequence[Path], connected: int) -> None:
    """In a process of its own, until SIGTERM: these hospitals' nodes, a thread each. A byte for each connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())

    def report(link: Link, detail: str) -> None:
        if link is Link.CONNECTED:
            os.write(connected, b".")

    def one(home: Path) -> None:
        hospital = Hospital.open(home)
        hospital.warm_up()
        asked: Callable[[bytes], bytes] = lambda blob: answer(hospital, blob)  # noqa: E731
        node = Node(
            coordinator_of(hospital), load_node_key(home), asked, hospital.approvals.bundles, home / MEMORY,
            report=report,
        )  # fmt: skip
        while not stop.is_set():
            try:
                node.run(stop)
            except WardroundError:  # a coordinator that is busy may let a first contact wait
                stop.wait(1.0)

    threads = [threading.Thread(target=one, args=(home,), daemon=True) for home in homes]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and not stop.is_set():
        stop.wait(1.0)
    for thread in threads:
        thread.join(5.0)


@dataclass
class Fleet:
    """All hospitals, in processes of `each`. deaths: how many processes were killed."""

    homes: Sequence[Path]
    each: int
    deaths: int = 0
    processes: dict[int, multiprocessing.process.BaseProcess] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.connected, self._say = os.pipe()
        os.set_blocking(self.connected, False)

    def start(self, group: int) -> None:
        """Fork its process."""
        homes = self.homes[group * self.each : (group + 1) * self.each]
        process = _fork.Process(target=serve, args=(homes, self._say), daemon=True)
        process.start()
        self.processes[group] = process

    def groups(self) -> range:
        """Their numbers."""
        return range(-(-len(self.homes) // self.each))

    def kill(self, group: int) -> None:
        """kill -9, and a new one."""
        self.processes[group].kill()
        self.processes[group].join()
        self.deaths += 1
        self.start(group)

    def news(self) -> int:
        """How many connections were made since the last call."""
        try:
            return len(os.read(self.connected, 1 << 16))
        except BlockingIOError:
            return 0

    def pids(self) -> list[int]:
        """Of those that live."""
        return [process.pid for process in self.processes.values() if process.pid]

    def end(self) -> None:
        """All of them, now."""
        for process in self.processes.values():
            process.kill()
        for process in self.processes.values():
            process.join()


@contextmanager
def coordinator_up(home: Path) -> Iterator[subprocess.Popen[str]]:
    """A coordinator's process, once it listens."""
    words = [sys.executable, "-m", "wardround", "coordinator", "up", str(home)]
    process = subprocess.Popen(words, env=os.environ | PINNED, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if "is up" not in process.stdout.readline():
            raise SystemExit("the coordinator did not start: its own words are above")
        yield process
    finally:
        process.terminate()
        process.communicate()


@dataclass(frozen=True)
class Cost:
    """Of the coordinator over a while: cores_up: of its own process; cores: with its run's; memory_mb: the most."""

    cores_up: float
    cores: float
    memory_up_mb: float
    memory_mb: float


def watched(pid: int, until: Callable[[], bool], each_look: Callable[[], None] = lambda: None) -> Cost:
    """Look at a coordinator until then."""
    begun, before = time.monotonic(), cpu_seconds(pid)
    spent, own, memory, looked = dict(before), 0.0, 0.0, 0.0
    while not until():
        each_look()
        spent |= cpu_seconds(pid)
        if time.monotonic() - looked > 5:
            looked = time.monotonic()
            memory = max(memory, memory_kb(pid) / 1024)
            own = max(own, alone_mb(pid))
        time.sleep(LOOK_S)
    seconds = time.monotonic() - begun
    return Cost(
        (spent[pid] - before[pid]) / seconds, (sum(spent.values()) - sum(before.values())) / seconds, own, memory
    )


def alone_mb(pid: int) -> float:
    """Anonymous memory of one process, without its children."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    return sum(int(kb) for name, kb, _ in lines if name in ("Pss_Anon:", "Pss_Shmem:")) / 1024


def lost(homes: Sequence[Path], rounds: Sequence[RoundEnded]) -> list[str]:
    """Answers that the coordinator counted and their ledgers do not hold, byte for byte; each chain is verified."""
    missing = []
    for home in homes:
        ledger = Ledger.of(home)
        for event in rounds:
            if home.name in event.declared_patients:
                reply = ledger.reply_of(RUN, event.round)
                if reply is None or hashlib.sha256(reply).hexdigest() != event.answers[home.name]:
                    missing.append(f"{home.name}, round {event.round}")
        ledger.close()
    return missing


def measure(options: argparse.Namespace, say: Console) -> Row:
    """Make, connect, run with deaths, and count."""
    with tempfile.TemporaryDirectory() as folder:
        place, draws = Path(folder), random.Random(options.seed)
        begun = time.monotonic()
        homes = make(place, options.hospitals, max(40, int(ROUNDS_A_MINUTE * options.minutes)), options.deadline)
        say.print(f"{len(homes)} homes made in {time.monotonic() - begun:.0f} s")
        coordinator, fleet = place / "coordinator", Fleet(homes, options.each)
        with coordinator_up(coordinator) as up:
            gc.collect()
            gc.freeze()  # pages of what is imported stay shared
            try:
                begun, met = time.monotonic(), 0
                for group in fleet.groups():
                    fleet.start(group)
                while met < len(homes):
                    met += fleet.news()
                    time.sleep(LOOK_S)
                connecting_s = time.monotonic() - begun
                say.print(f"all connected after {connecting_s:.0f} s")
                time.sleep(SETTLE_S)  # a node that is idle asks ever more rarely, every 10 s at last
                until = time.monotonic() + IDLE_S
                idle = watched(up.pid, lambda: time.monotonic() > until)
                say.print(f"with nothing to do: {idle}")
                row = rounds_with_deaths(options, draws, place, fleet, up.pid, say)
            finally:
                fleet.end()
        rounds = [event for event in events(coordinator) if isinstance(event, RoundEnded)]
        missing = lost(homes, rounds)
    return {
        "hospitals": len(homes),
        "connecting_s": round(connecting_s, 1),
        "idle_cores": round(idle.cores_up, 3),
        "idle_ms_per_s_each": round(1000 * idle.cores_up / len(homes), 2),
        **row,
        "answers_counted": sum(event.replied for event in rounds),
        "answers_lost": missing,
    }


def rounds_with_deaths(
    options: argparse.Namespace, draws: random.Random, place: Path, fleet: Fleet, pid: int, say: Console
) -> Row:
    """The run, for so many minutes."""
    coordinator, wait_s = place / "coordinator", 60.0 / options.deaths if options.deaths else float("inf")
    words = ["coordinator", "run", str(coordinator), str(place / "federation.toml"), "--run", RUN, "--json"]
    with (place / "run.out").open("w") as out:
        runs = subprocess.Popen([sys.executable, "-m", "wardround", *words], env=os.environ | PINNED, stdout=out)
        while not any(isinstance(event, RoundEnded) for event in events(coordinator)) and runs.poll() is None:
            time.sleep(LOOK_S)  # the first round calibrates, once
        begun, before = time.monotonic(), len(counted(coordinator))
        until, next_death, memory = begun + 60 * options.minutes, begun + draws.expovariate(1 / wait_s), 0.0

        def look() -> None:
            nonlocal next_death, memory
            if time.monotonic() > next_death:
                fleet.kill(draws.choice(fleet.groups()))
                next_death = time.monotonic() + draws.expovariate(1 / wait_s)
                memory = max(memory, sum(alone_mb(each) for each in fleet.pids()[:5]) / 5)

        cost = watched(pid, lambda: time.monotonic() > until or runs.poll() is not None, look)
        took_s = time.monotonic() - begun
        ended_early = runs.poll() is not None
        runs.send_signal(signal.SIGINT)
        runs.wait()
    done = counted(coordinator)[before:]
    seconds = [event.seconds for event in done]
    failed = [event.message for event in events(coordinator) if isinstance(event, RunFailed)]
    reasons = sorted({shape(why) for event in done for why in event.rejected.values()})
    return {
        "minutes": round(took_s / 60, 1),
        "rounds": len(done),
        "rounds_per_minute": round(60 * len(done) / took_s, 2),
        "round_median_s": round(statistics.median(seconds), 2) if seconds else None,
        "round_p90_s": round(quantile(seconds, 0.9), 2) if seconds else None,
        "processes_killed": fleet.deaths,
        "hospitals_killed": fleet.deaths * options.each,
        "asked": sum(event.hospitals for event in done),
        "counted": sum(event.replied for event in done),
        "absent": sum(len(event.absent) for event in done),
        "why_not_counted": reasons,
        "coordinator_cores": round(cost.cores, 3),
        "of_these_up": round(cost.cores_up, 3),
        "cpu_ms_per_answer": round(1000 * cost.cores * took_s / max(1, sum(event.replied for event in done)), 1),
        "memory_up_mb": round(cost.memory_up_mb),
        "memory_mb": round(cost.memory_mb),
        "hospital_process_mb": round(memory),
        "ended_early": ended_early and (failed or last_words(place)),
    }


def last_words(place: Path) -> list[str]:
    """Of a run that ended without an event."""
    files = (place / "run.out", place / "coordinator" / "superexec.log", place / "coordinator" / "coordinator.log")
    return [f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files if file.exists()]


def shape(why: str) -> str:
    """A reason without its numbers."""
    return "".join("#" if letter.isdigit() else letter for letter in why)[:100]


def events(coordinator: Path) -> list[Event]:
    """Of the run, so far."""
    return [event for _, event in whole_lines(coordinator / "runs" / RUN / "events.jsonl")]


def counted(coordinator: Path) -> list[RoundEnded]:
    """The rounds so far."""
    return [event for event in events(coordinator) if isinstance(event, RoundEnded)]


def main() -> None:
    parser = argparse.ArgumentParser(description="Many hospitals over TLS on one machine, with random deaths.")
    parser.add_argument("--hospitals", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--each", type=int, default=10, help="hospitals in a process")
    parser.add_argument("--deaths", type=float, default=12.0, help="processes killed a minute, on average")
    parser.add_argument("--deadline", type=float, default=60.0, help="of a round, in seconds")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="one JSON object")
    options = parser.parse_args()
    os.environ.update(PINNED)
    torch.set_num_threads(1)
    say = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)
    found = {"cores": os.cpu_count(), "load_before": round(os.getloadavg()[0], 1)} | measure(options, say)
    print(json.dumps(found) if options.json else "\n".join(f"{name:20s} {value}" for name, value in found.items()))


if __name__ == "__main__":
    main()
