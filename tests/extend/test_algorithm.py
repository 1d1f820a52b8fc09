"""An algorithm of another package, as CONTRIBUTING.md says: approved by a hospital that lists it, and simulated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from tests.recipes import follow

from wardround.algorithms import ALGORITHMS
from wardround.config import load_federation
from wardround.errors import ConfigError, PolicyRefusal
from wardround.release import read
from wardround_client.hospital import Hospital
from wardround_client.privacy.ledger import Ledger
from wardround_simulation.commands import app
from wardround_simulation.phantoms import make_profiles, write_hospital

FEDERATION = """
name = "theirs"
[task]
label_column = "finding"
classes = ["normal", "nodule", "diffuse", "effusion"]
image_size_px = 32
[model]
features = 4
[algorithm]
name = "lookahead"
alpha = 0.25
adapt_steps = 3
[rounds]
rounds = 2
"""
HOSPITAL = '[hospital]\nname = "north"\ndeclared_patients = 200\n'


@pytest.fixture
def theirs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package is installed, and a federation.toml names its algorithm."""
    follow("A new algorithm", tmp_path, monkeypatch)
    assert ALGORITHMS.names[-1] == "lookahead" and "lookahead" not in ALGORITHMS.built_in
    file = tmp_path / "federation.toml"
    file.write_text(FEDERATION)
    return file


def test_a_hospital_approves_it_only_when_it_lists_it_by_name(theirs: Path, tmp_path: Path) -> None:
    usual = Hospital.create(tmp_path / "usual", HOSPITAL, ledger=Ledger(None))
    with pytest.raises(PolicyRefusal) as refusal:
        usual.approvals.approve(theirs)
    assert (refusal.value.rule, refusal.value.asked) == ("policy.algorithms", "lookahead")
    listed = f'{HOSPITAL}[policy]\nalgorithms = ["fedavg", "lookahead"]\n'
    agreement = Hospital.create(tmp_path / "listed", listed, ledger=Ledger(None)).approvals.approve(theirs)
    assert agreement.federation.digest == load_federation(theirs).digest
    assert dict(agreement.federation.algorithm)["alpha"] == 0.25


def test_a_setting_without_bounds_is_refused_also_where_the_algorithm_is_listed(theirs: Path, tmp_path: Path) -> None:
    file = tmp_path / "their_package" / "lookahead.py"
    file.write_text(file.read_text().replace("Annotated[float, Field(gt=0, le=1)]", "Annotated[float, Field(gt=0)]"))
    listed = f'{HOSPITAL}[policy]\nalgorithms = ["lookahead"]\n'
    with pytest.raises(PolicyRefusal, match="whose settings alpha have no bounds"):
        Hospital.create(tmp_path / "listed", listed, ledger=Ledger(None)).approvals.approve(theirs)


def test_a_setting_that_it_has_not_is_said_with_its_line(theirs: Path) -> None:
    theirs.write_text(FEDERATION.replace("alpha = 0.25", "alpha = 0.25\nproximal = 0.1"))
    with pytest.raises(
        ConfigError, match=r"line 12: algorithm.proximal: lookahead has no such setting; it has .*alpha"
    ):
        load_federation(theirs)


def test_a_federation_learns_with_it_and_its_state_is_in_the_checkpoint(theirs: Path, tmp_path: Path) -> None:
    for profile in make_profiles(3, patients=(20, 24), seed=1):
        write_hospital(profile, tmp_path / "images" / profile.name)
    out = tmp_path / "out"
    typed = [str(theirs), "--data", str(tmp_path / "images"), "--out", str(out), "--shots", "1", "--json"]
    result = CliRunner().invoke(app.as_click("simulate"), typed)
    assert result.exit_code == 0, result.output
    questions = [json.loads(line).get("question") for line in result.stdout.splitlines()]
    assert [question for question in questions if question] == ["statistics", "gradient", "gradient"]
    release, tensors, _ = read(next(out.rglob("checkpoint.safetensors")))
    assert torch.equal(tensors["optimizer.lookahead.phi"], release.theta)
    assert (out / "report.html").is_file()
