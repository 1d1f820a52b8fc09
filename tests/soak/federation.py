"""`python -m tests.soak.federation --minutes 30 --seed 1`: a federation under siege, its figures as one JSON object.

A coordinator, three honest hospitals whose daemons are killed at random, one registered hospital that lies in another
way each round, and one stranger that floods. Exit 1 when a promise was broken: the run ends by itself, every honest
hospital that was alive is counted in each round, no ledger has lost a price, and the coordinator's memory is flat.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tests.hostile.coordinators import Liar, Siege, agreement, besieged, online, parts_of, start_run, whole
from tests.hostile.test_liars_transport import LIES
from tests.story.processes import Process, typed

from wardround.wire import RoundReply, peek_reply
from wardround_client.flower.fleet import Work
from wardround_client.privacy.ledger import Ledger

NAMES, RUN = ("north", "south", "west"), "soak"
DEADLINE_S, SLACK_S = 12.0, 2.0
SECONDS_A_ROUND = 9.0  # about, with a liar that lets most rounds wait for the deadline
KILL_EVERY_S = (20.0, 40.0)
GROWTH, GROWTH_MIB = 1.10, 40.0


def boosted(liar: Liar, work: Work, blob: bytes) -> None:
    """An honest answer, much longer."""
    header = peek_reply(blob)
    numbers = np.frombuffer(blob, np.float32, offset=8 + int.from_bytes(blob[:8], "little"))
    liar.send(work, parts_of(work, RoundReply(header, 1e6 * numbers).pack()))


@dataclass
class Hospital:
    """An honest hospital's daemon. away: from when until when it was not there, by time.monotonic()."""

    name: str
    home: Path
    cwd: Path
    process: Process | None = None
    away: list[tuple[float, float]] = field(default_factory=list)

    def start(self) -> None:
        """Start the daemon and wait until it is connected."""
        self.process = Process("hospital", "up", self.home, cwd=self.cwd)
        self.process.wait_for(lambda line: "connected to" in line, "connection", 120)

    def die(self) -> None:
        """kill -9, and back again."""
        assert self.process is not None
        began = time.monotonic()
        self.away.append((began, float("inf")))
        self.process.kill()
        self.start()
        # It is asked from the next round on: the one that goes on began without it.
        self.away[-1] = (began, time.monotonic() + 1.0)

    def stop(self) -> None:
        """End the daemon, if it is there still."""
        if self.process is not None:
            self.process.stop()

    def was_there(self, begin: float, end: float) -> bool:
        """All the time between two moments."""
        return all(end < gone or back < begin for gone, back in self.away)


class Stranger(threading.Thread):
    """Floods the hospitals' port until `stop`, with whatever comes to mind."""

    def __init__(self, siege: Siege, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.siege, self.draws, self.stop, self.done = siege, random.Random(seed), stop, Counter[str]()

    def run(self) -> None:
        """Attack after attack; none of its faults counts."""
        attacks = [self.connections, self.half_heads, self.bodies, self.rubbish]
        while not self.stop.wait(self.draws.uniform(0.1, 2.0)):
            attack = self.draws.choice(attacks)
            self.done[attack.__name__] += 1
            with suppress(OSError), ExitStack() as stack:
                attack(stack)

    def connections(self, stack: ExitStack) -> None:
        for _ in range(self.draws.randint(50, 400)):
            line = socket.create_connection(("127.0.0.1", self.siege.port), timeout=2)
            stack.callback(line.close)
            if self.draws.random() < 0.3:
                line.sendall(b"\x16\x03\x01\x02\x00\x01")
        self.stop.wait(3)

    def half_heads(self, stack: ExitStack) -> None:
        for _ in range(self.draws.randint(5, 40)):
            stack.enter_context(self.siege.dial(2)).sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost:")
        self.stop.wait(3)

    def bodies(self, stack: ExitStack) -> None:
        line = stack.enter_context(self.siege.dial(2))
        line.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nhost: a\r\ncontent-length: 900000000\r\n\r\n")
        for _ in range(900):
            line.sendall(bytes(1_000_000))

    def rubbish(self, stack: ExitStack) -> None:
        for _ in range(20):
            with suppress(OSError):
                line = stack.enter_context(self.siege.dial(2))
                line.sendall(self.draws.randbytes(self.draws.randint(1, 4000)))


def table(path: Path, seed: int) -> Path:
    """A hospital's 60 patients."""
    draws = random.Random(seed)
    rows = [f"{draws.gauss(y, 1):.4f},{draws.gauss(-y, 1):.4f},{['no', 'yes'][y]}" for y in [0, 1] * 30]
    path.write_text("\n".join(["a,b,y", *rows]) + "\n")
    return path


def family_mib(root: int) -> float:
    """Resident memory of the processes that a process has started, and they."""
    parents, resident = dict[int, int](), dict[int, float]()
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, StopIteration):
            lines = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
            parents[int(entry.name)] = int(lines["PPid"])
            resident[int(entry.name)] = int(lines.get("VmRSS", "0 kB").split()[0]) / 1024
    family = {root}
    for _ in range(6):
        family |= {pid for pid, parent in parents.items() if parent in family}
    return sum(resident.get(pid, 0.0) for pid in family - {root})


