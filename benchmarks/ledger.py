"""What the ledger costs a round: reserve and release on this disk, fsync included, as it grows.

    python benchmarks/ledger.py [--json] [--folder FOLDER]

Rounds of 50 runs are written first, two entries each; then the file is opened and 40 more rounds are timed. A reply has
8 kB more than its numbers, as on the wire. "price" is the accountant's part of a reservation: where patients are
sampled, PRV composes everything that was ever asked, and its time grows with the KINDS of answers (runs that differ in
noise), hardly with the entries. It is paid before the file is locked.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from unittest import mock

from wardround.accountant import Answers, epsilon
from wardround_client.privacy.ledger import Budget, Ledger

BUDGET = Budget(epsilon=1e6, delta=1e-3)
REPLY = os.urandom(9_000)
TIMED = 40


def answer(ledger: Ledger, run: str, number: int, row: Answers) -> tuple[float, float]:
    """One round -> milliseconds of its reservation (a retry's look-up included) and of its release."""
    request = hashlib.sha256(f"{run} {number}".encode()).hexdigest()
    started = time.perf_counter()
    ledger.stored_reply(run, number, request)
    reservation = ledger.reserve(
        run=run,
        round=number,
        request_sha256=request,
        federation="f" * 64,
        coordinator="coordinator:9092",
        question="gradient",
        bundle_sha256="b" * 64,
        rows=[row],
        budget=BUDGET,
    )
    reserved = time.perf_counter()
    ledger.release(reservation, REPLY, norm=1.0, layout="head.weight 4x32, head.bias 4")
    return 1e3 * (reserved - started), 1e3 * (time.perf_counter() - reserved)


def measure(path: Path, entries: int, kinds: int, rate: float) -> dict[str, float]:
    """Milliseconds, medians over the timed rounds."""
    rows = [Answers(20.0 + kind, rate, 1) for kind in range(kinds)]
    with closing(Ledger(path)) as ledger, mock.patch("wardround_client.privacy.ledger.epsilon", return_value=1.0):
        ledger._chain._db.execute("PRAGMA synchronous = OFF")  # only while the file is filled
        for number in range(entries // 2):
            answer(ledger, f"run{number % 50}", number // 50, rows[number % kinds])
    started = time.perf_counter()
    with closing(Ledger(path)) as ledger:
        opened = time.perf_counter()
        broken = ledger.verify()
        verified = time.perf_counter()
        epsilon([*ledger.history(), rows[0]], BUDGET.delta)  # the accountant's first price loads Opacus
        prices = []
        for extra in range(2, 5):
            at = time.perf_counter()
            epsilon([*ledger.history(), Answers(20.0, rate, extra)], BUDGET.delta)
            prices.append(1e3 * (time.perf_counter() - at))
        with mock.patch("wardround_client.privacy.ledger.epsilon", return_value=1.0):  # priced above, apart
            times = [answer(ledger, "timed", number, rows[0]) for number in range(TIMED)]
    assert broken is None
    return {
        "entries": entries,
        "kinds": kinds,
        "sampling_rate": rate,
        "open_ms": 1e3 * (opened - started),
        "verify_ms": 1e3 * (verified - opened),
        "price_ms": median(prices),
        "reserve_ms": median(reserve for reserve, _ in times),
        "release_ms": median(release for _, release in times),
    }


def main() -> None:
    """Print a line for each size."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--folder", type=Path, default=Path(), help="on the disk that is measured")
    options = parser.parse_args()
    for entries, kinds, rate in [(0, 1, 1.0), (10_000, 3, 1.0), (0, 1, 0.1), (10_000, 1, 0.1), (10_000, 5, 0.1)]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = measure(Path(folder) / "ledger.sqlite", entries, kinds, rate)
        if options.json:
            print(json.dumps(found), flush=True)
        else:
            print("  ".join(f"{name} {value:.6g}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
