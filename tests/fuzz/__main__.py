"""Ten thousand wrong files, and what the intake makes of them: `make fuzz`.

    python -m tests.fuzz [--mutants 10000] [--start 0] [--seed 1] [--seeds FOLDER] [--keep FOLDER]

Mutant N of a seed is the same file each time, so a run goes on with --start, and a finding is made again by its number.
Ends with code 1 when a file was accepted whose picture an independent decoder shows otherwise, or would not come to an
end in time twice. A decoder that crashed costs its own file only, and is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tests.fuzz.engine import run
from tests.fuzz.mutants import seeds

from wardround_client.intake.workers import TOO_SLOW


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=10_000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=Path, help="more files to start from")
    parser.add_argument("--keep", type=Path, help="where findings are kept")
    asked = parser.parse_args()
    shared = Path(__file__).parents[3] / "shared" / "data" / "dicom_cases"
    files = seeds(asked.seeds or (shared if shared.is_dir() else None))
    at, last = asked.start, asked.start + asked.mutants
    different, ended = 0, 0
    while at < last:
        numbers = range(at, min(last, at + 1000))
        figures = run(numbers, asked.seed, files, keep=asked.keep)
        print(json.dumps({"from": at, **vars(figures)}), flush=True)
        different += len(figures.different)
        ended += sum(reason == TOO_SLOW.reason for reason in figures.ended.values())
        at += len(numbers)
    sys.exit(1 if different or ended else 0)


if __name__ == "__main__":
    main()
