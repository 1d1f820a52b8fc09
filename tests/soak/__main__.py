"""`python -m tests.soak --kills 1000 --seed 1` prints what was killed when; exit 1 when a promise was broken."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path

import torch
from tests.soak.broken import BROKEN
from tests.soak.engine import PHASES, Soak
from tests.soak.truth import Violation

from wardround_client.privacy.ledger import Ledger


def main() -> int:
    """One JSON object a ledger that was soaked."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--kills", type=int, default=1000, help="processes to kill; for a broken ledger, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broken", action="store_true", help="soak the ledgers of tests/soak/broken.py instead")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    failed = False
    for ledger_class in BROKEN if options.broken else [Ledger]:
        with tempfile.TemporaryDirectory() as folder:
            failed |= report(Path(folder) / "home", options.kills, options.seed, ledger_class)
    return int(failed)


def report(home: Path, kills: int, seed: int, ledger_class: type[Ledger]) -> bool:
    """Soak one ledger and print what came of it -> whether a promise was broken."""
    started, violation, soak = time.monotonic(), "", Soak(home, seed, ledger_class)
    try:
        soak.run(kills)
    except Violation as error:
        violation = str(error)
    told = {
        "ledger": ledger_class.__name__,
        "seed": seed,
        "kills": soak.kills,
        "pairs": soak.pairs,
        "phases": {phase: soak.phases[phase] for phase in PHASES},
        "reserved": len(soak.truth.reserved),
        "released": len(soak.truth.released),
        "left": len(soak.truth.replies),
        "repeated": soak.truth.repeated,
        "violation": violation,
        "seconds": round(time.monotonic() - started, 1),
    }
    print(json.dumps(told), flush=True)
    return bool(violation)


if __name__ == "__main__":
    sys.exit(main())
