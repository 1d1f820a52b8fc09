"""What wardround does on CUDA beside the processor and its peers: the programs of the single tables, each for so long.

    benchmarks/gpu.sh [--device cpu] [--small] [--out DIR]

Each part is a process of its own with a limit in seconds, all together under six minutes. A part that fails or takes
too long keeps the rows that it had printed, and the others go on. Without a CUDA device, or with `--device cpu`, its
parts are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from tables import RESULTS, TABLE, hardware, markdown
from wardround.files import write_atomically

HERE = Path(__file__).parent
ROOT = HERE.parent
CUDA, CPU = "cuda", "cpu"
ALONE = "tests/client/privacy/test_alone_cuda.py"
LONGEST_S = 330
"""All parts together; what is left of six minutes installs what is missing."""


@dataclass(frozen=True)
class Part:
    """One program on one device. arguments: of Python. limit_s: after which it is ended."""

    what: str
    device: str
    arguments: tuple[str, ...]
    limit_s: int


@dataclass(frozen=True)
class Outcome:
    """What came of a part. how: in words. rows: of JSON, that it printed."""

    what: str
    device: str
    how: str
    seconds: float
    rows: list[dict[str, Any]] = field(default_factory=list)


def parts(small: bool) -> list[Part]:
    """All parts, CUDA's first: they are what a machine is lent for. small: little work, for as long as it takes."""
    repeats = ["--repeats", "2" if small else "5"]
    width = ["--width", "4" if small else "64"]
    peer = next(iter(sorted(ROOT.glob(".gpu/learn2learn-*.tar.gz"))), None)
    meta = [
        "meta_step.py",
        "--json",
        *repeats,
        *width,
        *(["--methods", "Reptile"] if small else []),
        *(["--learn2learn", str(peer)] if peer else []),
    ]
    private = ["private_step.py", "--json", "--no-memory", *repeats, *width]
    encoders = ["encoder_step.py", "--json", "--seconds", "0.05" if small else "1"]

    patience = 60 if small else 1

    def both(what: str, program: list[str], cuda_s: int, cpu_s: int) -> list[Part]:
        arguments = (str(HERE / program[0]), *program[1:])
        return [
            Part(what, CUDA, (*arguments, "--device", CUDA), patience * cuda_s),
            Part(what, CPU, (*arguments, "--device", CPU), patience * cpu_s),
        ]

    every = [
        Part("a patient alone", CUDA, ("-m", "pytest", "-q", "-p", "no:cacheprovider", ALONE), patience * 75),
        *both("meta steps", meta, 40, 75),
        *both("private steps", [*private, "--small"], 15, 10),
        *both("private steps", private, 40, 30),
        *both("encoders", encoders, 20, 25),
    ]
    return sorted(every, key=lambda part: part.device == CPU)


def carried_out(part: Part, environment: Mapping[str, str]) -> Outcome:
    """Run it to its end, or to its limit."""
    started = time.monotonic()
    command = [sys.executable, *part.arguments]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=part.limit_s, check=False
        )
        printed, failed = done.stdout, done.returncode
        how = "done" if not failed else f"failed ({failed}): {_last(done.stderr) or _last(done.stdout)}"
    except subprocess.TimeoutExpired as late:
        printed = (late.stdout or b"").decode(errors="replace") if isinstance(late.stdout, bytes) else late.stdout or ""
        how = f"ended after {part.limit_s} s"
    if part.what == "a patient alone":
        how = f"{how}: {_last(printed)}"
    return Outcome(part.what, part.device, how, round(time.monotonic() - started, 1), list(_rows(printed)))


def _last(text: str) -> str:
    """The last line that says something, at most 200 letters of it."""
    return next((line.strip()[:200] for line in reversed(text.splitlines()) if line.strip()), "")


def _rows(printed: str) -> Iterator[dict[str, Any]]:
    for line in printed.splitlines():
        if line.startswith("{"):
            try:
                yield json.loads(line)
            except ValueError:  # the line during which a part was ended
                continue


def measured(device: str, small: bool) -> list[Outcome]:
    """Every part in turn. device: "cpu" leaves CUDA out."""
    absent = device == CPU or not torch.cuda.is_available()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"} | ({"CUDA_VISIBLE_DEVICES": ""} if absent else {})
    found = []
    for part in parts(small):
        if part.device == CUDA and absent:
            found.append(Outcome(part.what, part.device, "left out: no CUDA device", 0.0))
            continue
        print(f"{part.what} on {part.device}, at most {part.limit_s} s", file=sys.stderr, flush=True)
        found.append(carried_out(part, environment))
    return found


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA device"
    ended = [{"part": each.what, "device": each.device, "how": each.how, "s": each.seconds} for each in outcomes]
    sections = [
        f"{gpu}; {hardware()}; {datetime.now(UTC).date().isoformat()}. CUDA: wall time between synchronisations. The "
        "processor: one thread; its processor time, and wall time for tasks a second.\n\n",
        markdown(ended, {"part": "part", "device": "on", "how": "outcome", "s": "seconds"}),
    ]
    for what, title, headings in (
        (
            "meta steps",
            "Meta steps: eight tasks, 5-way 5-shot, 5 inner steps, Conv4",
            {"device": "on", "method": "method", "step": "by", "wall_ms": "wall, ms", "wall_ratio": "to the first"}
            | {"tasks_per_s": "tasks a second"},
        ),
        (
            "private steps",
            "Private steps, and Opacus'",
            {"device": "on", "of": "model", "batch": "patients", "step": "by", "ms": "ms", "ratio": "to plain SGD"},
        ),
        (
            "encoders",
            "Encoders",
            {"device": "on", "of": "encoder", "how": "how", "images_per_s": "images a second"}
            | {"times": "times the processor"},
        ),
    ):
        rows = [row for each in outcomes if each.what == what for row in each.rows]
        if rows:
            sections.append(f"\n### {title}\n\n{markdown(_beside(rows) if what == 'encoders' else rows, headings)}")
    return "".join(sections)


def _beside(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """How many times the processor's images a second."""
    base = {(row["of"], row["how"]): row["images_per_s"] for row in rows if row["device"] == CPU}
    known = [{**row, "against": base.get((row["of"], row["how"]))} for row in rows]
    return [
        {**row, "times": round(row["images_per_s"] / row["against"], 2)}
        if row["against"] and row["device"] == CUDA
        else row
        for row in known
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; 1 where a part failed."""
    parser = argparse.ArgumentParser(description="wardround on CUDA, beside the processor, learn2learn and Opacus.")
    parser.add_argument("--device", choices=("auto", CPU), default="auto", help="cpu leaves CUDA out")
    parser.add_argument("--small", action="store_true", help="small networks and few repeats: a trial run")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "gpu")
    options = parser.parse_args(arguments)
    outcomes = measured(options.device, options.small)
    options.out.mkdir(parents=True, exist_ok=True)
    said = json.dumps([asdict(each) for each in outcomes], indent=1) + "\n"
    write_atomically(options.out / RESULTS, said.encode())
    write_atomically(options.out / TABLE, table(outcomes).encode())
    print((options.out / TABLE).read_text(), end="")
    return int(any(each.how.startswith("failed") for each in outcomes))


if __name__ == "__main__":
    sys.exit(main())