def soak(folder: Path, minutes: float, seed: int) -> dict[str, Any]:
    """Run it -> its figures."""
    draws, stop = random.Random(seed), threading.Event()
    rounds = max(8, int(minutes * 60 / SECONDS_A_ROUND))
    federation = agreement(folder, rounds=rounds, deadline_s=DEADLINE_S)
    with besieged(folder / "coordinator") as siege, ExitStack() as stack:
        hospitals = [Hospital(name, folder / name, folder) for name in NAMES]
        for number, hospital in enumerate(hospitals):
            home, data = hospital.home, table(folder / f"{hospital.name}.csv", seed + number)
            typed("hospital", "init", home, "--name", hospital.name, "--patients", 60)
            typed("hospital", "ingest", home, "--table", data, "--federation", federation)
            typed("hospital", "join", home, siege.home / "invitation.toml")
            typed("hospital", "approve", home, federation, "--yes")
            typed("coordinator", "register", siege.home, home / "join.json", "--yes")
            hospital.start()
            stack.callback(hospital.stop)
        siege.register("liar")
        lies = [draws.choice([*LIES, boosted, whole]) for _ in range(rounds + 1)]
        liar = stack.enter_context(Liar(siege, "liar", federation, lies))
        stranger = Stranger(siege, seed, stop)
        online(siege, *NAMES, "liar", within_s=120)
        began, samples, moments = time.monotonic(), list[tuple[float, float]](), list[float]()

        def look() -> None:
            while not stop.wait(1.0):
                samples.append((siege.memory_mib(), family_mib(siege.process.pid)))

        def kill() -> None:
            while not stop.wait(draws.uniform(*KILL_EVERY_S)):
                draws.choice(hospitals).die()

        run = start_run(siege, federation, RUN)
        threads = [stranger, threading.Thread(target=look, daemon=True), threading.Thread(target=kill, daemon=True)]
        run.until(lambda event: event["event"] == "start")
        moments.append(time.monotonic())
        for thread in threads:
            thread.start()
        with suppress(AssertionError):  # it reads to the end
            run.until(lambda event: moments.append(time.monotonic()) or event["event"] in ("done", "error"))  # type: ignore[func-returns-value]
        code = run.process.wait(60)
        stop.set()
        for thread in threads:
            thread.join(150)
        took_s = time.monotonic() - began
    return figures(hospitals, run.events, moments, samples, liar, stranger) | {"exit": code, "seconds": round(took_s)}


def figures(
    hospitals: list[Hospital],
    events: list[dict[str, Any]],
    moments: list[float],
    samples: list[tuple[float, float]],
    liar: Liar,
    stranger: Stranger,
) -> dict[str, Any]:
    """What came of it, and what was broken."""
    broken, counted, due = list[str](), 0, 0
    rounds = [
        (begin, end, event)
        for begin, end, event in zip(moments, moments[1:], events[1:], strict=False)
        if event["event"] == "round"
    ]
    for begin, end, event in rounds:
        if event["seconds"] > DEADLINE_S + SLACK_S:
            broken.append(f"round {event['round']} took {event['seconds']} s")
        for hospital in hospitals:
            if hospital.was_there(begin, end):
                due += 1
                counted += hospital.name in event["declared_patients"]
                if hospital.name not in event["declared_patients"]:
                    why = event["rejected"].get(hospital.name, "not asked")
                    broken.append(f"round {event['round']}: {hospital.name} was there and not counted: {why}")
    for hospital in hospitals:
        typed("hospital", "ledger", hospital.home, "--verify")
        ledger = Ledger(hospital.home / "ledger.sqlite")
        answered = [event["round"] for _, _, event in rounds if hospital.name in event["declared_patients"]]
        lost = [number for number in answered if ledger.reply_of(RUN, number) is None]
        ledger.close()
        if lost:
            broken.append(f"{hospital.name}: rounds {lost} were answered and are not in the ledger")
    own, children = zip(*samples, strict=True) if samples else ((0.0,), (0.0,))
    quarter = max(1, len(own) // 4)
    early, late = (statistics.median(part) for part in (own[quarter : 2 * quarter] or own, own[-quarter:]))
    if late > GROWTH * early + GROWTH_MIB:
        broken.append(f"the coordinator's memory grew from {early:.0f} to {late:.0f} MiB")
    if not events or events[-1]["event"] != "done":
        broken.append(f"the run did not end by itself: {events[-1:]}")
    return {
        "rounds": len(rounds),
        "longest_round_s": max((event["seconds"] for _, _, event in rounds), default=None),
        "honest_due": due,
        "honest_counted": counted,
        "kills": sum(len(hospital.away) for hospital in hospitals),
        "lies": dict(Counter(liar.told)),
        "stranger": dict(stranger.done),
        "memory_mib": {"early": round(early), "late": round(late), "most": round(max(own))},
        "run_memory_mib": {"median": round(statistics.median(children)), "most": round(max(children))},
        "broken": broken,
    }


def main() -> int:
    """Print the figures."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak.federation")
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        told = soak(Path(folder), options.minutes, options.seed)
    print(json.dumps({"minutes": options.minutes, "seed": options.seed} | told), flush=True)
    return int(bool(told["broken"]) or told["exit"] != 0)


if __name__ == "__main__":
    sys.exit(main())
