"""What every test shares. Telemetry is off before Flower is imported, and each test run is one-threaded."""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# No deadline: a busy machine is no failure. On CI the same examples each time; `make soak` looks further.
settings.register_profile("wardround", deadline=None, max_examples=40, derandomize="CI" in os.environ)
settings.register_profile("thorough", deadline=None, max_examples=1000)
settings.load_profile("wardround")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stories first: with two workers, a test of three minutes that begins last would keep one of them waiting."""
    items.sort(key=lambda item: not item.nodeid.startswith(("tests/story", "tests/hostile/test_liars_transport")))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """The same tensors in every run and order. Noise is not among them: it comes from the OS."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real medical data beside the repository; tests that need it are skipped where it is absent."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}: see docs/benchmarks.md")
    return folder
