"""`wardround simulate --algorithm NAME` for one algorithm of each question, private and not, on one set of hospitals.

What the others compute between question and answer: tests/reference/ and tests/shared/test_meta.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.chosen import EACH_QUESTION

from wardround.config import load_federation
from wardround_simulation import commands
from wardround_simulation.federation import changed, embedded, to_toml
from wardround_simulation.phantoms import make_profiles, write_hospital


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = tmp_path_factory.mktemp("images")
    for profile in make_profiles(3, patients=(20, 24), seed=1):
        write_hospital(profile, data / profile.name)
    return data


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("algorithm", EACH_QUESTION)
def test_a_federation_is_simulated_with(algorithm: str, private: bool, folders: Path, tmp_path: Path) -> None:
    out, file = tmp_path / "out", tmp_path / "federation.toml"
    file.write_text(to_toml(changed(embedded(), algorithm={"adapt_steps": 3})))  # how far it goes at home is no matter
    arguments = [
        str(file),
        "--algorithm",
        algorithm,
        "--data",
        str(folders),
        "--out",
        str(out),
        "--rounds",
        "1",
        "--shots",
        "2",
    ]
    result = CliRunner().invoke(
        commands.app.as_click("simulate"), [*arguments, *([] if private else ["--no-privacy"]), "--json"]
    )
    assert result.exit_code == 0, result.output
    federation = load_federation(out / "federation.toml")
    assert federation.algorithm.name == algorithm
    events = [json.loads(line) for line in result.stdout.splitlines()]
    assert [e["question"] for e in events[:2]] == ["statistics", federation.algorithm.question]
    measured = [e["accuracy"] for e in events if e["event"] == "round"]
    assert measured[0] is None, "a model that has learned nothing says the same of everybody"
    assert all(each is None or 0 <= each <= 1 for each in measured)
    comparison = json.loads((out / "comparison.json").read_text())
    assert [row["shots"] for row in comparison["rows"]] == [0, 1, 2]
    assert (out / "report.html").is_file()
