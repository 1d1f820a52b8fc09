"""A small hospital for the tests of the hospital's program, made once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tests.intake import ingest_dicom

from wardround.cli import run
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.phantoms import make_profiles, write_hospital

HOSPITAL_TOML = """
[hospital]
name = "north"
declared_patients = 40
"""

FEDERATION_TOML = """
name = "test"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
image_size_px = 32
[model]
features = 8
[rounds]
rounds = 3
evaluate_every = 3
"""


@pytest.fixture(scope="session")
def home_with_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hospital")
    profile = make_profiles(1, patients=(36, 40), seed=3)[0]
    write_hospital(profile, folder / "dicom")
    hospital = Hospital.create(folder / "home", HOSPITAL_TOML, ledger=Ledger(None))
    ingest_dicom(folder / "dicom", folder / "home" / "cohort", key=hospital.patients.key, size=32)
    return folder / "home"


@pytest.fixture
def federation_toml(tmp_path: Path) -> Path:
    file = tmp_path / "federation.toml"
    file.write_text(FEDERATION_TOML)
    return file


@pytest.fixture
def hospital(home_with_cohort: Path, tmp_path: Path) -> Hospital:
    """A hospital with a cohort and an untouched ledger in memory; nothing approved yet."""
    home = tmp_path / "north"
    shutil.copytree(home_with_cohort, home)
    return Hospital.open(home, ledger=Ledger(None))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A hospital as `init` leaves it: no coordinator, no cohort."""
    assert run(["hospital", "init", str(tmp_path / "home"), "--name", "st-anna", "--patients", "60"]) == 0
    return tmp_path / "home"
