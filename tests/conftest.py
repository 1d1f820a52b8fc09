"""What every test shares. Telemetry is off before Flower is imported, and each test run is one-threaded.

Nothing that a test's own process draws is left to chance, neither keys nor noise: `_repeatable`.
"""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import random
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# No deadline, and no haste in drawing: a busy machine is no failure. On CI the same examples each time; `make soak`
# looks further.
settings.register_profile(
    "wardround",
    deadline=None,
    max_examples=40,
    derandomize="CI" in os.environ,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("thorough", settings.get_profile("wardround"), max_examples=1000, derandomize=False)
settings.load_profile("wardround")

_SYSTEM = os.urandom


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories first: with two workers, a test of three minutes that begins last would keep one of them waiting."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/story", "tests/hostile/test_liars_transport")))


def _from(entropy: Any) -> None:
    """`os.urandom`, and `secrets` through `random`'s name for it, give this."""
    os.urandom = random._urandom = entropy  # type: ignore[attr-defined]


os.register_at_fork(after_in_child=lambda: _from(_SYSTEM))  # else a child would draw what its parent draws


@contextmanager
def _repeatable(seed: str) -> Iterator[None]:
    """The same tensors, keys, samples and noise inside, in every run and order.

    The noise of privacy takes no seed and has the system's entropy; here the system is a stream with a beginning. Other
    processes have the system's own, so that a story must hold whatever is drawn. And a tolerance is seven deviations
    here too: the next change of what is drawn before it draws it anew.
    """
    outside = os.urandom
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    _from(random.Random(seed).randbytes)
    try:
        yield
    finally:
        _from(outside)


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with _repeatable("a test"):
        yield


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Generator[None, Any, Any]:
    """What several tests share draws the same whichever of them comes first."""
    if fixturedef.scope == "function":
        return (yield)
    with _repeatable(fixturedef.argname):
        return (yield)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: see docs/benchmarks.md")
    return folder
