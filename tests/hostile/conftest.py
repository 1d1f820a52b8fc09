"""A hospital that is attacked: 40 patients in a table, one approved federation, a ledger in memory."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from tests.hostile.agreements import said
from tests.hostile.attack import FEDERATION, Victim

from wardround.cli import run


def make_home(
    home: Path, patients: int, *, seed: int = 1, ill: float = 0.5, federation: str = FEDERATION, policy: str = ""
) -> Path:
    """A hospital's home that declares 40 patients and holds `patients`; policy: more of its hospital.toml."""
    draws = random.Random(seed)
    rows = [
        f"{draws.gauss(0, 1):.4f},{draws.gauss(0, 1):.4f},{'yes' if draws.random() < ill else 'no'},p{number}"
        for number in range(patients)
    ]
    home.parent.mkdir(parents=True, exist_ok=True)
    agreement, table = home.parent / "federation.toml", home.parent / "table.csv"
    agreement.write_text(federation)
    table.write_text("\n".join(["a,b,y,id", *rows]) + "\n")
    ingest = ["ingest", str(home), "--table", str(table), "--federation", str(agreement), "--patient-column", "id"]
    assert run(["hospital", "init", str(home), "--name", "st-anna", "--patients", "40"]) == 0
    if policy:
        toml = home / "hospital.toml"
        kept = toml.read_text().split("[budget]")[0]
        toml.write_text(kept + policy)
    assert run(["hospital", *ingest]) == 0
    assert run(["hospital", "approve", str(home), str(agreement), "--yes", "--runs", "100", "--anyway"]) == 0
    return home


@pytest.fixture(scope="session")
def attacked_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("attacked") / "home", 40)


@pytest.fixture
def victim(attacked_home: Path, tmp_path: Path) -> Victim:
    home = tmp_path / "home"
    shutil.copytree(attacked_home, home)
    return Victim.of(home)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hospital as `init` leaves it."""
    home = tmp_path / "home"
    assert said("hospital", "init", home, "--name", "st-anna", "--patients", "60").code == 0
    return home
