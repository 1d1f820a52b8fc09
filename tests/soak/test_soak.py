"""P30, P32: what holds though processes are killed at any moment. WARDROUND_SOAK: how many kills."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.soak.broken import BROKEN
from tests.soak.engine import PHASES

KILLS = int(os.environ.get("WARDROUND_SOAK", "40"))
FULL = 1000  # in so many, every phase is met
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork and kill -9")


def soak(*arguments: str, timeout_s: float) -> list[dict[str, Any]]:
    """`python -m tests.soak ARGUMENTS` in a process of its own: it forks, and so may hold no threads."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.soak", *arguments],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=timeout_s,
        check=False,
    )  # fmt: skip
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told, done.stderr
    return told


def test_kills_at_random_moments_lose_no_epsilon_and_release_no_second_noise() -> None:
    """P28, P30: "fsync BEFORE the first answer is computed ... A crash after the reservation leaves it spent.

    A retry of the same round returns the stored reply byte for byte, never fresh noise."
    """
    (told,) = soak("--kills", str(KILLS), timeout_s=600 + 5 * KILLS)
    print(json.dumps(told))
    assert told["violation"] == ""
    assert told["kills"] >= KILLS
    assert told["pairs"] > 0 and told["repeated"] > 0
    assert 0 < told["left"] <= told["released"] <= told["reserved"]
    met = [phase for phase in PHASES if told["phases"][phase]]
    assert len(met) >= (len(PHASES) if KILLS >= FULL else 3), told["phases"]


def test_the_soak_finds_every_ledger_that_breaks_a_promise() -> None:
    told = soak("--broken", "--kills", "200", timeout_s=1200)
    assert [one["ledger"] for one in told] == [ledger.__name__ for ledger in BROKEN]
    for one, expected in zip(told, BROKEN.values(), strict=True):
        assert re.search(expected, one["violation"]), one
